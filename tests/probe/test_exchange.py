"""Features handed from network to network: invariances, and least squares by a second way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.probe.exchange import WAYS, exchange, readout, relative


def drawn(*shape, key):
    generator = params.stream(f"{key}:{shape}")
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rotation(size, key):
    return torch.linalg.qr(drawn(size, size, key=key))[0]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_relative_features_do_not_see_rotations_and_scales(seed, scale):
    x, anchors = drawn(6, 4, key=f"x{seed}"), drawn(3, 4, key=f"a{seed}")
    turned = scale * rotation(4, f"q{seed}")
    torch.testing.assert_close(relative(x @ turned, anchors @ turned), relative(x, anchors))


def test_relative_features_are_cosines_and_zero_where_there_is_no_direction():
    x, anchors = drawn(5, 3, key="x"), drawn(2, 3, key="a")
    expected = [[np.dot(u, v) / np.linalg.norm(u) / np.linalg.norm(v) for v in anchors.numpy()]
                for u in x.numpy()]  # fmt: skip
    np.testing.assert_allclose(relative(x, anchors).numpy(), expected)
    assert (relative(torch.zeros(1, 3), anchors) == 0).all()


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_a_readout_is_the_regularised_least_squares_fit(ridge):
    x, y = drawn(30, 4, key="x"), torch.arange(30) % 3
    found = readout(x, y, 3, ridge)
    centred = (x - x.mean(0)).numpy()
    penalty = (ridge * np.square(centred).sum(0).mean()) ** 0.5
    rows = np.concatenate([centred, penalty * np.eye(4)])
    targets = np.eye(3)[y.numpy()]
    goal = np.concatenate([targets - targets.mean(0), np.zeros((4, 3))])
    weight = np.linalg.lstsq(rows, goal, rcond=None)[0]
    np.testing.assert_allclose(found[:-1].numpy(), weight, atol=1e-10)
    offset = targets.mean(0) - x.mean(0).numpy() @ weight
    np.testing.assert_allclose(found[-1].numpy(), offset, atol=1e-10)
    assert found.sum(1)[:-1].abs().max() < 1e-10  # class scores sum to one, whatever the input


def test_a_readout_does_not_depend_on_the_unit_of_the_features():
    x, y = drawn(30, 4, key="x"), torch.arange(30) % 3
    scores = x @ readout(x, y, 3)[:-1]
    torch.testing.assert_close(1e3 * x @ readout(1e3 * x, y, 3)[:-1], scores)


def test_units_that_never_fire_do_no_harm():
    x, y = drawn(30, 4, key="x"), torch.arange(30) % 3
    x[:, 2] = 0
    found = readout(x, y, 3, ridge=0.0)
    assert found.isfinite().all() and (found[2] == 0).all()


def groups(n, key):
    centres = 4 * torch.eye(3, 5, dtype=torch.float64)
    y = torch.arange(n) % 3
    return centres[y] + drawn(n, 5, key=key), y


def test_a_rotated_network_is_read_in_relative_features_and_not_directly():
    (known, labels), (seen, targets) = groups(60, "fit"), groups(90, "judged")
    turn = rotation(5, "q")
    found = exchange((known, labels), (known[:20] @ turn, known[:20]),
                     (seen @ turn, seen, targets), 3)  # fmt: skip
    assert {*found.error} == {*WAYS} and (found.anchors, found.n) == (20, 90)
    assert found.error["relative"] == found.own["relative"] < 0.2
    assert found.error["mapped"] < 0.2 < found.error["direct"]
    assert found.own["mapped"] == found.own["direct"]
    p = found.error["direct"]
    assert found.error_stderr["direct"] == pytest.approx((p * (1 - p) / 89) ** 0.5)


def test_a_network_is_read_by_its_own_readout_in_every_way():
    (known, labels), (seen, targets) = groups(60, "fit"), groups(90, "judged")
    anchors = known[:30]
    found = exchange((known, labels), (anchors, anchors), (seen, seen, targets), 3, ridge=1e-9)
    assert found.error == pytest.approx(found.own)


def test_what_does_not_belong_together_is_said():
    with pytest.raises(ArgumentError, match="number of columns"):
        relative(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ArgumentError, match="anchors"):
        exchange((torch.eye(2), torch.arange(2)), (torch.eye(2), torch.eye(3, 2)),
                 (torch.eye(2), torch.eye(2), torch.arange(2)), 2)  # fmt: skip
    with pytest.raises(ArgumentError, match="judged"):
        exchange((torch.eye(2), torch.arange(2)), (torch.eye(2), torch.eye(2)),
                 (torch.eye(2, 3), torch.eye(2), torch.arange(2)), 2)  # fmt: skip
