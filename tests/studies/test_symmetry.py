"""Merging with a derived symmetry: the pieces of the study, on networks too small to train."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
import torch

from sokmerge import merge
from sokmerge.studies import symmetry as study
from sokmerge.testbed import models

TINY = models.TinyViT(patch=14, width=4, depth=1, heads=2)
SMALL = models.ResidualCNN(norm="batch", channels=(4,))


@pytest.fixture(scope="module")
def benches():
    """One with few images for each way of correcting."""
    images = torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    few = images, torch.arange(16) % 10
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "images", lambda: (few, {"train": few, "test": few}))
        patch.setattr(study, "ORDERS", 2)
        yield {"residual-batch": study.Bench("residual-batch", SMALL),
               "vit": study.Bench("vit", TINY)}  # fmt: skip


def _states(arch):
    return [models.build(arch, seed).state_dict() for seed in (0, 1)]


@pytest.mark.parametrize(("family", "arch"), [("residual-batch", SMALL), ("vit", TINY)])
def test_what_is_corrected_is_what_one_call_makes(benches, family, arch):
    found, (a, b) = benches[family], _states(arch)
    whole = merge.aligned(
        found.module, [a, b], found.seen, group=found.group, orders=study.ORDERS
    )
    end = found.group.act(study.held(a, b, found.group), b)
    point = found.merged([a, end], corrected=True)
    assert point.keys() == whole.params.keys()
    assert all(torch.equal(whole.params[name], t) for name, t in point.items())


def test_a_pair_gives_a_row_of_each_kind(benches):
    a, b = _states(TINY)
    rows = list(benches["vit"].pair(0, 1, a, b))
    assert len({tuple(row) for row in rows}) == 1
    ways = [*study.PLACED, *(f"weights, {what} held" for what in study.HELD)]
    assert len(rows) == len(ways) + 4 * (2 * len(study.PLACED) + len(study.HELD))
    assert {row["method"] for row in rows} == set(ways)
    apart = {row["method"]: row["value"] for row in rows if row["measure"] == "distance"}
    assert apart["weights"] < apart["weights, all but hidden held"] < apart["as trained"]


def test_an_average_of_a_network_with_itself_has_no_excess(benches):
    (a, _), one = _states(SMALL), benches["residual-batch"]
    a = one.merged([a, a], corrected=True)  # statistics that belong to the parameters
    values = {(r["method"], r["repaired"], r["measure"]): r["value"] for r in one.pair(0, 1, a, a)}
    assert all(v == 0 for (_, _, measure), v in values.items() if measure == "distance")
    assert all(abs(v) < 1e-4 for (_, _, measure), v in values.items() if measure == "excess loss")


def test_what_is_held_keeps_its_order_and_the_rest_moves(benches):
    group, (a, b) = benches["vit"].group, _states(TINY)
    some, hidden = study.parts(group), {"layer.0.up"}
    assert set(some) == set(study.HELD)
    assert set(some["all but hidden"]) == set(group.by_name) - hidden
    assert some["stream"] == ("embed",) and len(some["heads"]) == 1 and len(some["attention"]) == 3
    for names in some.values():
        found = study.held(a, b, group, names)
        moved = {n for n, order in found.items() if (order != group.identity()[n]).any()}
        assert not moved & set(names) and hidden <= moved
        group.act(found, b)


def test_the_table_is_asked_pair_by_pair():
    rows = []
    for i, j in itertools.combinations(range(5), 2):
        base = i + j
        for method, how, split, measure, value in (
            ("as trained", "no", "test", "excess loss", base + 3.0),
            ("weights", "no", "test", "excess loss", base + 1.0),
            ("weights", "yes", "test", "excess loss", (base + 1.0) / 4),
            ("weights", "yes", "test", "excess error", 7.0),
            ("weights", "", "", "distance", 5.0),
        ):
            rows.append(
                {"seed": 0, "part": "vit", "i": i, "j": j, "method": method, "repaired": how,
                 "split": split, "measure": measure, "value": value}
            )  # fmt: skip
    found = study.Found(pd.DataFrame(rows))
    less = found.less("vit", "as trained", "weights")
    assert less.mean == pytest.approx(2) and less.n == 5
    assert less.label == "transformer: as trained less weights, test images"
    assert found.share_removed("vit", split="test").mean == pytest.approx(0.75)
    assert found.left("vit", "weights", "yes").mean == 7
    assert found.distance("vit", "weights").mean == 5
