r"""Single units put to the test: fixed at their mean, or given the weights of another network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, host, require_matching, wide
from sokmerge.probe.connectivity.layerwise import units_last
from sokmerge.probe.risk import EmpiricalRisk, mean_and_stderr, require_finite_loss

__all__ = ["UnitEffects", "mean_ablation", "transplant", "transplant_effects"]

Units = Sequence[int | Sequence[int]]


@dataclass(frozen=True)
class UnitEffects:
    """What an intervention on units does to the risk, one unit or set of units at a time.

    Attributes:
        layer: the layer that has the units.
        units: the units that were changed together, for each entry of the arrays.
        loss, loss_stderr: how much the mean loss rises, and the standard error of that, from the
            differences of each example.
        error, error_stderr: how much the share of wrong answers rises.
        n: number of examples.
    """

    layer: str
    units: tuple[tuple[int, ...], ...]
    loss: np.ndarray
    loss_stderr: np.ndarray
    error: np.ndarray
    error_stderr: np.ndarray
    n: int


def mean_ablation(
    risk: EmpiricalRisk,
    params: Params,
    layer: str,
    units: Units | None = None,
    *,
    at: Literal["output", "input"] = "output",
    reference: EmpiricalRisk | None = None,
) -> UnitEffects:
    r"""Fix units of a layer at their mean and measure how much the loss rises.

    .. math:: \Delta_j = \frac1n\sum_i\Bigl[
              \ell\bigl(f_\theta(x_i\mid h_j=\bar h_j),\,y_i\bigr)-\ell\bigl(f_\theta(x_i),y_i\bigr)
              \Bigr],\qquad \bar h_j=\frac1n\sum_i h_j(x_i)

    The mean runs over the places of a feature map, too. A unit that is fixed no longer tells one
    input from another, while what reads it sees the level that it is used to; set to zero, as in
    Morcos et al. (2018), it would also change that level. BatchNorm statistics stay those of the
    whole network.

    Args:
        risk: the risk to evaluate.
        params: the network.
        layer: name of the submodule whose units are fixed.
        units: units, or sets of units that are fixed together; by default each unit in turn.
        at: whether they are units of what the layer gives out or of what it is given.
        reference: examples over which the means are taken; by default those of ``risk``.

    Raises:
        ArgumentError: params that do not belong to the risk's network, a layer that it does not
            have, a unit that the layer does not have, or a loss that overflows.

    >>> net = nn.Linear(2, 1, bias=False).eval()
    >>> x = torch.tensor([[1.0, 2.0], [-1.0, 2.0]])
    >>> risk = EmpiricalRisk(net, x, x.sum(1, keepdim=True),
    ...                      loss=lambda f, y, reduction: (f - y).square().mean(1))
    >>> found = mean_ablation(risk, {"weight": torch.ones(1, 2)}, "", at="input")
    >>> found.loss  # the second unit never varies, so nothing rests on it
    array([1., 0.])
    """
    risk.require_valid(params=params)
    module = layer_of(risk, layer)
    means = _means(reference or risk, params, layer, at)
    chosen = _sets(units, len(means))
    axis = -1 if units_last(module) else 1
    masks = [_mask(group, len(means), means.device) for group in chosen]

    def fixed(features: Tensor, mask: Tensor) -> Tensor:
        shape = [1] * features.dim()
        shape[axis] = len(mask)
        return torch.where(mask.view(shape), means.to(features.dtype).view(shape), features)

    def per_example(mask: Tensor) -> tuple[Tensor, Tensor]:
        with changed(module, lambda features: fixed(features, mask), at):
            return risk.per_example(params)

    return _effects(risk, layer, chosen, risk.per_example(params), map(per_example, masks))


def transplant(
    receiver: Params, donor: Params, units: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    r"""Return the receiver with the incoming weights and biases of some units of the donor.

    The incoming weights of unit j of a layer are row j of ``<layer>.weight``, for a convolution
    its j-th filter. With :math:`\theta_0+\tau` and :math:`\theta_0` this adds, or undoes, the
    units' part of a task vector. Every weight belongs to one unit, so that all units together
    give the donor.

    Args:
        receiver: parameters of the network that is changed.
        donor: parameters of the network from which units are taken.
        units: name of a layer to its units.

    Raises:
        ArgumentError: the two do not match, or there is no such layer or unit.

    >>> receiver, donor = ({"up.weight": torch.full((2, 1), x)} for x in (0.0, 1.0))
    >>> transplant(receiver, donor, {"up": [1]})["up.weight"].flatten()
    tensor([0., 1.])
    """
    require_matching(receiver=receiver, donor=donor)
    moved = dict(receiver)
    for layer, chosen in units.items():
        weight = f"{layer}.weight" if layer else "weight"
        if weight not in receiver:
            raise ArgumentError(
                "units", found=f"layer {layer!r}", expected=f"layers with a parameter {weight!r}"
            )
        (group,) = _sets([list(chosen)], len(receiver[weight]))
        for name in (weight, weight.removesuffix("weight") + "bias"):
            if name in receiver:
                tensor = receiver[name]
                mask = _mask(group, len(tensor), tensor.device)
                mask = mask.view(-1, *[1] * (tensor.dim() - 1))
                moved[name] = torch.where(mask, donor[name], tensor)
    return moved


def transplant_effects(
    risk: EmpiricalRisk, receiver: Params, donor: Params, layer: str, units: Units | None = None
) -> UnitEffects:
    r"""Put units of a donor into a receiver, and measure how much the receiver's loss rises.

    Into the base from the tuned network, a fall says what a unit's part of the task vector
    achieves alone; into the tuned network from the base, a rise says what is lost without it.

    Args:
        risk: the risk to evaluate.
        receiver: parameters of the network that is changed.
        donor: parameters of the network from which units are taken.
        layer: name of the layer.
        units: units, or sets of units that are taken together; by default each unit in turn.

    Raises:
        ArgumentError: as :func:`transplant`, or a loss that overflows.

    >>> net = nn.Linear(1, 2, bias=False).eval()
    >>> risk = EmpiricalRisk(net, torch.ones(3, 1), torch.ones(3, 2),
    ...                      loss=lambda f, y, reduction: (f - y).square().sum(1))
    >>> base, tuned = ({"weight": torch.tensor(w)} for w in ([[0.0], [0.5]], [[1.0], [1.0]]))
    >>> transplant_effects(risk, base, tuned, "").loss
    array([-1.  , -0.25])
    """
    risk.require_valid(receiver=receiver, donor=donor)
    layer_of(risk, layer)
    weight = f"{layer}.weight" if layer else "weight"
    chosen = _sets(units, len(receiver[weight]) if weight in receiver else 0)
    found = (risk.per_example(transplant(receiver, donor, {layer: group})) for group in chosen)
    return _effects(risk, layer, chosen, risk.per_example(receiver), found)


@contextmanager
def changed(
    module: nn.Module,
    function: Callable[[Tensor], Tensor],
    at: Literal["output", "input"] = "output",
) -> Iterator[None]:
    """Let a module's output, or its input, be what a function makes of it.

    >>> net = nn.Identity()
    >>> with changed(net, lambda x: x + 1):
    ...     net(torch.zeros(2))
    tensor([1., 1.])
    """
    if at not in ("output", "input"):
        raise ArgumentError("at", found=repr(at), expected="'output' or 'input'")
    if at == "output":
        handle = module.register_forward_hook(lambda _, __, output: function(output))
    else:
        handle = module.register_forward_pre_hook(
            lambda _, arguments: (function(arguments[0]), *arguments[1:])
        )
    try:
        yield
    finally:
        handle.remove()


def layer_of(risk: EmpiricalRisk, layer: str) -> nn.Module:
    """Return a submodule of a risk's network by its name."""
    known = dict(risk.network.skeleton.named_modules())
    if layer not in known:
        raise ArgumentError(
            "layer", found=repr(layer), expected=f"a submodule of the network: {[*known][1:]}"
        )
    return known[layer]


def _means(risk: EmpiricalRisk, params: Params, layer: str, at: str) -> Tensor:
    """Return the mean of each unit over inputs and places."""
    module = layer_of(risk, layer)
    parts: list[Tensor] = []

    def keep(features: Tensor) -> Tensor:
        rows = features if units_last(module) else features.movedim(1, -1)
        parts.append(wide(rows).flatten(0, -2).mean(0) * len(features))
        return features

    with changed(module, keep, at):
        risk.per_example(params)
    if not parts:
        raise ArgumentError("layer", found=repr(layer), expected="a layer that is called in a pass")
    return torch.stack(parts).sum(0) / risk.n


def _sets(units: Units | None, size: int) -> tuple[tuple[int, ...], ...]:
    """Return sets of units, checked."""
    given = range(size) if units is None else units
    chosen = tuple((u,) if isinstance(u, int | np.integer) else tuple(u) for u in given)
    chosen = tuple(tuple(int(u) for u in group) for group in chosen)
    if not chosen or any(u not in range(size) for group in chosen for u in group):
        raise ArgumentError(
            "units", found=f"{chosen[:3]}", expected=f"units from 0 to {size - 1}, at least one"
        )
    return chosen


def _mask(group: Sequence[int], size: int, device: torch.device) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool, device=device)
    for unit in group:
        mask[unit] = True
    return mask


def _effects(
    risk: EmpiricalRisk,
    layer: str,
    chosen: tuple[tuple[int, ...], ...],
    before: tuple[Tensor, Tensor],
    after: Iterable[tuple[Tensor, Tensor]],
) -> UnitEffects:
    rows = []
    for losses, errors in after:
        rises = losses - before[0], errors - before[1]
        require_finite_loss(rises[0], "the changed network")
        rows.append(torch.stack([each for rise in rises for each in mean_and_stderr(rise)]))
    columns = host(torch.stack(rows)).T
    return UnitEffects(layer, chosen, *columns, n=risk.n)
