"""Directions and frames."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.probe import filter_normalised, through

NET = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))
seeds = st.integers(0, 2**31)


def _point(seed, size=1.0):
    return params.scale(params.normal_like(params.of(NET), seed), size)


@given(seeds, seeds, seeds, st.sampled_from([1e-2, 1.0, 1e2]))
def test_the_coordinates_are_those_of_the_points(a, b, c, size):
    if len({a, b, c}) < 3:
        return
    points = [_point(s, size) for s in (a, b, c)]
    frame = through(*points)
    for point, (x, y) in zip(points, frame.coordinates, strict=True):
        there = params.combine([1, x, y], [frame.origin, frame.u, frame.v])
        assert float(params.distance(there, point)) <= 1e-5 * float(params.norm(point))
    assert float(params.norm(frame.u)) == pytest.approx(1, abs=1e-6)
    assert float(params.norm(frame.v)) == pytest.approx(1, abs=1e-6)
    assert float(params.inner(frame.u, frame.v)) == pytest.approx(0, abs=1e-6)
    assert frame.coordinates[0].tolist() == [0, 0] and frame.coordinates[1, 1] == 0
    assert frame.coordinates[2, 1] > 0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        flat = np.linalg.norm(frame.coordinates[i] - frame.coordinates[j])
        assert flat == pytest.approx(float(params.distance(points[i], points[j])), rel=1e-5)


def test_spans_cover_the_points_with_a_margin():
    corners = [{"w": torch.tensor(p)} for p in ([0.0, 0.0], [4.0, 0.0], [-1.0, 2.0])]
    along_u, along_v = through(*corners).spans(steps=7, margin=0.5)
    assert (len(along_u), len(along_v)) == (7, 7)
    np.testing.assert_allclose(along_u[[0, -1]], [-3.5, 6.5])
    np.testing.assert_allclose(along_v[[0, -1]], [-1, 3])


@pytest.mark.parametrize(
    ("b", "c", "message"),
    [
        ([0.0, 0.0], [1.0, 1.0], "b: found the same point as a; expected three points that span"),
        ([1.0, 0.0], [3.0, 0.0], "c: found a point on the line through a and b"),
        ([1.0, 0.0], [-2.0, 1e-8], "c: found a point on the line"),
        ([1.0, 0.0], [0.0, 0.0], "c: found a point on the line"),
    ],
)
def test_points_that_span_no_plane_are_named(b, c, message):
    points = [{"w": torch.tensor(p)} for p in ([0.0, 0.0], b, c)]
    with pytest.raises(ArgumentError, match=message):
        through(*points)


def test_points_that_do_not_match_or_are_not_finite_are_named():
    a = _point(0)
    with pytest.raises(ArgumentError, match=r"c\['1.bias'\]: found shape \(4,\)"):
        through(a, a, {**a, "1.bias": torch.zeros(4)})
    with pytest.raises(ArgumentError, match=r"b\['1.bias'\]: found 3 of 3 entries NaN"):
        through(a, {**a, "1.bias": torch.full((3,), math.nan)}, a)


@given(seed=seeds, point=seeds)
@settings(max_examples=20)
def test_every_filter_has_the_norm_of_the_networks(seed, point):
    point = _point(point)
    direction = filter_normalised(point, seed)
    for name, tensor in point.items():
        if tensor.dim() > 1:
            torch.testing.assert_close(
                direction[name].flatten(1).norm(dim=1), tensor.flatten(1).norm(dim=1)
            )
        else:
            assert not bool(direction[name].any())


def test_the_direction_follows_a_filter_that_is_scaled_and_nothing_else():
    point = _point(0)
    scaled = {k: t.clone() for k, t in point.items()}
    scaled["0.weight"][1] *= 8
    before, after = filter_normalised(point, 3), filter_normalised(scaled, 3)
    torch.testing.assert_close(after["0.weight"][1], 8 * before["0.weight"][1])
    assert torch.equal(after["0.weight"][0], before["0.weight"][0])
    assert torch.equal(after["3.weight"], before["3.weight"])


def test_it_is_seeded_and_pure(device):
    point = params.to(_point(0), device=device)
    before = {k: t.clone() for k, t in point.items()}
    first, again, other = (filter_normalised(point, seed) for seed in (1, 1, 2))
    assert torch.equal(first["0.weight"], again["0.weight"])
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert all(torch.equal(point[k], before[k]) for k in point)
    assert first["0.weight"].device == point["0.weight"].device


def test_a_filter_of_zeros_stays_and_counters_are_passed_on():
    point = {"w": torch.tensor([[0.0, 0.0], [3.0, 4.0]]), "steps": torch.tensor(3)}
    direction = filter_normalised(point, 0)
    assert direction["w"][0].tolist() == [0, 0]
    assert float(direction["w"][1].norm()) == pytest.approx(5)


def test_a_direction_is_not_made_from_what_is_not_finite():
    with pytest.raises(ArgumentError, match=r"params\['w'\]: found 1 of 4 entries"):
        filter_normalised({"w": torch.tensor([[math.inf, 0], [0, 0]])}, 0)
