"""Connectivity modulo permutation: its pieces against closed forms, and how its table is asked."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
import torch
from torch.func import functional_call

from sokmerge import merge, params, studies
from sokmerge.probe import EmpiricalRisk, line
from sokmerge.reader import Estimate
from sokmerge.studies import modulo_permutation as study
from sokmerge.testbed import models

SQUARE = (torch.arange(40).double() + 0.5) / 20 - 1  # the middles of a grid of cells


@pytest.fixture(scope="module")
def squares():
    """The network of two and two units, its loss on a grid, and B in all four orders."""
    net, a, b, group = study.counterexample()
    x = torch.cartesian_prod(SQUARE, SQUARE)
    target = -x[:, :1].relu() - (-x[:, 1:]).relu()
    risk = EmpiricalRisk(
        net, x, target, loss=lambda f, y, reduction: (f - y).square().mean(1), chunk=1600
    )
    orders = itertools.product(([0, 1], [1, 0]), repeat=2)
    ends = {
        order: group.act(dict(zip("02", map(torch.tensor, order), strict=True)), b)
        for order in map(tuple, (map(tuple, o) for o in orders))
    }
    return net, x, target, risk, a, ends


def test_both_ends_of_the_counterexample_are_the_same_function(squares):
    net, x, target, risk, a, ends = squares
    for point in (a, *ends.values()):
        torch.testing.assert_close(functional_call(net, dict(point), (x,)), target)
        assert risk(point).loss < 1e-30
    label = (x[:, 0] < 0) & (x[:, 1] > 0)
    assert torch.equal((target >= 0).flatten(), label)


def test_no_order_of_the_counterexample_is_connected(squares):
    """Half way the loss is 11/24 or 1/12, by hand; the grid has an error of its own."""
    *_, risk, a, ends = squares
    swap = (1, 0)
    for (first, _), end in ends.items():
        middle = line(risk, a, end, points=3).loss[1]
        assert middle == pytest.approx(1 / 12 if first == swap else 11 / 24, abs=1e-3)


def test_weight_matching_finds_the_best_order_of_the_counterexample():
    _, a, b, group = study.counterexample()
    found = merge.weight_matching(a, b, group).permutation
    assert [found[name].tolist() for name in "02"] == [[1, 0], [1, 0]]


def test_skewed_halves_are_disjoint_and_whole():
    targets = torch.arange(10).repeat_interleave(20)
    a, b = study.skewed(targets, seed=3)
    assert torch.equal(torch.cat([a, b]).sort().values, torch.arange(200))
    assert torch.bincount(targets[a]).tolist() == [16] * 5 + [4] * 5
    assert torch.bincount(targets[b]).tolist() == [4] * 5 + [16] * 5
    assert not torch.equal(a, study.skewed(targets, seed=4)[0])


def test_the_best_temperature_undoes_a_scale():
    logits = torch.randn(400, 5, generator=params.stream("tempered"))
    targets = torch.distributions.Categorical(logits=logits).probs.multinomial(
        1, generator=params.stream("drawn")
    )[:, 0]
    once, hot = (study.tempered(scale * logits, targets) for scale in (1.0, 3.0))
    torch.testing.assert_close(once, hot, rtol=0.03, atol=1e-6)
    plain = study.scores(3 * logits, targets)
    assert plain["tempered loss"] < plain["loss"]
    assert plain["error"] == study.scores(logits, targets)["error"]


def test_a_merge_of_no_layers_is_the_networks_and_of_all_layers_shares_them():
    bench = study.Bench(models.MLP(4, 2), seed=0, limit=3000)
    pair = [bench.start(which) for which in (0, 1)]
    for method in study.HOW:
        apart, whole = (study._tails(bench, pair, method, count) for count in (0, 2))
        x = bench.seen[:5]
        for tail, own in zip(apart, pair, strict=True):
            said = (functional_call(bench.module, dict(p), (x,)) for p in (tail, own))
            torch.testing.assert_close(*said)
        same = {name for name in whole[0] if torch.equal(whole[0][name], whole[1][name])}
        assert same == {name for name in whole[0] if not name.startswith("head")}


def test_a_shuffled_copy_is_the_same_function():
    bench = study.Bench(models.MLP(6, 2), seed=1, limit=3000)
    a = bench.start(0)
    said = (
        functional_call(bench.module, dict(p), (bench.seen[:5],)) for p in (a, bench.shuffled(a))
    )
    torch.testing.assert_close(*said)
    assert not torch.equal(a["hidden.0.weight"], bench.shuffled(a)["hidden.0.weight"])


@pytest.fixture
def found():
    rows = [
        {"seed": seed, **study.row("depth", "", depth, way, "test", "loss", height * (1 + seed))}
        for seed, depth, (way, height) in itertools.product(
            range(5), (1, 6), (("as trained", 2.0), ("weight matching", 0.5))
        )
    ]
    for (i, j), (way, height) in itertools.product(
        itertools.combinations(range(5), 2), (("matched, old", 4.0), ("matched", 1.0))
    ):
        value = height * (1 + i + j)
        told = study.row("repair", "residual", 10 * i + j, way, "test", "loss", value)
        rows.append({"seed": i, **told})
    return study.Measured(pd.DataFrame(rows))


def test_replicates_are_seeds_or_pairs(found):
    assert found.values("depth", "as trained", 6) == {s: 2.0 * (1 + s) for s in range(5)}
    pairs = found.values("repair", "matched", group="residual")
    assert pairs == {(i, j): 1.0 + i + j for i, j in itertools.combinations(range(5), 2)}
    mean = found.mean("repair", "matched", group="residual", label="x")
    assert mean == Estimate.of_pairs(pairs, label="x", unit="nats")


def test_what_is_compared_is_compared_replicate_by_replicate(found):
    first, second = ("depth", "as trained", 6), ("depth", "weight matching", 6)
    assert found.less(first, second, "gap") == Estimate.of(
        [1.5 * (1 + seed) for seed in range(5)], label="gap", unit="nats"
    )
    ratio = found.over(first, second, "ratio")
    assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((4.0, 4.0, 4.0))
    gone = found.removed("residual", "matched, old", "matched", "share", "test")
    assert (gone.mean, gone.low) == pytest.approx((0.75, 0.75))


def test_the_study_names_itself():
    assert study.STUDY.name == "modulo-permutation" and study.STUDY.name in studies.names()
