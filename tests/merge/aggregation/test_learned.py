"""Coefficients found by gradient descent or by an evolution strategy."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from torch import nn

from sokmerge.errors import ArgumentError
from sokmerge.merge import adamerging, average, evolutionary, learned_soup, task_arithmetic
from sokmerge.merge.aggregation.coefficients import Blend, places


def _squared(target):
    return lambda params: sum((params[k] - target[k]).square().sum() for k in target)


def _two_layers(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (3, 2), "a.bias": (3,), "b.weight": (1, 3)}
    made = {k: torch.randn(s, generator=generator).to(dtype) for k, s in shapes.items()}
    return {**made, "steps": torch.tensor(seed)}


def test_a_layer_is_what_its_names_say():
    assert places(_two_layers(0), layerwise=True) == {"a.weight": 0, "a.bias": 0, "b.weight": 1}
    assert set(places(_two_layers(0), layerwise=False).values()) == {0}
    a, b = _two_layers(1), _two_layers(2)
    found = Blend([a, b], layerwise=True)(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert torch.equal(found["a.bias"], a["a.bias"])
    assert torch.equal(found["b.weight"], b["b.weight"])
    whole = Blend([a, b], base=_two_layers(3))(torch.tensor([[0.3], [0.7]]))
    by_hand = task_arithmetic([a, b], base=_two_layers(3), weights=[0.3, 0.7], scale=1.0)
    torch.testing.assert_close(whole["a.weight"], by_hand["a.weight"], rtol=0, atol=1e-6)


def test_a_learned_soup_finds_the_optimum_of_a_quadratic():
    models = [_two_layers(i) for i in (1, 2, 3)]
    shares = torch.tensor([0.6, 0.3, 0.1])
    target = Blend(models)(shares[:, None])
    target = {k: t for k, t in target.items() if t.is_floating_point()}
    found = learned_soup(models, loss=_squared(target), steps=250)
    assert float(_squared(target)(found)) < 1e-5
    assert found["steps"] is models[0]["steps"]


def test_layers_may_have_weights_of_their_own():
    models = [_two_layers(i) for i in (1, 2)]
    shares = torch.tensor([[0.9, 0.2], [0.1, 0.8]])
    target = Blend(models, layerwise=True)(shares)
    target = {k: t for k, t in target.items() if t.is_floating_point()}
    loss = _squared(target)
    fine = learned_soup(models, loss=loss, steps=250, layerwise=True)
    coarse = learned_soup(models, loss=loss, steps=250)
    assert float(loss(fine)) < 1e-5 < 0.1 < float(loss(coarse))


def test_a_learned_soup_starts_uniform_and_stays_in_the_hull():
    models = [{"w": torch.tensor([w])} for w in (1.0, 2.0, 6.0)]
    assert learned_soup(models, loss=_squared(models[0]), steps=0)["w"].item() == 3
    far = learned_soup(models, loss=_squared({"w": torch.tensor([100.0])}), steps=300)
    assert 5 < far["w"].item() <= 6
    copies = learned_soup([models[1]] * 3, loss=_squared(models[0]), steps=5)
    torch.testing.assert_close(copies["w"], models[1]["w"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_in_and_out(dtype):
    models = [{"w": torch.tensor([w], dtype=dtype)} for w in (0.0, 4.0)]
    found = learned_soup(
        models, loss=lambda params: (params["w"].float() - 1).square().sum(), steps=200
    )
    assert found["w"].dtype == dtype and found["w"].item() == pytest.approx(1, abs=0.02)
    evolved = evolutionary(models, score=lambda params: -abs(float(params["w"]) - 1), budget=60)
    assert evolved["w"].dtype == dtype and evolved["w"].item() == pytest.approx(1, abs=0.05)


class TestAdaMerging:
    """A linear classifier of two tasks, whose task vectors help with one feature each."""

    module = nn.Linear(2, 2, bias=False).eval()
    base = {"weight": torch.zeros(2, 2)}
    models = [
        {"weight": torch.tensor([[1.0, 0.0], [-1.0, 0.0]])},
        {"weight": torch.tensor([[0.0, 1.0], [0.0, -1.0]])},
    ]

    def test_without_a_step_it_is_task_arithmetic(self):
        x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        found = adamerging(
            self.models, base=self.base, module=self.module, inputs=[x], start=0.4, steps=0
        )
        expected = task_arithmetic(self.models, base=self.base, scale=0.4)
        torch.testing.assert_close(found["weight"], expected["weight"])

    def test_its_first_step_goes_down_the_gradient_of_the_entropy(self):
        x = torch.tensor([[1.0, 0.5], [2.0, 0.1]])

        def entropy(a, b):  # of two classes with logits z and -z
            z = a * x[:, 0] + b * x[:, 1]
            p = torch.sigmoid(2 * z)
            return -(p * p.log() + (1 - p) * (1 - p).log()).mean()

        at = [torch.tensor(0.3, requires_grad=True) for _ in range(2)]
        gradients = torch.autograd.grad(entropy(*at), at)
        found = adamerging(
            self.models, base=self.base, module=self.module, inputs=[x], steps=1, lr=0.01
        )["weight"]
        # Adam's first step has the length of the rate and the sign of the gradient.
        expected = [0.3 - 0.01 * float(g.sign()) for g in gradients]
        torch.testing.assert_close(found[0], torch.tensor(expected), rtol=0, atol=1e-5)

    def test_all_tasks_count_the_same_and_the_order_does_not_matter(self):
        few, many = torch.tensor([[1.0, -1.0]]), torch.tensor([[-0.5, 1.0]] * 7)
        options = {"base": self.base, "module": self.module, "steps": 20}
        first = adamerging(self.models, inputs=[few, many], **options)
        other = adamerging(self.models[::-1], inputs=[many[:1], few], **options)
        torch.testing.assert_close(first["weight"], other["weight"], rtol=0, atol=1e-5)

    def test_coefficients_stay_within_their_bounds(self):
        x = torch.tensor([[5.0, 5.0], [6.0, 4.0]])
        options = {"base": self.base, "module": self.module, "inputs": [x], "lr": 0.5, "steps": 9}
        found = adamerging(self.models, **options)
        assert found["weight"].abs().max() <= 1
        wide = adamerging(self.models, bounds=(-9.0, 9.0), **options)
        assert 1 < wide["weight"].abs().max() <= 9
        with pytest.raises(ArgumentError, match="start: found 0.3; expected within the bounds"):
            adamerging(self.models, bounds=(0.5, 1.0), **options)

    def test_statistics_of_batchnorm_are_estimated_where_it_stands(self):
        module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for p in module.parameters():
                nn.init.normal_(p)
            x = torch.randn(32, 2)
        base = {name: p.detach() for name, p in module.eval().named_parameters()}
        model = {name: p + 0.1 for name, p in base.items()}
        before = module[1].running_mean.clone()
        found = adamerging([model], base=base, module=module, inputs=[x], steps=3)
        assert found.keys() == base.keys() and torch.equal(module[1].running_mean, before)
        assert all(t.isfinite().all() and not t.requires_grad for t in found.values())

    def test_unusable_arguments_are_named(self):
        options = {"base": self.base, "module": self.module}
        x = torch.ones(2, 2)
        for inputs, told in (([], "no task"), ([x, x[:0]], "a task without inputs")):
            with pytest.raises(ArgumentError, match=f"inputs: found {told}"):
                adamerging(self.models, inputs=inputs, **options)
        with pytest.raises(ArgumentError, match="steps: found -1"):
            adamerging(self.models, inputs=[x], steps=-1, **options)
        with pytest.raises(ArgumentError, match=r"module: found outputs of shape \(1, 2, 2\)"):
            adamerging(self.models, inputs=[torch.ones(4, 2, 2)], **options)


def _near(goal):
    return lambda params: -float((params["w"] - goal).norm())


def test_evolution_improves_on_the_average_and_finds_the_optimum():
    models = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}]
    base, goal = {"w": torch.zeros(2)}, torch.tensor([0.9, -0.2])
    found = evolutionary(models, score=_near(goal), base=base, budget=300)
    torch.testing.assert_close(found["w"], goal, rtol=0, atol=0.01)
    # Without a base it moves on the line through the models alone.
    along = evolutionary(models, score=_near(goal), budget=200)
    assert float(along["w"].sum()) == pytest.approx(1, abs=1e-5)
    assert along["w"][0].item() == pytest.approx(1.05, abs=0.02)


def test_a_budget_is_kept_and_the_average_comes_first():
    models, asked = [_two_layers(1), _two_layers(2)], []

    def score(params):
        asked.append(params)
        return -float(params["a.weight"].square().sum())

    for budget in (1, 2, 17):
        asked.clear()
        found = evolutionary(models, score=score, base=_two_layers(3), budget=budget)
        assert len(asked) == budget
        mean = average(models)
        torch.testing.assert_close(asked[0]["a.weight"], mean["a.weight"], rtol=0, atol=1e-6)
        assert score(found) == max(score(a) for a in asked[:])
    assert found["steps"].item() == 3  # from the base


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    models = [_two_layers(1), _two_layers(2)]

    def run(seed):
        def score(params):
            return -float(params["b.weight"].square().sum())

        return evolutionary(models, score=score, base=_two_layers(3), budget=20, seed=seed)

    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = run(0)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert torch.equal(first["b.weight"], run(0)["b.weight"])
    assert not torch.equal(first["b.weight"], run(1)["b.weight"])


def test_evolution_with_one_coefficient():
    model = {"w": torch.tensor([2.0])}
    found = evolutionary(
        [model], base={"w": torch.zeros(1)}, score=_near(torch.tensor([3.0])), budget=60
    )
    assert found["w"].item() == pytest.approx(3, abs=0.05)


def test_what_evolution_cannot_use_is_named(monkeypatch):
    models = [_two_layers(1), _two_layers(2)]
    with pytest.raises(ArgumentError, match="score: found NaN"):
        evolutionary(models, score=lambda params: float("nan"))
    with pytest.raises(ArgumentError, match="budget: found 0"):
        evolutionary(models, score=lambda params: 0.0, budget=0)
    with pytest.raises(ArgumentError, match="spread: found 0"):
        evolutionary(models, score=lambda params: 0.0, spread=0)
    there = builtins.__import__

    def missing(name, *rest):
        if name == "cma":
            raise ImportError(name)
        return there(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ArgumentError, match="no package cma.*pip install cma"):
        evolutionary(models, score=lambda params: 0.0)
