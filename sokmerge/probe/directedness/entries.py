r"""What some of the entries of a direction are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, add, host, stream, wide
from sokmerge.probe.risk import EmpiricalRisk, mean_and_stderr

__all__ = ["Gains", "flip_signs", "gains"]

Which = Literal["largest", "smallest", "random"]


def flip_signs(
    vector: Params, share: float, *, which: Which = "largest", seed: int = 0
) -> dict[str, Tensor]:
    r"""Return a direction with the signs of some of its entries turned round.

    The vector keeps its length, and of each entry its magnitude: what changes is a matter of
    signs alone (a test of Yadav et al. 2023).

    Args:
        vector: a direction. Entries that are not floating point are left as they are.
        share: how many, from 0 to 1; of n entries round(share n).
        which: those of largest magnitude, of smallest, or drawn at random; magnitudes are ranked
            over all tensors together, and of equal ones the first come first.
        seed: of the random draw.

    Raises:
        ArgumentError: a share or a choice that is none of these.

    >>> flip_signs({"w": torch.tensor([1.0, -3.0, 2.0])}, 1 / 3)["w"]
    tensor([1., 3., 2.])
    """
    if not 0 <= share <= 1:
        raise ArgumentError("share", found=f"{share}", expected="a number in [0, 1]")
    if which not in get_args(Which):
        raise ArgumentError("which", found=repr(which), expected=f"one of {get_args(Which)}")
    names = [name for name, tensor in vector.items() if tensor.is_floating_point()]
    flat = torch.cat([vector[name].flatten() for name in names])
    if which == "random":
        drawn = torch.randperm(len(flat), generator=stream(f"flip:{seed}"))
        order = drawn.to(flat.device)
    else:
        order = flat.abs().argsort(stable=True, descending=which == "largest")
    signs = torch.ones_like(flat)
    signs[order[: round(share * len(flat))]] = -1
    parts = (flat * signs).split([vector[name].numel() for name in names])
    turned = {n: p.view_as(vector[n]) for n, p in zip(names, parts, strict=True)}
    return {name: turned.get(name, tensor) for name, tensor in vector.items()}


@dataclass(frozen=True)
class Gains:
    r"""What parts of a direction keep of its gain.

    Attributes:
        whole: what the whole direction takes off the risk.
        whole_stderr: its standard error.
        kept: the share that each part keeps; NaN if there is no gain.
        stderr: its standard error over the examples.
        n: number of examples.
    """

    whole: float
    whole_stderr: float
    kept: np.ndarray
    stderr: np.ndarray
    n: int


def gains(
    risk: EmpiricalRisk,
    base: Params,
    direction: Params,
    parts: Sequence[Params],
    *,
    measure: Literal["error", "loss"] = "error",
) -> Gains:
    r"""Return what a direction gains from a base, and how much of that each of its parts keeps.

    .. math:: G(v) = R(\theta_0) - R(\theta_0+v),\qquad k_i = \frac{G(v_i)}{G(v)}

    with R the error or the loss. Parts may be trimmed, thinned out, rescaled or flipped: any
    directions. All are judged on the same examples, and the standard error of the ratio is that
    of the paired differences :math:`g_i-k_i\,g`, over :math:`|G(v)|` (the delta method).

    Args:
        risk: network, data and loss.
        base: :math:`\theta_0`.
        direction: v, a task vector for instance.
        parts: :math:`v_i`.
        measure: R; the error needs class scores.

    Raises:
        ArgumentError: params that do not belong to the network or are not finite, or an unknown
            measure.

    >>> x, y = torch.tensor([[1.0], [1.0]]), torch.zeros(2, 1)
    >>> net = torch.nn.Linear(1, 1, bias=False).eval()
    >>> risk = EmpiricalRisk(net, x, y, loss=lambda f, y, reduction: (f - y).abs().sum(1))
    >>> base, v = {"weight": torch.tensor([[2.0]])}, {"weight": torch.tensor([[-2.0]])}
    >>> gains(risk, base, v, [{"weight": torch.tensor([[-1.0]])}], measure="loss").kept
    array([0.5])
    """
    if measure not in ("error", "loss"):
        raise ArgumentError("measure", found=repr(measure), expected="'error' or 'loss'")
    points = [add(base, step) for step in (direction, *parts)]
    risk.require_valid(base=base, **{f"points[{i}]": p for i, p in enumerate(points)})
    column = ("loss", "error").index(measure)
    before, *after = (wide(risk.per_example(p)[column]) for p in (base, *points))
    whole, *rest = (before - each for each in after)
    mean, stderr = mean_and_stderr(whole)
    kept, spread = [], []
    for each in rest:
        ratio = each.mean() / mean
        kept.append(ratio)
        spread.append(mean_and_stderr(each - ratio * whole)[1] / mean.abs())
    nothing = whole.new_zeros(0)
    return Gains(
        float(host(mean)),
        float(host(stderr)),
        host(torch.stack(kept) if kept else nothing),
        host(torch.stack(spread) if spread else nothing),
        risk.n,
    )
