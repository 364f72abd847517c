"""The adaptive barrier against a dense line, in evaluations, on networks of the zoo.

Not part of ``make test``. Run ``make bench``: it measures all and writes its section of
``book/benchmarks.md``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

from sokmerge import merge, symmetry
from sokmerge.probe import EmpiricalRisk, adaptive_barrier, barrier
from sokmerge.testbed import data, models, zoo

FAMILIES = {
    "MLP, width 16": "mlp-width-16",
    "MLP, width 64": "mlp-width-64",
    "MLP, width 256": "mlp-width-256",
    "CNN": "cnn",
}
PAIRS = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)]
WAYS = ("as trained", "matched by weights")
IMAGES = 1000
DENSE = 193  # every eighth of these is one of the usual 25
TOL = 0.02  # nats
USUAL = 25  # evaluations of a line by default


@dataclass(frozen=True)
class Row:
    """One pair: evaluations, the barrier of the dense line, and how far three others are off."""

    evaluations: int
    barrier: float
    off: float
    said: float
    usual_off: float


@dataclass
class Measured:
    """What the tests of this file find out, one after the other; the last one writes it down."""

    rows: dict[tuple[str, str], list[Row]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def measured() -> Measured:
    return Measured()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_within_its_tolerance_of_the_dense_line(measured, family):
    recipes = zoo.family(FAMILIES[family])
    modules, nets = zip(*map(zoo.load, recipes), strict=True)
    risk = EmpiricalRisk(modules[0], *data.fashion("test", limit=IMAGES))
    group = symmetry.chain(modules[0], models.chain(recipes[0].arch))
    for i, j in PAIRS:
        matched = group.act(merge.weight_matching(nets[i], nets[j], group).permutation, nets[j])
        for way, end in zip(WAYS, (nets[j], matched), strict=True):
            dense = barrier(risk, nets[i], end, DENSE)
            usual = dense.line.excess_loss[:: (DENSE - 1) // (USUAL - 1)].max()
            found = adaptive_barrier(risk, nets[i], end, tol=TOL)
            assert found.converged and abs(found.loss - dense.loss) <= TOL
            row = Row(
                found.evaluations,
                dense.loss,
                abs(found.loss - dense.loss),
                found.loss_uncertainty,
                abs(usual - dense.loss),
            )
            measured.rows.setdefault((family, way), []).append(row)


def test_it_takes_fewer_evaluations_and_the_page_says_so(measured, write_section):
    if len(measured.rows) != len(FAMILIES) * len(WAYS):
        pytest.skip("needs the other tests of this file")
    write_section("line", _section(measured))
    every = [row for rows in measured.rows.values() for row in rows]
    assert np.mean([row.evaluations for row in every]) < USUAL * 2 / 3
    matched = [row for (_, way), rows in measured.rows.items() if way == WAYS[1] for row in rows]
    assert Counter(row.evaluations for row in matched).most_common(1)[0][0] == 9


def _section(measured: Measured) -> str:
    def counted(rows):
        return ", ".join(
            f"{count} x {number}"
            for number, count in sorted(Counter(row.evaluations for row in rows).items())
        )

    def most(rows, what):
        return f"{max(getattr(row, what) for row in rows):.4f}"

    table = "\n".join(
        f"| {family}, {way} | {min(r.barrier for r in rows):.2f} to "
        f"{max(r.barrier for r in rows):.2f} | {counted(rows)} | {most(rows, 'off')} "
        f"| {most(rows, 'said')} | {most(rows, 'usual_off')} |"
        for (family, way), rows in measured.rows.items()
    )
    every = [row for rows in measured.rows.values() for row in rows]
    over = sum(row.off > row.said + 1e-4 for row in every)
    return f"""
## A barrier

How many evaluations does a barrier need?
Of {len(PAIRS)} pairs of networks of each family, as they were trained and after matching by
weights, the barrier of the loss on {IMAGES:,} test images was found by
`probe.adaptive_barrier(tol={TOL:g})` and on a line of {DENSE} points.
The second column holds the barriers in nats, the third how often which number of evaluations was
needed; the others hold the largest distance of a maximum from that of the {DENSE} points, for the
adaptive one, as it estimated it itself, and for {USUAL} equally spaced points.

| networks | barriers | evaluations | off by | uncertainty | off by, {USUAL} points |
|---|---:|---:|---:|---:|---:|
{table}

In the mean over all lines it took {np.mean([row.evaluations for row in every]):.1f} evaluations.
The distance was larger than the uncertainty on {over} of {len(every)} lines.
Low barriers need few evaluations; high ones have steep flanks, and narrow or unmatched networks
make them rough.
What evaluations show is no bound: see {{py:func}}`~sokmerge.probe.adaptive_barrier`.
"""
