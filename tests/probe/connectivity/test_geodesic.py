"""Short paths and stars, where their lengths and angles are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sokmerge.errors import ArgumentError
from sokmerge.probe import EmpiricalRisk, barrier
from sokmerge.probe.connectivity import geodesic, spokes, via


@pytest.fixture(scope="module")
def risk():
    """Low where the product of two weights is near one: two branches of a hyperbola."""
    product = lambda f, y, reduction: (f.prod(1) - 1).square()  # noqa: E731
    net = nn.Linear(1, 2, bias=False).eval()
    return EmpiricalRisk(net, torch.ones(2, 1), torch.zeros(2, 2), loss=product)


def points(*pairs):
    return [{"weight": torch.tensor(p).view(2, 1)} for p in pairs]


def test_spokes_are_the_barriers_of_the_lines(risk):
    centre, *ends = points((1.0, 1.0), (4.0, 0.25), (-1.0, -1.0))
    found = spokes(risk, centre, ends, points=5)
    for spoke, end in zip(found.barriers, ends, strict=True):
        assert spoke.loss == barrier(risk, centre, end, points=5).loss
    assert found.worst == max(b.loss for b in found.barriers) == found.barriers[1].loss


def test_detours_and_angles_of_a_triangle_with_three_equal_sides(risk):
    high = math.sqrt(3) / 2
    centre, *ends = points((0.5, 0.5), (1.5, 0.5), (1.0, 0.5 + high))
    found = spokes(risk, centre, ends, points=2)
    assert found.detours == {(0, 1): pytest.approx(2, rel=1e-5)}
    assert found.angles[0][1] == pytest.approx(0.5, rel=1e-5)
    assert found.lengths == (pytest.approx(1), pytest.approx(1))


def test_a_star_has_more_than_one_spoke_and_no_spoke_of_length_zero(risk):
    centre, end = points((1.0, 1.0), (2.0, 0.5))
    for models in ([end], [end, centre]):
        with pytest.raises(ArgumentError):
            spokes(risk, centre, models)


def test_a_path_through_the_centre():
    path = via(*points((3.0, 0.0), (0.0, 0.0), (0.0, 4.0)))
    assert path.length() == 7 and path.straightness() == pytest.approx(7 / 5)
    torch.testing.assert_close(path(0.5)["weight"], torch.zeros(2, 1))


def test_the_stronger_the_pull_the_shorter_and_the_higher():
    ends = [{"w": torch.tensor(p)} for p in ((1.0, 0.0), (-0.8, 0.6))]

    def circle(p, step):
        return (p["w"].square().sum() - 1).square()

    paths = [geodesic(*ends, loss=circle, steps=60, bends=2, lr=0.1, pull=k) for k in (0.0, 5.0)]
    lengths = [path.straightness() for path in paths]
    heights = [max(float(circle(path(t / 10), 0)) for t in range(11)) for path in paths]
    assert lengths[0] > lengths[1] >= 1 and heights[0] < heights[1]
