"""The bake-off: every declared method enters, under rules that are the same for all."""

from __future__ import annotations

import pytest
import torch

from sokmerge import merge, params, studies
from sokmerge.probe import EmpiricalRisk
from sokmerge.studies import bake_off
from sokmerge.studies.bake_off import Outcome, Scene, judge
from sokmerge.testbed import situations


@pytest.fixture(scope="module", params=[1, 3], ids=["one start", "two starts"])
def scene(request):
    return Scene(situations.situation(situations.NAMES[request.param], 0))


def _bytes(image):
    return image.numpy().tobytes()


def test_every_declared_method_enters():
    assert set(bake_off.ENTRIES) == {declared.name for declared in merge.methods()}


def test_every_method_and_line_has_results_in_every_situation():
    table = studies.results("bake-off")
    assert set(table.situation) == set(situations.NAMES)
    only = {"tangent", "module_arithmetic"}  # their networks were tuned in another way
    for name, rows in table.groupby("method"):
        assert set(rows.seed) == set(range(5)), name
        assert name in only or len(rows) == 5 * len(situations.NAMES), name
    assert set(table.method) == {*bake_off.LINES, *bake_off.ENTRIES}


def test_a_network_is_judged_as_the_risk_judges_it(scene):
    risk = EmpiricalRisk(scene.module, *scene.test)(scene.models[0])
    told = judge(scene.at(scene.models[0]), scene)
    assert told["accuracy"] == pytest.approx(100 * risk.accuracy, abs=1e-6)
    assert told["loss"] == pytest.approx(risk.loss, rel=1e-5)


def test_what_knows_the_task_is_asked_for_its_own_images_alone(scene):
    sure = torch.eye(10)

    def knows(k):
        inputs, targets = scene.own_tests[k]
        answers = {_bytes(x): int(y) for x, y in zip(inputs, targets, strict=True)}
        return lambda x: 50 * sure[[answers[_bytes(each)] for each in x]]

    told = judge(Outcome((knows(0), knows(1))), scene)
    assert told["accuracy"] > 99.9  # a few images are in the set twice, with two classes
    assert told["calibration"] < 0.1


def test_the_base_is_the_common_start_or_that_of_the_first_network(scene):
    if scene.told.start is not None:
        assert scene.starts[0] is scene.starts[1] is scene.base
    else:
        assert scene.told.models[0].start is None
        assert params.distance(*scene.starts) > 1
    assert all(torch.equal(t, scene.starts[0][name]) for name, t in scene.base.items())


def test_the_step_is_chosen_on_the_examples(scene):
    made = {s: scene.score(merge.task_arithmetic(scene.models, base=scene.base, scale=s))
            for s in bake_off.GRID}  # fmt: skip
    assert scene.step == max(made, key=made.get)
    best = scene.best_step(merge.task_arithmetic)
    with torch.no_grad():
        x, y = scene.examples
        assert (best.predict(x).argmax(1) == y).double().mean() == pytest.approx(max(made.values()))


def test_no_test_image_is_an_example(scene):
    seen = {_bytes(x) for x in scene.examples[0]}
    assert len(scene.examples[1]) == 2 * bake_off.EXAMPLES
    assert not any(_bytes(x) in seen for x in scene.test[0])


def test_a_kind_of_network_that_the_zoo_lacks_has_no_row(scene):
    found = bake_off.ENTRIES["tangent"](scene)
    assert (found is None) == (scene.told.start is None)


@pytest.mark.parametrize("method", ["average", "ties", "weight_matching", "probability_ensemble"])
def test_a_row_can_be_measured_again(scene, method):
    table = studies.results("bake-off")
    at = (table.situation == scene.told.name) & (table.seed == 0) & (table.method == method)
    now = judge(bake_off.ENTRIES[method](scene), scene)
    assert now["accuracy"] == pytest.approx(table[at].accuracy.item(), abs=0.3)
    assert now["loss"] == pytest.approx(table[at].loss.item(), abs=0.02)
