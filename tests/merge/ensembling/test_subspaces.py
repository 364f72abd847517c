"""Learned lines and simplexes, on quadratics with closed forms."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sokmerge import merge, params
from sokmerge.errors import ArgumentError
from sokmerge.merge.ensembling import simplex_volume

CENTRE = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def _bowl(point, step):
    return (point["w"] - CENTRE).square().sum()


def _at(*values):
    return {"w": torch.tensor(values, dtype=torch.float64)}


def test_a_line_in_a_bowl_shrinks_to_its_minimum():
    """E|p(a) - c|^2 = |middle - c|^2 + |end - end|^2 / 12: both terms vanish at the minimum."""
    ends = [_at(3.0, 0.0, 0.0), _at(-1.0, 1.0, 2.0)]
    line = merge.learned_line(ends, loss=_bowl, steps=1500, lr=0.02)
    for point in (*line.corners[0], line.middle()):
        torch.testing.assert_close(point["w"], CENTRE, rtol=0, atol=0.02)


def test_a_direction_without_loss_is_left_free():
    """Only the first coordinate counts: Adam leaves the others where they were."""
    ends = [_at(3.0, 5.0, 0.0), _at(-1.0, 1.0, 2.0)]
    line = merge.learned_line(ends, loss=lambda p, _: p["w"][0].square(), steps=800, lr=0.02)
    for end, before in zip(line.corners[0], ends, strict=True):
        assert abs(float(end["w"][0])) < 0.02
        torch.testing.assert_close(end["w"][1:], before["w"][1:], rtol=0, atol=0)


def test_the_second_term_turns_the_ends_apart():
    ends = [_at(1.0, 0.2, 0.0), _at(1.0, -0.2, 0.0)]

    def nothing(point, step):
        return 0 * point["w"].sum()

    line = merge.learned_line(ends, loss=nothing, steps=300, lr=0.02, beta=1.0)
    assert abs(float(params.cosine(*line.corners[0]))) < 0.05 < float(params.cosine(*ends))


def test_each_corner_gets_the_gradient_times_its_weight():
    """One step on a linear loss: Adam's first step is the sign of the gradient."""
    ends = [_at(0.0, 0.0, 0.0), _at(2.0, 2.0, 2.0)]
    seen = []

    def loss(point, step):
        seen.append((step, point["w"].detach().clone()))
        return (point["w"] * torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)).sum()

    line = merge.learned_line(ends, loss=loss, steps=1, lr=0.1)
    for end, before in zip(line.corners[0], ends, strict=True):
        moved = end["w"] - before["w"]
        torch.testing.assert_close(
            moved, torch.tensor([-0.1, 0.1, 0.0]).double(), atol=1e-6, rtol=0
        )
    ((step, point),) = seen
    assert step == 0 and 0 < float(point[0]) < 2 and float(point.std()) == pytest.approx(0)


def test_points_and_middles():
    line = merge.learned_line([_at(0.0, 0.0, 0.0), _at(4.0, 2.0, 0.0)], loss=_bowl, steps=0)
    torch.testing.assert_close(line.middle(), _at(2.0, 1.0, 0.0))
    torch.testing.assert_close(line.point([0.25, 0.75]), _at(3.0, 1.5, 0.0))
    few, more = line.sample(3, seed=1), line.sample(5, seed=1)
    torch.testing.assert_close(few, more[:3])
    for point in more:
        share = point["w"][0] / 4
        assert 0 <= share <= 1
        torch.testing.assert_close(point["w"], share * line.corners[0][1]["w"])
    many = torch.stack([p["w"][0] / 4 for p in line.sample(400, seed=0)])
    assert float(many.mean()) == pytest.approx(0.5, abs=0.05)  # uniform: 1/2 and 1/12
    assert float(many.var()) == pytest.approx(1 / 12, abs=0.015)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 3))
def test_volume_against_the_determinant(seed, size):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randn(size + 1, size, generator=generator, dtype=torch.float64)
    found = simplex_volume([{"w": c} for c in corners])
    wanted = torch.linalg.det(corners[1:] - corners[0]).abs() / math.factorial(size)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-12)


def test_a_simplex_grows_along_a_flat_direction_and_keeps_its_model():
    """Loss only across the first coordinate: a large volume is had along the others."""
    model = _at(0.0, 1.0, 1.0)
    found = merge.simplex(
        [model], loss=lambda p, _: 50 * p["w"][0].square(), corners=2, steps=200, lr=0.05,
        volume=0.1,
    )  # fmt: skip
    corners = found.corners[0]
    assert len(found.corners) == 1 and len(corners) == 3
    torch.testing.assert_close(corners[0], model, rtol=0, atol=0)
    small = merge.simplex(
        [model], loss=lambda p, _: 50 * p["w"][0].square(), corners=2, steps=200, lr=0.05, volume=0
    )
    assert simplex_volume(corners) > 10 * simplex_volume(small.corners[0])
    for point in found.sample(20, seed=0):
        assert abs(float(point["w"][0])) < 0.1


def test_simplexes_of_several_models_share_the_new_corners():
    models = [_at(0.0, 0.0, 1.0), _at(4.0, 0.0, 1.0)]
    found = merge.simplex(models, loss=_bowl, corners=1, steps=3, lr=0.01)
    first, second = found.corners
    assert first[0] is models[0] and second[0] is models[1] and first[1] is second[1]
    points = found.sample(2, seed=0)  # they take turns
    assert float(points[0]["w"][0]) < float(points[1]["w"][0])


def test_the_same_seed_gives_the_same_and_another_another():
    def grown(seed):
        return merge.simplex([_at(1.0, 2.0, 3.0)], loss=_bowl, corners=1, steps=2, seed=seed)

    first, again, other = (grown(seed).corners[0][1]["w"] for seed in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)


def test_counters_are_taken_along_and_half_precision_is_summed_in_more():
    models = [
        {"w": torch.full((3,), value, dtype=torch.bfloat16), "steps": torch.tensor(7)}
        for value in (1.0, 2.0)
    ]
    line = merge.learned_line(models, loss=lambda p, _: p["w"].square().sum(), steps=2)
    assert line.middle()["w"].dtype == torch.bfloat16 and line.middle()["steps"] == 7


def test_an_ensemble_of_points(club):
    c = club(0)
    line = merge.learned_line(c.models[:2], loss=_bowl, steps=0)
    predict = line.ensemble(4, module=c.module, seed=0)
    wanted = merge.probability_ensemble(line.sample(4, seed=0), module=c.module)
    assert predict.passes == 4
    torch.testing.assert_close(predict(c.inputs), wanted(c.inputs), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changed", "name"),
    [({"steps": -1}, "steps"), ({"lr": 0.0}, "lr"), ({"volume": -1.0}, "volume"),
     ({"corners": 0}, "corners"), ({"spread": 0.0}, "spread")],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(changed, name):
    with pytest.raises(ArgumentError, match=f"^{name}"):
        merge.simplex([_at(1.0, 2.0, 3.0)], loss=_bowl, **{"steps": 1, **changed})


def test_a_line_needs_two_ends_and_a_sound_weight():
    with pytest.raises(ArgumentError, match="^models"):
        merge.learned_line([_at(1.0)], loss=_bowl, steps=1)
    with pytest.raises(ArgumentError, match="^beta"):
        merge.learned_line([_at(1.0), _at(2.0)], loss=_bowl, steps=1, beta=math.inf)
