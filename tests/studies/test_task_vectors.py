"""The study of task vectors: its halves, its nulls, its measure, and the rules of its grid."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sokmerge import merge, params, studies
from sokmerge.probe import EmpiricalRisk
from sokmerge.studies import task_vectors
from sokmerge.studies.task_vectors import SCALES, TASKS, gain_kept, images, nulls


@pytest.fixture(scope="module")
def table():
    return studies.results("task-vectors")


def test_what_is_chosen_by_is_not_what_is_reported():
    halves = {half: images(None, half) for half in ("choose", "report")}
    for x, y in halves.values():
        assert len(x) == 2000 and torch.bincount(y).tolist() == [200] * 10
    seen = [{picture.numpy().tobytes() for picture in x} for x, _ in halves.values()]
    assert len(seen[0] & seen[1]) <= 2  # a few images are in the set twice


def test_a_null_is_as_long_as_its_vector_and_points_elsewhere():
    vector = params.normal_like({"w": torch.zeros(300, 200), "b": torch.zeros(200)}, seed=1)
    for step in nulls(vector, seed=0).values():
        for name, tensor in vector.items():
            torch.testing.assert_close(step[name].norm(), tensor.norm())
        assert abs(float(params.cosine(step, vector))) < 0.02
    shuffled = nulls(vector, seed=0)["shuffled"]["w"]
    assert torch.equal(shuffled.flatten().sort().values, vector["w"].flatten().sort().values)


def test_the_gain_kept_is_a_share_of_the_gain():
    """The base has no input right, the whole vector all, each of its columns half of them."""
    net = nn.Linear(2, 2, bias=False).eval()
    inputs, targets = torch.eye(2), torch.tensor([1, 1])
    risk = {"task": EmpiricalRisk(net, inputs, targets)}
    base = {"weight": torch.tensor([[0.1, 0.1], [0.0, 0.0]])}
    whole = {"weight": torch.tensor([[0.0, 0.0], [1.0, 1.0]])}
    half = {"weight": torch.tensor([[0.0, 0.0], [1.0, 0.0]])}
    for part, kept in ((whole, 100.0), (half, 50.0), (params.scale(whole, 0.0), 0.0)):
        assert gain_kept(risk, base, [whole], [part]) == pytest.approx(kept)


def test_every_merge_of_four_networks_has_results_for_every_seed_and_task(table):
    rows = table[table.part == "methods"]
    assert set(rows.method) - {"concrete with labels"} <= {d.name for d in merge.methods()}
    for _, found in rows.groupby("method"):
        assert set(zip(found.seed, found.task, strict=True)) == {
            (seed, task) for seed in range(5) for task in TASKS
        }


def test_no_scale_was_cut_off_by_the_grid(table):
    chosen = table[table.part.isin(["methods", "modules"]) & ~table.method.isin(["alone", "base"])]
    assert set(chosen.x) <= set(SCALES)
    assert (chosen.x < max(SCALES)).all() and (chosen[chosen.part == "methods"].x > SCALES[0]).all()


def test_the_study_names_itself():
    assert task_vectors.STUDY.name == "task-vectors" and "task-vectors" in studies.names()
