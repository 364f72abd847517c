"""Masks that are learned: grafts and concrete subspaces, on losses whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import concrete, grafting, task_arithmetic
from sokmerge.merge.task_vectors import graft_mask

SIZE = 40


def _task(seed=0, useful=8):
    """A base, a model, and a loss for which the first entries of the task vector are what counts.

    The others moved further, but in a direction to which the loss is blind.
    """
    generator = torch.Generator().manual_seed(seed)
    tau = torch.randn(SIZE, generator=generator)
    tau = tau.sign() * (tau.abs() + 0.5)
    tau[useful:] *= 5
    base = {"w": torch.zeros(SIZE), "steps": torch.tensor(3)}
    model = {"w": tau, "steps": torch.tensor(4)}

    def loss(point):
        return (point["w"][:useful] - tau[:useful]).square().sum()

    return base, model, loss


def test_the_mask_finds_what_counts_and_not_what_moved_far():
    base, model, loss = _task()
    mask = graft_mask(model, base, loss, density=8 / SIZE)["w"]
    assert mask[:8].all() and not mask[8:].any()
    far = graft_mask(model, base, loss, density=8 / SIZE, steps=0)["w"]
    assert not far[:8].any()


def test_a_full_mask_is_the_model_and_an_empty_one_the_base():
    base, model, loss = _task()
    full = grafting([model], base=base, losses=[loss], density=1, steps=3).task(0)
    empty = grafting([model], base=base, losses=[loss], density=0).task(0)
    assert torch.equal(full["w"], model["w"]) and torch.equal(empty["w"], base["w"])
    assert full["steps"] is base["steps"]


def test_each_task_has_its_own_graft_of_the_density_asked_for():
    base, model, loss = _task()
    other_model = params.scale(model, -1.0)

    def other(point):
        return point["w"][-4:].abs().sum() + (point["w"][10:14] - other_model["w"][10:14]).norm()

    found = grafting([model, other_model], base=base, losses=[loss, other], density=0.1)
    for i, end in enumerate((model, other_model)):
        mask = found.masks[i]["w"]
        assert mask.dtype == torch.bool and int(mask.sum()) == 4
        assert torch.equal(found.task(i)["w"], torch.where(mask, end["w"], base["w"]))
    assert found.masks[1]["w"][10:14].all()
    with pytest.raises(ArgumentError, match="index: found 2; expected a task from 0 to 1"):
        found.task(2)


def test_learning_changes_neither_operands_nor_their_gradients():
    base, model, loss = _task()
    leaf = {**model, "w": model["w"].clone().requires_grad_()}
    before = {k: t.detach().clone() for k, t in model.items()}
    grafting([leaf], base=base, losses=[loss], steps=2)
    assert leaf["w"].grad is None and torch.equal(leaf["w"].detach(), before["w"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_keep_dtype_and_device(dtype, device):
    base, model, _ = _task()
    base, model = ({k: t.to(device) for k, t in p.items()} for p in (base, model))
    base, model = (params.to(p, dtype=dtype) for p in (base, model))

    def loss(point):
        return point["w"].float().square().sum()

    grafted = grafting([model], base=base, losses=[loss], steps=2).task(0)
    merged = concrete([model], base=base, loss=loss, seed=0, steps=2)
    for made in (grafted, merged):
        assert made["w"].dtype == dtype and made["w"].device == base["w"].device
        assert not made["w"].requires_grad


# --- concrete subspaces -----------------------------------------------------------------------


def _pull(point):
    return (point["w"][:4] - 3).square().sum() + point["w"][4:].square().sum()


def test_without_steps_it_is_task_arithmetic():
    base, models = {"w": torch.zeros(8)}, [{"w": torch.ones(8)}, {"w": torch.full((8,), 0.5)}]
    options = {"base": base, "scale": 0.7, "weights": [1, -2]}
    merged = concrete(models, loss=_pull, seed=0, steps=0, **options)
    torch.testing.assert_close(merged["w"], task_arithmetic(models, **options)["w"])


def test_the_mask_opens_where_the_loss_falls_and_keeps_the_length():
    base, models = {"w": torch.zeros(8)}, [{"w": torch.ones(8)}, {"w": torch.full((8,), 0.5)}]
    merged = concrete(models, base=base, loss=_pull, seed=0, steps=200)
    assert (merged["w"][:4] > 2.5).all() and (merged["w"][4:] < 0.5).all()
    # The mask has mean one, so the sum of equal entries stays.
    torch.testing.assert_close(merged["w"].sum(), torch.tensor(12.0))
    assert _pull(merged) < _pull(task_arithmetic(models, base=base)) / 5


def test_the_draws_are_fixed_by_the_seed_alone():
    base, model = (
        {"w": torch.zeros(8), "b": torch.zeros(3)},
        {"w": torch.ones(8), "b": torch.ones(3)},
    )
    first = concrete([model], base=base, loss=_pull, seed=1, steps=5)
    torch.manual_seed(99)
    turned = {k: base[k] for k in reversed(base)}
    again = concrete([model], base=turned, loss=_pull, seed=1, steps=5)
    other = concrete([model], base=base, loss=_pull, seed=2, steps=5)
    assert torch.equal(first["w"], again["w"]) and not torch.equal(first["w"], other["w"])
    halves = [{k: t / 2 for k, t in model.items()}, {k: t / 2 for k, t in model.items()}]
    whole = concrete(halves, base=base, loss=_pull, seed=1, steps=5)
    torch.testing.assert_close(whole, first)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 1.1}, r"density: found 1.1; expected a number in \[0, 1\]"),
        ({"penalty": -1.0}, "penalty: found -1.0"),
        ({"steps": 1.5}, "steps: found 1.5; expected a whole number"),
        ({"lr": 0.0}, "lr: found 0.0; expected a positive"),
        ({"losses": []}, "losses: found 0 losses for 1 models"),
        ({"losses": [lambda p: p["w"].sum() * math.nan], "steps": 2}, "logits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_grafting_refuses(options, message):
    base, model, loss = _task()
    with pytest.raises(ArgumentError, match=message):
        grafting([model], **{"base": base, "losses": [loss], **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: found 0.0"),
        ({"steps": -1}, "steps: found -1"),
        ({"lr": math.inf}, "lr: found inf"),
        ({"weights": [1, 2]}, "weights: found"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_concrete_refuses(options, message):
    base, model, loss = _task()
    with pytest.raises(ArgumentError, match=message):
        concrete([model], base=base, loss=loss, seed=0, **options)
