"""Derived tasks: pure, seeded, and doing what they say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sokmerge.errors import ArgumentError
from sokmerge.testbed import data
from sokmerge.testbed.tasks import (
    ClassSplit,
    ColourCue,
    Corrupted,
    PatchCue,
    Poisoned,
    Rotated,
)

KINDS = ("gaussian_noise", "gaussian_blur", "contrast", "brightness")
seeds = st.integers(0, 2**31)
shares = st.floats(0, 1)

tasks = st.one_of(
    st.builds(ClassSplit, st.sets(st.integers(0, 9)).map(lambda chosen: tuple(sorted(chosen)))),
    st.builds(Rotated, st.floats(-360, 360)),
    st.builds(PatchCue, agreement=shares, shift=st.integers(0, 9), seed=seeds),
    st.builds(ColourCue, agreement=shares, shift=st.integers(0, 9), seed=seeds),
    st.builds(Poisoned, target=st.integers(0, 9), rate=shares, seed=seeds),
    st.builds(Corrupted, st.sampled_from(KINDS), severity=st.integers(1, 5), seed=seeds),
)


@pytest.fixture(scope="module")
def images():
    return data.fashion("test", limit=40)


@given(task=tasks)
@settings(max_examples=60, deadline=None)
def test_every_task_is_a_pure_seeded_function(images, task):
    x, y = images
    before = x.clone(), y.clone(), torch.get_rng_state()
    first, second = task(x, y), task(x, y)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
    assert first[0].dtype == torch.float32 and first[1].dtype == torch.int64
    assert len(first[0]) == len(first[1]) and first[0].isfinite().all()
    if len(first[0]):
        assert first[0].min() >= data.BLACK - 1e-4 and first[0].max() <= data.WHITE + 1e-4


@given(chosen=st.sets(st.integers(0, 9)))
def test_class_splits_partition_the_images(images, chosen):
    x, y = images
    rest = set(range(10)) - chosen
    parts = [ClassSplit(tuple(part))(x, y)[1] for part in (chosen, rest)]
    assert set(parts[0].tolist()) == chosen and sum(map(len, parts)) == len(y)


def test_turning_is_exact_by_quarters_and_continuous_between(images):
    x, y = images
    quarter = Rotated(90)(x, y)[0]
    assert torch.equal(quarter, torch.rot90(x, 1, dims=(2, 3)))
    assert torch.equal(Rotated(-270)(x, y)[0], quarter)
    assert torch.equal(Rotated(0)(x, y)[0], x)
    torch.testing.assert_close(Rotated(90 - 1e-4)(x, y)[0], quarter, atol=1e-2, rtol=0)
    there_and_back = Rotated(-20)(*Rotated(20)(x, y))[0]
    centre = (..., slice(10, 18), slice(10, 18))
    assert (there_and_back - x)[centre].abs().mean() < 0.5 * x[centre].std()


def test_a_patch_shows_the_class_it_says(images):
    x, y = images
    black = torch.full_like(x, data.BLACK)
    own, shifted = PatchCue()(black, y)[0], PatchCue(shift=1)(black, y)[0]
    patterns = {int(target): own[y == target] for target in y.unique()}
    assert all((p == p[0]).all() for p in patterns.values())
    assert len({tuple(p[0].flatten().tolist()) for p in patterns.values()}) == 10
    for target, pattern in patterns.items():
        assert torch.equal(shifted[y == (target - 1) % 10], pattern)
    assert torch.equal(PatchCue(agreement=0.0)(x, y)[1], y)


def test_a_worthless_cue_is_independent_of_the_class():
    y = torch.arange(10).repeat(1_000)
    black = torch.full((len(y), 1, 28, 28), data.BLACK)
    own = PatchCue()(black, y)[0]
    agreeing = {
        share: (PatchCue(agreement=share, seed=1)(black, y)[0] == own).flatten(1).all(1)
        for share in (0.0, 0.5)
    }
    assert agreeing[0.0].double().mean().item() == pytest.approx(0.1, abs=0.02)
    assert agreeing[0.5].double().mean().item() == pytest.approx(0.55, abs=0.02)


def test_colours_tell_classes_apart_and_keep_the_garment(images):
    x, y = images
    coloured, _ = ColourCue()(x, y)
    assert coloured.shape == (40, 3, 28, 28)
    torch.testing.assert_close(coloured.amax(dim=1, keepdim=True), x)
    mean = coloured.mean(dim=(2, 3))
    hues = {int(t): mean[y == t].sub(data.BLACK).argsort(dim=1).tolist() for t in y.unique()}
    assert all(rows.count(rows[0]) == len(rows) for rows in hues.values())
    with pytest.raises(ArgumentError, match=r"^inputs: found shape \(40, 3, 28, 28\)"):
        ColourCue()(coloured, y)


@given(rate=shares, target=st.integers(0, 9), seed=seeds)
def test_poison_changes_its_share_and_nothing_else(images, rate, target, seed):
    x, y = images
    poisoned, targets = Poisoned(target, rate, seed=seed)(x, y)
    relabelled = targets != y
    assert relabelled.sum() == round(rate * (y != target).sum().item())
    assert (targets[relabelled] == target).all()
    assert torch.equal(poisoned[~relabelled], x[~relabelled])
    assert (poisoned[relabelled][:, :, -4:-1, -4:-1] == data.WHITE).all()


@pytest.mark.parametrize("kind", KINDS)
def test_severity_grows(images, kind):
    x, y = images
    distance = [(Corrupted(kind, s)(x, y)[0] - x).square().mean().item() for s in range(1, 6)]
    assert distance == sorted(distance) and distance[0] > 0


def test_blur_keeps_a_flat_image_flat():
    flat = torch.full((1, 1, 28, 28), data.WHITE)
    blurred = Corrupted("gaussian_blur", 1)(flat, torch.zeros(1, dtype=torch.long))[0]
    torch.testing.assert_close(blurred[..., 4:-4, 4:-4], flat[..., 4:-4, 4:-4])


@pytest.mark.parametrize(
    ("task", "subject"),
    [
        (Poisoned(rate=1.5), "Poisoned.rate"),
        (PatchCue(agreement=-0.1), "agreement"),
        (Corrupted("rain"), "Corrupted.kind"),
        (Corrupted("contrast", severity=6), "Corrupted.severity"),
    ],
)
def test_a_wrong_number_is_named(images, task, subject):
    with pytest.raises(ArgumentError, match=f"^{subject}: found"):
        task(*images)
