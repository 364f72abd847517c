"""Contributors to a merge: outlyingness and ingredients against definitions and known mixtures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sokmerge import merge, params
from sokmerge.errors import ArgumentError
from sokmerge.probe.contributors import ingredients, outlyingness


def _net(seed):
    drawn = params.normal_like({"w": torch.zeros(7, 5), "b": torch.zeros(11)}, seed)
    return {**drawn, "steps": torch.tensor(seed)}


def _flat(point):
    return np.concatenate([point[k].double().numpy().ravel() for k in ("w", "b")])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**4), st.integers(2, 5))
def test_outlyingness_is_its_definition(seed, count):
    base, nets = _net(seed), [_net(seed + 1 + k) for k in range(count)]
    found = outlyingness(nets, base)
    steps = np.stack([_flat(n) - _flat(base) for n in nets])
    for i, step in enumerate(steps):
        rest = np.delete(steps, i, axis=0)
        cosines = rest @ step / np.linalg.norm(rest, axis=1) / np.linalg.norm(step)
        assert found.norm[i] == pytest.approx(np.linalg.norm(step))
        assert found.cosine[i] == pytest.approx(cosines.mean())
        assert found.distance[i] == pytest.approx(np.linalg.norm(step - rest.mean(0)))
        assert found.conflict[i] == pytest.approx(np.mean(step * rest.sum(0) < 0))


def test_the_one_that_was_lengthened_or_turned_round_stands_out():
    base = _net(0)
    common = params.subtract(_net(1), base)
    nets = [params.combine([1, 1, 0.3], [base, common, _net(10 + k)]) for k in range(4)]
    long = params.lerp(base, nets[0], 3.0)
    against = params.lerp(base, nets[0], -1.0)
    assert outlyingness([long, *nets[1:]], base).norm.argmax() == 0
    found = outlyingness([against, *nets[1:]], base)
    assert found.cosine.argmin() == 0 and found.conflict.argmax() == 0
    assert found.distance.argmax() == 0


def test_a_step_that_is_zero_has_no_direction():
    base = _net(0)
    found = outlyingness([base, _net(1)], base)
    assert np.isnan(found.cosine).all() and np.isnan(found.conflict).all()
    assert found.norm[0] == 0 and np.isfinite(found.distance).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**4), st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_the_weights_of_a_linear_merge_are_found(seed, weights):
    base, nets = _net(seed), [_net(seed + 1 + k) for k in range(5)]
    whole = merge.task_arithmetic(nets[1:4], base=base, weights=[*weights])
    found = ingredients(whole, nets, base)
    assert found.coefficient == pytest.approx([0, *weights, 0], abs=1e-4)
    if max(map(abs, weights)) > 0.01:
        assert found.residual < 1e-6


def test_an_average_has_its_ingredients_and_a_stranger_none():
    base, nets = _net(0), [_net(1 + k) for k in range(6)]
    found = ingredients(merge.average([nets[1], nets[4]]), nets, base)
    assert found.likeliest(2) == found.likeliest(2, by="cosine") == [1, 4]
    step = _flat(nets[2]) - _flat(base)
    other = ingredients(_net(99), nets[2:3], base)
    fit = np.linalg.lstsq(step[:, None], _flat(_net(99)) - _flat(base), rcond=None)
    assert other.coefficient == pytest.approx(fit[0])
    assert other.stderr == pytest.approx(np.sqrt(fit[1] / (len(step) - 1) / (step @ step)))
    assert other.residual == pytest.approx(float(1 - other.cosine[0] ** 2))


def test_candidates_that_are_the_same_share_what_is_theirs():
    base, a, b = _net(0), _net(1), _net(2)
    found = ingredients(a, [a, dict(a), b], base)
    assert found.coefficient == pytest.approx([0.5, 0.5, 0], abs=1e-6)


def test_what_cannot_be_compared_is_named():
    base = _net(0)
    with pytest.raises(ArgumentError, match="^models: found 1"):
        outlyingness([_net(1)], base)
    with pytest.raises(ArgumentError, match="^candidates: found none"):
        ingredients(_net(1), [], base)
    with pytest.raises(ArgumentError, match=r"^candidates\[0\]"):
        ingredients(_net(1), [{"w": torch.zeros(2)}], base)
    with pytest.raises(ArgumentError, match="^by: found 'norm'"):
        ingredients(_net(1), [_net(2)], base).likeliest(1, by="norm")
