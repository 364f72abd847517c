r"""Gradient descent whose steps are projected onto a subspace, or off it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params
from sokmerge.probe.curvature.operator import Layout
from sokmerge.probe.directedness.subspace import share, split

__all__ = ["Descent", "projected_descent"]

Keep = Literal["all", "inside", "outside"]


@dataclass(frozen=True)
class Descent:
    r"""Where projected descent went, and how much of each gradient lay in the subspace.

    Attributes:
        steps: at which steps points were kept, 0 for the start.
        points: the parameters there.
        shares: of the gradient of every step, before it was projected, the share inside, shape
            (steps,); empty if nothing was projected.
        refreshed: how often the subspace was found anew.
    """

    steps: tuple[int, ...]
    points: tuple[dict[str, Tensor], ...]
    shares: np.ndarray
    refreshed: int


def projected_descent(
    start: Params,
    *,
    loss: Callable[[Params, int], Tensor],
    subspace: Callable[[Params], Tensor] | None = None,
    keep: Keep = "all",
    lr: float,
    steps: int,
    refresh: int = 1,
    at: Sequence[int] = (),
) -> Descent:
    r"""Descend along a part of the gradient.

    .. math:: \theta_{t+1} = \theta_t - \eta\,P\,\nabla\ell_t(\theta_t),\qquad
              P\in\{I,\;P_K,\;I-P_K\}

    with :math:`P_K` the projection onto a subspace of dimension K that moves along. With the
    top-K eigenvectors of the Hessian these are SGD, Dom-SGD and Bulk-SGD of Song et al. (2024).

    Args:
        start: where to start.
        loss: takes a point and the number of the step, and returns a loss that can be
            differentiated in the point; for SGD that of one batch.
        subspace: takes a point and returns orthonormal rows, shape (K, n), n entries in the order
            of the floating tensors of ``start``; not needed if all of the gradient is kept.
        keep: ``"all"``, ``"inside"`` for the part in the subspace, ``"outside"`` for the rest.
        lr: :math:`\eta`.
        steps: how many.
        refresh: the subspace is found anew after that many steps; 1 is exact, more is cheaper.
        at: steps at which the point is kept, besides the last one.

    Raises:
        ArgumentError: ``keep`` is none of these or has no subspace, or numbers that are not
            positive.

    >>> steep = lambda point, step: (50 * point["w"][0] ** 2 + point["w"][1] ** 2) / 2
    >>> top = lambda point: torch.tensor([[1.0, 0.0]])
    >>> how = {"loss": steep, "subspace": top, "lr": 0.1, "steps": 1}
    >>> projected_descent({"w": torch.ones(2)}, keep="outside", **how).points[-1]["w"]
    tensor([1.0000, 0.9000])
    """
    if keep not in get_args(Keep) or (keep != "all" and subspace is None):
        raise ArgumentError(
            "keep",
            found=repr(keep) + ("" if subspace else " without a subspace"),
            expected=f"one of {get_args(Keep)}, the last two with a subspace",
        )
    if lr <= 0 or steps < 1 or refresh < 1:
        raise ArgumentError(
            "lr", found=f"{lr}, {steps} steps, refresh {refresh}", expected="positive numbers"
        )
    layout = Layout({k: t.shape for k, t in start.items() if t.is_floating_point()})
    point = {name: tensor.detach().clone() for name, tensor in start.items()}
    kept, shares, basis, refreshed = {}, [], None, 0
    wanted = {*at, steps}
    for step in range(steps):
        if step in wanted:
            kept[step] = {name: tensor.clone() for name, tensor in point.items()}
        if keep != "all" and step % refresh == 0:
            basis, refreshed = subspace(point), refreshed + 1
        leaves = {k: t.detach().requires_grad_(k in layout.shapes) for k, t in point.items()}
        found = torch.autograd.grad(loss(leaves, step), [leaves[k] for k in layout.shapes])
        gradient = layout.flatten(dict(zip(layout.shapes, found, strict=True)))
        if basis is not None:
            shares.append(share(basis, gradient, [len(basis)]).values[0])
            inside, outside = split(gradient, basis)
            gradient = inside if keep == "inside" else outside
        moved = layout.unflatten(gradient)
        point = {k: t.detach() - lr * moved[k] if k in moved else t for k, t in point.items()}
    kept[steps] = point
    return Descent(tuple(kept), tuple(kept.values()), np.array(shares), refreshed)
