"""How the results of the study are asked, on a small table."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest

from sokmerge.reader import Estimate
from sokmerge.studies import neuron_alignment as study


def _table():
    rows = []
    for i, j in itertools.combinations(range(5), 2):
        for repaired, factor in (("no", 1.0), ("yes", 0.25)):
            for method, x in (("weights", 2.0 + i + j), ("annealing", 5.0 + i + 2 * j)):
                rows.append(
                    ("matchings", i, j, method, repaired, "train", "excess loss", factor * x)
                )
    for seed, count in itertools.product(range(5), (2, 3)):
        rows.append(
            ("many", count, 0, "pairwise", "no", "test", "excess loss", seed + 10.0 * count)
        )
    table = pd.DataFrame(
        rows,
        columns=["part", "i", "j", "method", "repaired", "split", "measure", "value"],
    )
    return table.assign(seed=[*([0] * 40), *(s for s in range(5) for _ in (2, 3))])


@pytest.fixture
def found():
    return study.Measured(_table())


def test_replicates_are_named_by_their_pair_or_by_their_seed(found):
    pairs = found.values("matchings", "weights")
    assert pairs == {(i, j): 2.0 + i + j for i, j in itertools.combinations(range(5), 2)}
    three = found.values("many", "pairwise", split="test", count=3)
    assert three == {seed: 30.0 + seed for seed in range(5)}
    with pytest.raises(KeyError):
        found.values("matchings", "no such method")


def test_estimates_know_what_is_independent(found):
    pairs, seeds = found.values("matchings", "weights"), {0: 1.0, 1: 2.0, 2: 4.0}
    assert study.estimate(pairs, label="x") == Estimate.of_pairs(pairs, label="x")
    assert study.estimate(seeds) == Estimate.of([1.0, 2.0, 4.0])


def test_gaps_are_taken_pair_by_pair(found):
    gap = found.gap("matchings", "annealing", "weights")
    expected = {(i, j): 3.0 + j for i, j in itertools.combinations(range(5), 2)}
    label = "annealing less weights, train images"
    assert gap == Estimate.of_pairs(expected, label=label, unit="nats")


def test_the_share_that_repair_removes(found):
    removed = found.removed("matchings", "share")
    assert (removed.mean, removed.low, removed.high) == pytest.approx((0.75, 0.75, 0.75))


def test_what_judges_was_not_seen():
    (seen, labels), judges = study.images()
    assert len(seen) == len(labels) == 1000
    assert {split: len(images) for split, (images, _) in judges.items()} == {
        "train": 2000,
        "test": 2000,
    }
    known = {image.numpy().tobytes() for image in judges["train"][0]}
    assert not known & {image.numpy().tobytes() for image in seen}
