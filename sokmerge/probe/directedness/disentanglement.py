r"""Whether two directions govern two kinds of inputs separately."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, combine, host, require_matching
from sokmerge.probe.risk import mean_and_stderr

__all__ = ["Disentanglement", "disentanglement"]


@dataclass(frozen=True)
class Disentanglement:
    r"""The disentanglement error on a grid of lengths.

    Attributes:
        alphas, betas: lengths along the first and the second direction, shapes (A,) and (B,).
        each: shape (2, A, B); of the inputs of each task, the share whose predicted class the
            other task's step changes.
        each_stderr: its standard error over the inputs.
        n: number of inputs of each task.
    """

    alphas: np.ndarray
    betas: np.ndarray
    each: np.ndarray
    each_stderr: np.ndarray
    n: tuple[int, int]

    @property
    def error(self) -> np.ndarray:
        r""":math:`\xi`, the sum over the two tasks, shape (A, B), in [0, 2]."""
        return self.each.sum(0)

    @property
    def stderr(self) -> np.ndarray:
        r"""The standard error of :math:`\xi`; the two sets of inputs are taken as independent."""
        return np.sqrt(np.square(self.each_stderr).sum(0))


@torch.no_grad()
def disentanglement(
    predict: Callable[[Params, Tensor], Tensor],
    base: Params,
    directions: Sequence[Params],
    inputs: Sequence[Tensor],
    *,
    alphas: Sequence[float],
    betas: Sequence[float] | None = None,
    chunk: int = 500,
) -> Disentanglement:
    r"""Return how far two task vectors meddle in one another's task.

    .. math:: \xi(\alpha_1,\alpha_2) = \sum_{t=1}^2 \mathbb E_{x\sim\mu_t}\,\mathbb 1\bigl[
              \hat y(x;\theta_0+\alpha_t\tau_t) \ne
              \hat y(x;\theta_0+\alpha_1\tau_1+\alpha_2\tau_2)\bigr]

    the **disentanglement error** of Ortiz-Jimenez et al. (2023), with the predicted class
    :math:`\hat y` and the inputs :math:`\mu_t` of task t. The term of a task is zero where
    the other's length is, and both are zero everywhere if each direction changes predictions on
    its own inputs alone. No labels enter.

    Args:
        predict: takes a point and inputs and returns class scores, shape (n, C): a
            :class:`~sokmerge.network.Network`, or its first-order model. If the network keeps
            BatchNorm statistics, they have to be estimated at the point, as by
            :meth:`Network.state <sokmerge.network.Network.state>`.
        base: :math:`\theta_0`.
        directions: :math:`\tau_1` and :math:`\tau_2`.
        inputs: those of the first task and those of the second.
        alphas: lengths along :math:`\tau_1`.
        betas: lengths along :math:`\tau_2`; by default as along the first.
        chunk: inputs in one forward pass.

    Raises:
        ArgumentError: not two directions and two sets of inputs, directions that do not match the
            base, or no lengths.

    >>> predict = lambda point, x: x * point["w"]  # two classes, two entries
    >>> ways = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
    >>> base, x = {"w": torch.tensor([1.0, 1.1])}, torch.eye(2)
    >>> disentanglement(predict, base, ways, (x[:1], x[1:]), alphas=[0.0, 1.0]).error.tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    betas = alphas if betas is None else betas
    if len(directions) != 2 or len(inputs) != 2 or not len(alphas) or not len(betas):
        raise ArgumentError(
            "directions",
            found=f"{len(directions)}, with {len(inputs)} sets of inputs",
            expected="two, with two sets of inputs and at least one length along each",
        )
    require_matching(base=base, first=directions[0], second=directions[1])

    def classes(task: int, *lengths: float) -> Tensor:
        point = combine([1.0, *lengths], [base, *directions])
        return torch.cat([predict(point, x).argmax(1) for x in inputs[task].split(chunk)])

    shape = (len(alphas), len(betas))
    each, spread = np.zeros((2, *shape)), np.zeros((2, *shape))
    alone = [[classes(0, a, 0.0) for a in alphas], [classes(1, 0.0, b) for b in betas]]
    for i, a in enumerate(alphas):
        for j, b in enumerate(betas):
            for task in (0, 1):
                differ = (classes(task, a, b) != alone[task][(i, j)[task]]).float()
                found = mean_and_stderr(differ)
                each[task, i, j], spread[task, i, j] = (float(host(t)) for t in found)
    numbers = (len(inputs[0]), len(inputs[1]))
    return Disentanglement(np.array(alphas), np.array(betas), each, spread, numbers)
