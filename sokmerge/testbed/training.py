"""Training: from a recipe to a network, the same one each time on one machine.

Nothing global decides the result or is changed by it: initial weights and the order of images
come from generators of their own, and one thread computes, because sums that are split among
threads differ in their last digits. Another processor rounds otherwise, and since training is
chaotic it arrives at another network; that is why checkpoints ship.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.params import Params
from sokmerge.testbed import data, models
from sokmerge.testbed.fullset import Split
from sokmerge.testbed.loop import Run, one_thread
from sokmerge.testbed.recipes import Recipe

__all__ = ["Score", "Trained", "fine_tune", "inputs_of", "round_to_half", "score", "train"]


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy and accuracy of a network on ``n`` images."""

    loss: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Trained:
    """A trained network: its state, on the CPU and rounded to fp16, and how well it does."""

    state: dict[str, Tensor]
    train: Score
    test: Score


def train(
    recipe: Recipe,
    *,
    start: Params | None = None,
    device: torch.device | str = "cpu",
    each_epoch: Callable[[int], object] = lambda epoch: None,
) -> Trained:
    """Train the network of a recipe, round it to fp16 and score what was rounded.

    Args:
        recipe: what to train.
        start: the state of the network of ``recipe.start``, if the recipe has a start.
        device: where to train.
        each_epoch: called with the number of epochs done, after each one.

    Raises:
        ArgumentError: training has diverged, to a loss or weight that is not finite.
    """
    inputs, targets = (tensor.to(device) for tensor in inputs_of(recipe, "train"))
    if inputs.shape[1] != recipe.arch.in_channels:
        raise ArgumentError(
            "recipe.arch.in_channels",
            found=str(recipe.arch.in_channels),
            expected=f"{inputs.shape[1]}, the channels of the recipe's images",
        )
    module = _beginning(recipe, start).to(device)
    saved = recipe.adapter.state if recipe.adapter else nn.Module.state_dict
    with one_thread():
        _optimise(module, inputs, targets, recipe, each_epoch)
        module.load_state_dict(round_to_half(module.state_dict()))
        state = {name: t.cpu().contiguous() for name, t in saved(module).items()}
        diverged = [name for name, t in state.items() if not t.isfinite().all()]
        if diverged:
            raise ArgumentError(
                f"recipe {recipe.name}",
                found=f"values that are not finite in {diverged[0]} after training",
                expected="a learning rate at which training converges",
            )
        test = (tensor.to(device) for tensor in inputs_of(recipe, "test"))
        return Trained(state, score(module, inputs, targets), score(module, *test))


def fine_tune(
    recipe: Recipe,
    start: Params,
    inputs: Tensor | None = None,
    targets: Tensor | None = None,
    *,
    each_epoch: Callable[[int, dict[str, Tensor]], object] = lambda epoch, params: None,
) -> dict[str, Tensor]:
    """Go on from given parameters as a recipe says, and return where that leads, not rounded.

    Architecture, rate, schedule, batch, epochs and order of images are the recipe's; its start
    and its seed of initial weights are not used.

    Args:
        recipe: how to train.
        start: the parameters to start from; they are not changed.
        inputs: what to train on; the recipe's own training images by default.
        targets: their targets.
        each_epoch: called after each epoch with its number and a copy of the parameters.
    """
    if inputs is None or targets is None:
        inputs, targets = inputs_of(recipe, "train")
    module = models.build(recipe.arch)
    module.load_state_dict(dict(start))
    module.to(inputs.device)
    with one_thread():
        _optimise(
            module, inputs, targets, recipe, lambda epoch: each_epoch(epoch, params.of(module))
        )
    return params.of(module)


def inputs_of(recipe: Recipe, split: Split) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of a recipe; its ``limit`` holds for training alone."""
    limit = recipe.limit if split == "train" else None
    inputs, targets = data.fashion(split, scale=recipe.scale, limit=limit)
    for task in recipe.tasks:
        inputs, targets = task(inputs, targets)
    return inputs, targets


def score(module: nn.Module, inputs: Tensor, targets: Tensor, *, chunk: int = 1000) -> Score:
    """Return mean cross-entropy and accuracy of a module in eval mode.

    >>> module = models.build(models.MLP(width=4))
    >>> score(module, torch.zeros(2, 1, 28, 28), torch.tensor([0, 1])).n
    2
    """
    loss, hits = 0.0, 0
    with torch.inference_mode():
        for x, y in zip(inputs.split(chunk), targets.split(chunk), strict=True):
            logits = module(x)
            loss += F.cross_entropy(logits, y, reduction="sum").item()
            hits += (logits.argmax(dim=1) == y).sum().item()
    return Score(loss / len(targets), hits / len(targets), len(targets))


def round_to_half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Round floating-point tensors to fp16 and give them back in float32; leave counters alone.

    >>> round_to_half({"w": torch.tensor([1 / 3])})["w"]
    tensor([0.3333])
    """
    return {
        name: tensor.half().float() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def _beginning(recipe: Recipe, start: Params | None) -> nn.Module:
    """Return the network as it is before the first step, in training mode."""
    if (start is None) != (recipe.start is None):
        raise ArgumentError(
            "start",
            found="nothing" if start is None else "a state",
            expected=f"the state of {recipe.start.name}" if recipe.start else "None: it has none",
        )
    module = models.build(recipe.arch, seed=recipe.seed)
    if start is not None:
        module.load_state_dict(dict(start))
    return recipe.adapter.adapt(module, recipe.seed) if recipe.adapter else module


def _optimise(
    module: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    recipe: Recipe,
    each_epoch: Callable[[int], object],
) -> None:
    run = Run(module, inputs, targets, recipe)
    for epoch in range(1, recipe.epochs + 1):
        run.to(epoch * run.each_epoch)
        each_epoch(epoch)
    module.eval()
