"""The band: its springs, its forces, and that it grows where it is too high."""

from __future__ import annotations

import math

import pytest
import torch

from sokmerge.errors import ArgumentError
from sokmerge.probe.connectivity import autoneb, nudge
from sokmerge.probe.connectivity.autoneb import even
from sokmerge.probe.curvature import Layout

LAYOUT = Layout({"w": torch.Size((2,))})
ENDS = [{"w": torch.tensor(p)} for p in ((1.0, 0.0), (-0.8, 0.6))]


def circle(point, step=0):
    return (point["w"].square().sum() - 1).square()


def test_pivots_are_set_at_equal_distances_on_the_same_chain():
    band = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 5.0]])
    found = even(band)
    torch.testing.assert_close(
        found, torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 3.0], [1.0, 5.0]])
    )


def test_a_force_has_no_part_along_the_band():
    """On a plane that falls along the band and across it, pivots move across alone."""

    def slope(point, step):
        return 5 * point["w"][0] + point["w"][1]

    band = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    found = nudge(band, slope, LAYOUT, steps=1, lr=0.1)
    torch.testing.assert_close(found[1], torch.tensor([1.0, -0.1]))
    assert torch.equal(found[::2], band[::2])


def test_the_tangent_points_to_the_higher_neighbour():
    """A bent band: only the leg on the higher side counts, so the force is across that leg."""

    def high_on_the_right(point, step):
        return 10 * point["w"][0] + point["w"][1]

    band = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.5, 0.5]])
    moved = nudge(band, high_on_the_right, LAYOUT, steps=1, lr=1e-3)[1] - band[1]
    # Across (1, 1) the gradient (10, 1) leaves (4.5, -4.5): Adam's first step is its sign.
    assert moved[0] < 0 < moved[1]


def test_a_band_finds_the_way_round_and_grows():
    looked = []

    def measure(point):
        looked.append(1)
        return float(circle(point))

    found = autoneb(*ENDS, loss=circle, measure=measure, cycles=3, steps=25, lr=0.1, most=3)
    straight = float(circle({"w": (ENDS[0]["w"] + ENDS[1]["w"]) / 2}))
    assert max(float(circle(found.curve(t / 20))) for t in range(21)) < straight / 3
    assert found.pivots[0] == 3 and found.pivots[-1] > 3 and max(found.pivots) <= 5
    assert found.gradients == sum(25 * (p - 2) for p in found.pivots)
    # Between cycles, each segment is looked at in three places, and each pivot once.
    assert len(looked) == sum(p + 3 * (p - 1) for p in found.pivots[:-1])
    steps = torch.stack([p["w"] for p in found.curve.points]).diff(dim=0).norm(dim=1)
    torch.testing.assert_close(steps, steps.mean().expand(len(steps)), rtol=1e-3, atol=0.0)


def test_no_more_pivots_where_the_line_is_low():
    found = autoneb(*ENDS, loss=lambda p, s: 0 * p["w"].sum(), measure=lambda p: 0.0, steps=2)
    assert found.pivots == (3, 3, 3) and found.curve.straightness() == pytest.approx(1)


@pytest.mark.parametrize(
    "change",
    [
        {"cycles": 0},
        {"pivots": 0},
        {"looks": 0},
        {"most": 0},
        {"threshold": -1.0},
        {"threshold": math.inf},
        {"steps": -1},
        {"lr": 0.0},
        {"b": {"w": torch.zeros(3)}},
    ],
)
def test_numbers_that_cannot_be_used(change):
    how = {"a": ENDS[0], "b": ENDS[1], "loss": circle, "measure": lambda p: 0.0, **change}
    with pytest.raises(ArgumentError):
        autoneb(**how)
