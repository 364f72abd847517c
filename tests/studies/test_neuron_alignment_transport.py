"""How the results of the study are asked, on a small table, and what a plain average can do."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from sokmerge import studies
from sokmerge.reader import Estimate
from sokmerge.studies import neuron_alignment_transport as study


@pytest.fixture
def found():
    rows = []
    for seed in range(5):
        for method, value in (("average", 40.0 + seed), ("PFNM", 50.0 + 2 * seed)):
            rows.append((seed, "same task", method, "accuracy", value))
        for pair, step in (("same task", 0.1), ("other classes", 0.3 + 0.01 * seed)):
            for layer in (1, 2, 3):
                rows.append((seed, "depth", pair, f"correlation {layer}", 1 - layer * step))
    columns = ["seed", "part", "method", "measure", "value"]
    return study.Measured(pd.DataFrame(rows, columns=columns))


def test_gaps_are_taken_seed_by_seed(found):
    assert found.values("same task", "PFNM") == {seed: 50.0 + 2 * seed for seed in range(5)}
    gap = found.gap("same task", "PFNM", "average")
    expected = [10.0, 11.0, 12.0, 13.0, 14.0]
    label = "PFNM less average, same task"
    assert gap == Estimate.of(expected, label=label, unit="points")
    assert found.mean("same task", "average").mean == 42.0


def test_the_fall_is_held_against_its_control(found):
    assert found.fall("same task").mean == pytest.approx(0.2)
    assert found.excess_fall().mean == pytest.approx(0.44)


def test_every_claim_is_decided_by_the_results_that_are_shipped():
    told = [*study.claims(study.Measured(studies.results("neuron-alignment-transport")))]
    assert len({claim.id for claim in told}) == len(told) == 7
    assert all(test.estimate.n == 5 for claim in told for test in claim.tests)


def test_units_that_fit_are_kept_and_others_are_zero():
    a, b = {"w": torch.ones(3, 2)}, {"w": torch.full((2, 5), 2.0)}
    placed = study._first_units(a, b)
    assert placed["w"].tolist() == [[2, 2], [2, 2], [0, 0]]
    assert study._first_units(b, a)["w"].tolist() == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0]]
