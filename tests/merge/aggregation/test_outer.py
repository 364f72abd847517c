"""The outer step, against torch's own SGD and against federated averaging."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sokmerge.errors import ArgumentError
from sokmerge.merge import average, fedavg, outer_step

EPS = torch.finfo(torch.float32).eps


@given(
    seed=st.integers(0, 2**31),
    rate=st.floats(0.1, 1.5),
    momentum=st.floats(0.0, 0.95),
    steps=st.integers(1, 4),
)
@settings(max_examples=12)
def test_it_is_sgd_on_the_way_back(draw_model, seed, rate, momentum, steps):
    point, velocity, weights = draw_model(seed), None, [1.0, 3.0]
    other = {key: point[key].clone().requires_grad_() for key in ("w", "b")}
    nesterov = momentum > 0  # torch has no Nesterov momentum of zero
    sgd = torch.optim.SGD(other.values(), lr=rate, momentum=momentum, nesterov=nesterov)
    for step in range(steps):
        reached = [draw_model(seed + 10 * step + k) for k in (1, 2)]
        mean = average(reached, weights=weights)
        for key, tensor in other.items():
            tensor.grad = tensor.detach() - mean[key]
        sgd.step()
        point, velocity = outer_step(
            point, reached, velocity, rate=rate, momentum=momentum, weights=weights
        )
        for key, tensor in other.items():
            scale = 1 + float(tensor.detach().abs().max())
            torch.testing.assert_close(
                point[key], tensor.detach(), rtol=0, atol=64 * steps * scale * EPS
            )
    assert torch.equal(point["steps"], torch.tensor(seed % 7))


def test_without_momentum_and_at_rate_one_it_is_a_round_of_averaging(draw_model):
    base, reached = draw_model(0), [draw_model(k) for k in (1, 2, 3)]
    clients = [lambda params, there=there: there for there in reached]
    found, _ = outer_step(base, reached, rate=1.0, momentum=0.0, weights=[1, 2, 5])
    expected = fedavg(base, clients, weights=[1, 2, 5])
    for key in ("w", "b"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=8 * EPS)


def test_what_it_is_given_stays_as_it_was(draw_model):
    base, reached, speed = draw_model(0), [draw_model(1)], draw_model(2)
    outer_step(base, reached, speed)
    for given_, seed in ((base, 0), (reached[0], 1), (speed, 2)):
        assert all(torch.equal(given_[key], draw_model(seed)[key]) for key in given_)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"rate": 0.0}, "rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"reached": []}, "models"),
        ({"weights": [1, 2]}, "weights"),
        ({"velocity": {"w": torch.zeros(1)}}, "velocity"),
        ({"point": {"w": torch.zeros(1)}}, "reached"),
    ],
)
def test_what_cannot_be_used_is_refused(draw_model, how, named):
    given_ = {"point": draw_model(0), "reached": [draw_model(1)], **how}
    with pytest.raises(ArgumentError, match=rf"^{named}"):
        outer_step(**given_)


def test_a_point_that_is_not_finite_is_refused(draw_model):
    base = draw_model(0)
    base["w"][0, 0] = float("nan")
    with pytest.raises(ArgumentError, match="NaN"):
        outer_step(base, [draw_model(1)])
