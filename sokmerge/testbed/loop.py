"""The training loop, one step at a time: it can be saved at any step and gone on with.

:mod:`sokmerge.testbed.training` runs it from end to end, :mod:`sokmerge.testbed.forks` stops it
on the way, and both give the same network, bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sokmerge.errors import ArgumentError
from sokmerge.testbed import models
from sokmerge.testbed.recipes import Recipe

__all__ = ["MOMENTUM", "Run", "State", "one_thread"]

MOMENTUM = 0.9


@dataclass(frozen=True)
class State:
    """All that decides how a run goes on, apart from its images and their order.

    Args:
        params: the module's state: parameters and, where there are any, buffers.
        optimizer: the optimizer's state, with momentum and the present rate.
        schedule: where the schedule of the rate stands.
        step: steps done.
    """

    params: dict[str, Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    step: int


class Run:
    """A training run of a module on given images, as a recipe says.

    Args:
        module: the network; it is trained in place and is in training mode from now on.
        inputs: shape (n, channels, 28, 28), on the device of the module.
        targets: shape (n,).
        recipe: optimizer, rate, schedule, batch and epochs.
        order_seed: seed of the order of images; the recipe's own by default.

    Attributes:
        step: steps done.
        total: steps in the whole run.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        recipe: Recipe,
        *,
        order_seed: int | None = None,
    ) -> None:
        if not isinstance(recipe.arch, models.MLP):
            module = module.to(memory_format=torch.channels_last)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        self.module, self.inputs, self.targets, self.recipe = module, inputs, targets, recipe
        self.optimizer = _optimizer(module, recipe)
        self.each_epoch = math.ceil(len(targets) / recipe.batch)
        self.scheduler = _scheduler(
            self.optimizer, recipe, (recipe.cycle or recipe.epochs) * self.each_epoch
        )
        self.order_seed = recipe.order_seed if order_seed is None else order_seed
        self.step, self.total = 0, recipe.epochs * self.each_epoch
        self.module.train()

    def to(self, step: int, after: Callable[[int], object] = lambda step: None) -> None:
        """Go on to a step, calling ``after`` with the number of steps done after each.

        Raises:
            ArgumentError: the step lies behind, or past the last one.
        """
        if not self.step <= step <= self.total:
            raise ArgumentError(
                "step", found=repr(step), expected=f"{self.step} to {self.total}, steps to come"
            )
        for rows in self._batches(step):
            self.descend(self.inputs[rows], self.targets[rows])
            self.scheduler.step()
            self.step += 1
            after(self.step)

    def descend(self, inputs: Tensor, targets: Tensor) -> None:
        """Take one step on a batch; a run that trains in another way does it here."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.module(inputs), targets).backward()
        self.optimizer.step()

    def save(self) -> State:
        """Return a copy of the state."""
        return State(
            {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()},
            copy.deepcopy(self.optimizer.state_dict()),
            copy.deepcopy(self.scheduler.state_dict()),
            self.step,
        )

    def load(self, state: State) -> None:
        """Take a state's place; the state itself is not changed by what follows."""
        self.module.load_state_dict(state.params)
        # The optimizer would write its momentum into the tensors that it is given.
        self.optimizer.load_state_dict(copy.deepcopy(state.optimizer))
        self.scheduler.load_state_dict(copy.deepcopy(state.schedule))
        self.step = state.step

    def _batches(self, until: int) -> Iterator[Tensor]:
        """Yield the rows of the batches from the present step on.

        One seed gives each epoch its order, whether or not the run was there for the epochs
        before: their orders are drawn and dropped.
        """
        generator = torch.Generator().manual_seed(self.order_seed)
        first, done = self.step, 0
        while done < until:
            order = torch.randperm(len(self.targets), generator=generator)
            for rows in order.to(self.inputs.device).split(self.recipe.batch):
                if first <= done < until:
                    yield rows
                done += 1


def _scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    return {
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        "cyclic": lambda: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, steps),
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
    }[recipe.schedule]()


def _optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters, decay = module.parameters(), recipe.weight_decay
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=recipe.lr, momentum=MOMENTUM, nesterov=True, weight_decay=decay, fused=True
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let one thread compute: sums that are split among threads differ in their last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
