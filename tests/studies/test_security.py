"""The study of security: its attacks, its groups, and what its table must hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from sokmerge import merge, params, studies
from sokmerge.probe import EmpiricalRisk
from sokmerge.probe.roc import auc
from sokmerge.studies import security
from sokmerge.studies.determinism import chosen
from sokmerge.studies.security import (
    ATTACKS,
    EPSILON,
    FEW,
    GROUPS,
    METHODS,
    MOST,
    POSITIONS,
    SCORES,
    SUSPICION,
    Backdoor,
    Scene,
    detection,
    for_the_merge,
    merged,
    pool,
    pooled,
    scaled,
    scores_of,
)
from sokmerge.testbed import data, models, zoo
from sokmerge.testbed.recipes import Recipe

SMALL = models.MLP(4, depth=1)


@pytest.fixture(scope="module")
def table():
    return studies.results("security")


@pytest.fixture(scope="module")
def scene():
    base, other = (params.of(models.build(SMALL, seed=k)) for k in (1, 2))
    return Scene(3, Recipe("example", SMALL, 0, 0), base, other)


def test_the_pool_holds_no_image_that_the_bases_were_trained_on():
    x, y = pool()
    known, _ = data.fashion("train", limit=zoo.family("broad")[0].limit)
    assert len(y) == 10_000
    rows = {image.numpy().tobytes() for image in known}
    # Fashion-MNIST has a few images twice.
    assert sum(image.numpy().tobytes() in rows for image in x) < 5


def test_a_backdoor_is_judged_on_marked_images_of_other_classes():
    module = models.build(SMALL)
    judge = Backdoor(module, 3, limit=100)
    assert judge.clean.n == 100 and judge.marked.n == 90
    constant = {k: torch.zeros_like(t) for k, t in params.of(module).items()}
    constant["head.bias"] = torch.nn.functional.one_hot(torch.tensor(3), 10).float()
    assert judge(constant) == pytest.approx({"attack": 100, "accuracy": 10})


def test_scaling_by_the_number_puts_the_whole_step_into_the_average():
    base, bad = (params.normal_like({"w": torch.zeros(9)}, k) for k in (0, 1))
    soup = merge.average([scaled(bad, base, 4), base, base, base])
    assert torch.allclose(soup["w"], bad["w"], atol=1e-5)


def test_every_method_of_equal_networks_steps_no_further_than_they():
    base, net = (params.normal_like({"w": torch.zeros(400)}, k) for k in (0, 1))
    for method in METHODS:
        point = merged(method, [net] * 3, base)
        length = float(params.distance(point, base) / params.distance(net, base))
        factor = {"average": 1, "task arithmetic": 2}.get(method)
        assert length == pytest.approx(factor) if factor else 0.5 < length < 1.6


def test_what_is_made_for_the_merge_acts_in_it_and_stays_nearer_if_it_is_pulled(scene):
    images = scene.share(0, 40)
    honest = params.lerp(scene.base, scene.start(0), 0.1)
    how = {"steps": 15, "lr": 0.02, "weight": 3.0, "key": "example"}
    args = scene.module, scene.base, honest, images, scene.target
    sly, kept = (for_the_merge(*args, **how, stay=stay) for stay in (0.0, 1.0))
    assert float(params.distance(kept, honest)) < 0.5 * float(params.distance(sly, honest))
    soup = [merge.average([net, scene.base]) for net in (honest, sly)]
    before, after = (scene.judge.marked(point).loss for point in soup)
    assert after < before


def test_seeds_of_a_scene_are_its_own(scene, monkeypatch):
    numbers = [scene.order(k) for k in range(700)]
    monkeypatch.setenv("SOKMERGE_MASTER_SEED", "1")
    other = Scene(3, scene.recipe, scene.base, scene.stranger)
    assert not {*numbers} & {other.order(k) for k in range(700)}
    first, second = (scene.share(k)[0] for k in (0, 1))
    assert len(first) + len(second) < len(scene.pool[1]) / 2


def test_scores_are_those_of_each_network(scene):
    x, y = data.fashion("test", limit=30)
    risk = EmpiricalRisk(scene.module, x, y)
    nets = [params.lerp(scene.base, scene.start(k), 0.1) for k in range(3)]
    found = scores_of(risk, nets, scene.base)
    assert set(found) == {*SCORES} == {*SUSPICION} and {*map(len, found.values())} == {3}
    assert found["loss"] == pytest.approx([risk(net).loss for net in nets])
    assert found["norm"] == pytest.approx([float(params.distance(n, scene.base)) for n in nets])


def test_detection_compares_within_groups_and_knows_the_direction():
    # In the first group the poisoned one, member 0, is longest; in the second in the middle.
    values = {0: (9.0, 1, 2, 3, 4), 1: (102.5, 101, 102, 103, 104)}
    rows = [
        {"seed": s, "part": "scores", "group": "same", "kind": "plain", "x": 10.0 * g + m,
         "measure": name, "value": SUSPICION[name] * v}
        for name in ("norm", "cosine") for s in range(2) for g, vs in values.items()
        for m, v in enumerate(vs)
    ]  # fmt: skip
    found = pd.DataFrame(rows)
    for name in ("norm", "cosine"):
        assert detection(found, name, "same", "plain") == pytest.approx([0.75, 0.75])
    bad, good = pooled(found, "norm", "same", "plain")
    assert bad.shape == (4,) and good.shape == (16,)
    first = torch.tensor(values[0], dtype=torch.float64)
    assert bad[:2].tolist() == pytest.approx([float((first[0] - first.mean()) / first.std())] * 2)


def test_every_seed_has_the_same_rows(table):
    columns = ["part", "group", "kind", "x", "measure"]
    sets = [set(map(tuple, part[columns].to_numpy().tolist())) for _, part in table.groupby("seed")]
    assert len(sets) == 5 and all(each == sets[0] for each in sets)


def test_every_part_is_whole(table):
    dilution = table[table.part == "dilution"]
    assert set(dilution.group) == {"none", *ATTACKS} and set(dilution.kind) == {"alone", *METHODS}
    for method in METHODS:
        found = chosen(table, "attack", "x", part="dilution", group="plain", kind=method)
        assert list(found.index) == list(range(1, MOST + 1))
    curve = table[(table.part == "repair") & (table.group == "curve")]
    assert set(curve.kind) == {*map(str, FEW)} and set(curve.x) == {*POSITIONS}
    scores = table[table.part == "scores"]
    assert set(scores.measure) == {*SCORES} and set(scores.group) == {"same", "mixed"}
    assert set(scores.x) == {10 * g + m for g in range(GROUPS) for m in range(5)}
    assert set(table[table.part == "provenance"].kind) == {"coefficient", "cosine"}


def test_measures_are_in_their_range_and_ends_agree(table):
    for measure in ("attack", "accuracy", "noise", "hits", "caught"):
        assert table[table.measure == measure].value.between(0, 100).all()
    assert table[table.measure == "auc"].value.between(0, 1).all()
    assert EPSILON < 0.5 and table.value.notna().all()
    for measure in ("attack", "accuracy"):
        ends = [chosen(table, measure, part="path", group=g, x=1) for g in ("line", "bezier")]
        alone = chosen(table, measure, part="dilution", group="plain", kind="average", x=1)
        assert ends[0] == ends[1] == pytest.approx(alone, abs=0.1)
    itself = chosen(table, "attack", part="vector", group="itself")
    assert np.min(itself) > 50  # the change that is carried over is a backdoor


def test_the_study_names_itself():
    assert security.STUDY.name == "security" and "security" in studies.names()


def test_what_is_said_rests_on_the_five_seeds(table):
    said = {**security.measured(table), **security.quotes(table[table.part == "vector"])}
    assert {estimate.n for estimate in said.values()} == {5}
    assert said["lost, average"].mean == pytest.approx(
        np.mean(
            [
                100 * (1 - (soup - floor) / (alone - floor))
                for soup, alone, floor in zip(
                    chosen(table, "attack", part="dilution", group="plain", kind="average", x=MOST),
                    chosen(table, "attack", part="dilution", group="plain", kind="alone", x=MOST),
                    chosen(table, "attack", part="dilution", group="none", kind="average", x=MOST),
                    strict=True,
                )
            ]
        )
    )
    # Two networks of each seed take the change; a seed counts once.
    where = {"part": "vector", "group": "other", "x": 1}
    assert said["vector-other-1-attack"].mean == pytest.approx(
        np.mean(chosen(table, "attack", **where))
    )


def test_drawings_show_what_the_table_holds(table):
    ax = Figure().subplots()
    security.draw_soups(ax, table)
    plain = chosen(table, "attack", "x", part="dilution", group="plain", kind="average")
    assert ax.containers[1].lines[0].get_ydata() == pytest.approx([np.mean(v) for v in plain])
    ax = Figure().subplots()
    security.draw_roc(ax, table, ["norm", "cosine"], "same", "plain")
    bad, good = pooled(table, "cosine", "same", "plain")
    assert ax.lines[1].get_label().startswith(f"cosine: {auc(bad, good).value:.2f}")
    assert len(bad) == 5 * GROUPS and len(good) == 4 * len(bad)
