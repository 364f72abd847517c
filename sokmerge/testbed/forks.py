r"""Forks: stop a training run at a step, and go on from there in another order of images.

At step :math:`k` the run is in a state :math:`s_k`: parameters, momentum and the position in the
schedule of the rate. A fork is two runs from :math:`s_k` to the last step that differ in nothing
but the order of images (instability analysis, Frankle et al. 2020, arXiv:1912.05671).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.params import Params
from sokmerge.testbed import models, training
from sokmerge.testbed.loop import Run, State, one_thread
from sokmerge.testbed.recipes import Recipe

__all__ = ["State", "resume", "steps", "trajectory"]


def steps(recipe: Recipe) -> int:
    """Return the number of steps in a recipe's run.

    >>> steps(Recipe("example", models.MLP(width=8), seed=0, order_seed=0, limit=300, epochs=2))
    6
    """
    images = len(training.inputs_of(recipe, "train")[1])
    return recipe.epochs * math.ceil(images / recipe.batch)


def trajectory(
    recipe: Recipe,
    keep: Sequence[int],
    *,
    start: Params | None = None,
    inputs: Tensor | None = None,
    targets: Tensor | None = None,
    mask: Params | None = None,
) -> dict[int, State]:
    """Run a recipe from its beginning and return its states at some steps.

    The run ends at the last of the steps. At the last step of the recipe the parameters are those
    of :func:`sokmerge.testbed.training.fine_tune`, bit for bit, which are not rounded.

    Args:
        recipe: what to train; not one with an adapter.
        keep: numbers of steps done at which the state is kept. 0 is before the first step, and
            ``steps(recipe)`` after the last.
        start: parameters to start from, in place of the recipe's seeded initial weights.
        inputs: what to train on; the recipe's own training images by default.
        targets: their targets.
        mask: entries of parameters that are zero from the start on, where it is 0; and all
            others, where it is 1. Parameters that it leaves out are whole.

    Returns:
        The state at each of those steps.

    Raises:
        ArgumentError: a step outside the run, none at all, or a recipe with an adapter.

    >>> recipe = Recipe("example", models.MLP(width=8), seed=0, order_seed=0, limit=300, epochs=1)
    >>> sorted(trajectory(recipe, [0, 2]))
    [0, 2]
    """
    if not keep:
        raise ArgumentError("keep", found="no step", expected="at least one")
    module = models.build(recipe.arch, seed=recipe.seed)
    if start is not None:
        module.load_state_dict({**module.state_dict(), **start})
    with one_thread():
        run = _run(module, recipe, inputs, targets, recipe.order_seed)
        if mask is not None:
            _mask(run.module, mask)
        kept = {}
        for step in sorted(set(keep)):
            _go(run, step, mask)
            kept[step] = run.save()
    return kept


def resume(
    recipe: Recipe,
    state: State,
    *,
    order_seed: int,
    until: int | None = None,
    inputs: Tensor | None = None,
    targets: Tensor | None = None,
    mask: Params | None = None,
) -> dict[str, Tensor]:
    """Go on from a state of a recipe's run, and return the parameters where that leads.

    Momentum and rate go on from where they were. Within the epoch in which the state was kept,
    the steps that are left take the images that stand there in the new order, so that the child
    may see an image of this epoch twice and another not at all. With the order seed of the recipe
    itself the child is its parent, bit for bit.

    Args:
        recipe: the recipe of the run that was stopped.
        state: from :func:`trajectory`. Its parameters may have been changed since, as by
            ``dataclasses.replace(state, params=...)``; it is not changed here.
        order_seed: seed of the order of images from now on.
        until: the step to stop at; the recipe's last by default.
        inputs: what to train on; the recipe's own training images by default.
        targets: their targets.
        mask: as in :func:`trajectory`.

    Raises:
        ArgumentError: ``until`` lies before the state or past the last step.

    >>> recipe = Recipe("example", models.MLP(width=8), seed=0, order_seed=0, limit=300, epochs=1)
    >>> states = trajectory(recipe, [1, 3])
    >>> there = resume(recipe, states[1], order_seed=0)
    >>> torch.equal(there["head.bias"], states[3].params["head.bias"])
    True
    """
    module = models.build(recipe.arch)
    with one_thread():
        run = _run(module, recipe, inputs, targets, order_seed)
        run.load(state)
        if mask is not None:
            _mask(run.module, mask)
        _go(run, run.total if until is None else until, mask)
    return params.of(run.module)


def _run(
    module: nn.Module,
    recipe: Recipe,
    inputs: Tensor | None,
    targets: Tensor | None,
    order_seed: int,
) -> Run:
    if recipe.adapter is not None:
        raise ArgumentError(
            "recipe", found=f"the adapter {recipe.adapter!r}", expected="a recipe without one"
        )
    if inputs is None or targets is None:
        inputs, targets = training.inputs_of(recipe, "train")
    return Run(module.to(inputs.device), inputs, targets, recipe, order_seed=order_seed)


def _go(run: Run, step: int, mask: Params | None) -> None:
    # A weight that is put back to zero after each step has no part in any gradient but its own.
    run.to(step, (lambda done: _mask(run.module, mask)) if mask is not None else lambda done: None)


def _mask(module: nn.Module, mask: Params) -> None:
    """Set to zero, in place, the entries of parameters where a mask is zero."""
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if name in mask:
                tensor.mul_(mask[name])
