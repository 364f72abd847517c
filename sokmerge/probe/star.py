r"""The centre of a star: one network with low loss on the lines to many others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, host, require_finite, require_matching

__all__ = ["Star", "star"]

Loss = Callable[[dict[str, Tensor], int], Tensor]


@dataclass(frozen=True)
class Star:
    """A trained centre, and how its training went.

    Attributes:
        centre: the parameters of the centre.
        losses: the loss at each step, at the random point and on the batch of that step, shape
            (steps,). What the loss of the centre and of its lines is has to be measured; these
            values are too noisy for that.
        ends: which of the given points each step was on the line to, shape (steps,).
        positions: and how far towards it, shape (steps,).
    """

    centre: Params
    losses: np.ndarray
    ends: np.ndarray
    positions: np.ndarray


def star(
    points: Sequence[Params],
    *,
    loss: Loss,
    start: Params | None = None,
    steps: int = 1000,
    lr: float = 1e-3,
    seed: int = 0,
) -> Star:
    r"""Train a network to have straight lines of low loss to all given ones.

    .. math:: \min_{\theta^*}\ \mathbb E_{j}\,\mathbb E_{t\sim U[0,1]}\;
              L\bigl((1-t)\,\theta^* + t\,\theta_j\bigr)

    A set with such a point is a star domain: it need not be convex, but all of it can be seen
    from the centre. Sonthalia et al. (2024) conjecture that solutions form one, modulo
    permutations of units; here the points are taken as they come, so that one may align them
    before. Each step draws one of them and one position, and takes a step of Adam, whose rate
    falls to zero by a cosine. The given points stay as they are.

    Whether the centre has lines of low loss to others as well is to be seen on points that were
    held out.

    Args:
        points: parameters of one architecture, at least one.
        loss: a differentiable function of parameters and of the number of the step, for instance
            the mean loss on that step's batch.
        start: where the centre starts; by default at the first point.
        steps: how many.
        lr: the first rate of Adam.
        seed: of the draws.

    Raises:
        ArgumentError: no points, points that do not match or are not finite, steps or a rate that
            cannot be used, or a centre that did not stay finite.

    >>> ends = [{"w": torch.tensor(p)} for p in ([1.0, 0.0], [0.0, 1.0])]
    >>> away = lambda theta, step: theta["w"].square().sum()  # lowest at the origin
    >>> found = star(ends, loss=away, steps=400, lr=0.05)
    >>> bool(found.centre["w"].norm() < 0.8), found.losses.shape
    (True, (400,))
    """
    if not points:
        raise ArgumentError("points", found="no points", expected="at least one")
    if steps < 1:
        raise ArgumentError("steps", found=f"{steps}", expected="at least one")
    if not 0 < lr < float("inf"):
        raise ArgumentError("lr", found=f"{lr}", expected="a positive, finite number")
    start = points[0] if start is None else start
    named = {"start": start} | {f"points[{i}]": point for i, point in enumerate(points)}
    require_matching(**named)
    require_finite(**named)
    free = {
        name: tensor.detach().clone().requires_grad_()
        for name, tensor in start.items()
        if tensor.is_floating_point()
    }
    optimizer = torch.optim.Adam(list(free.values()), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = np.random.default_rng([seed, len(points)])
    ends, positions = generator.integers(len(points), size=steps), generator.random(steps)
    losses = []
    for step, (end, t) in enumerate(zip(ends.tolist(), positions.tolist(), strict=True)):
        with torch.enable_grad():
            there = dict(start) | {
                name: (1 - t) * tensor + t * points[end][name] for name, tensor in free.items()
            }
            value = loss(there, step)
            grads = torch.autograd.grad(value, list(free.values()), materialize_grads=True)
        for tensor, grad in zip(free.values(), grads, strict=True):
            tensor.grad = grad
        optimizer.step()
        schedule.step()
        losses.append(value.detach())
    centre = dict(start) | {name: tensor.detach() for name, tensor in free.items()}
    require_finite(centre=centre)
    return Star(centre, host(torch.stack(losses)), ends, positions)
