"""Gradient descent on whatever a method learns: masks, coefficients, routers, corners."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import require_finite

__all__ = ["Loss", "descend", "require_schedule"]

Loss = Callable[[dict[str, Tensor]], Tensor]
"""A differentiable function of parameters that returns a scalar."""


def require_schedule(steps: int, lr: float) -> None:
    """Raise unless a number of steps and a rate can be used.

    >>> require_schedule(-1, 0.1)
    Traceback (most recent call last):
    ...
    sokmerge.errors.ArgumentError: steps: found -1; expected a whole number, at least 0.
    """
    if not (isinstance(steps, int) and steps >= 0):
        raise ArgumentError("steps", found=f"{steps}", expected="a whole number, at least 0")
    if not 0 < lr < float("inf"):
        raise ArgumentError("lr", found=f"{lr}", expected="a positive, finite number")


def descend(
    start: Mapping[str, Tensor],
    objective: Callable[[dict[str, Tensor], int], Tensor],
    *,
    steps: int,
    lr: float,
) -> dict[str, Tensor]:
    """Return named tensors after some steps of Adam on an objective.

    Args:
        start: where to start; they are not changed.
        objective: a differentiable function of such tensors and of the number of the step.
        steps: how many steps.
        lr: the rate.

    Raises:
        ArgumentError: the tensors are no longer finite.

    >>> found = descend({"g": torch.zeros(2)}, lambda g, _: (g["g"] - 1).square().sum(),
    ...                 steps=200, lr=0.1)
    >>> bool((found["g"] - 1).abs().max() < 0.01)
    True
    """
    free = {name: tensor.detach().clone().requires_grad_() for name, tensor in start.items()}
    if free:
        optimizer = torch.optim.Adam(list(free.values()), lr=lr)
        for number in range(steps):
            with torch.enable_grad():
                value = objective(free, number)
                # A loss may leave tensors out: they stay.
                grads = torch.autograd.grad(value, list(free.values()), materialize_grads=True)
            for tensor, grad in zip(free.values(), grads, strict=True):
                tensor.grad = grad
            optimizer.step()
    found = {name: tensor.detach() for name, tensor in free.items()}
    if found:
        require_finite(logits=found)
    return found
