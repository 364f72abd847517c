r"""PLeaS: match some of the units, keep the others, and fit the layers by least squares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.alignment.activations import require_examples, require_sites, watched
from sokmerge.merge.alignment.mapping import membership, moments, reads
from sokmerge.merge.alignment.matching import assign
from sokmerge.merge.operands import require_models
from sokmerge.merge.taxonomy import method
from sokmerge.network import Network
from sokmerge.params import Params, has_values, host, wide
from sokmerge.symmetry import PermutationGroup

__all__ = ["pleas"]


@method(
    branch="neuron alignment",
    paper="nasery2024pleas",
    needs=("symmetry", "inputs"),
    scope="layer",
    equation=r"W^*=\arg\min_W\bigl\lVert \hat Z_{\ell-1}W^\top-\hat Y_\ell\bigr\rVert^2,\quad "
    r"\hat Z=\tfrac12(Z_A+P Z_B)\text{ where matched}",
    ties="as SciPy's linear_sum_assignment breaks them; of equal pairs the first",
)
def pleas(
    module: nn.Module,
    models: Sequence[Params],
    group: PermutationGroup,
    inputs: Tensor,
    *,
    width: float = 1.0,
    ridge: float = 1e-3,
    chunk: int = 256,
) -> Params:
    r"""Merge two networks into one of a chosen width: partial matching, then least squares.

    First the units of each layer are matched by the correlation of their activations. Of the n
    pairs the most similar are merged, so many that ``width`` times n units are left; the units
    of the other pairs are kept, each on its own (Nasery et al. 2024). Let
    :math:`\hat Z` hold the activations of the units that result, computed from the two networks:
    the mean of both where units were merged, one network's where not; and :math:`\hat Y`
    likewise what the next layer gives out before its nonlinearity. The weights of that layer are

    .. math:: \min_W\ \lVert \hat Z W^\top-\hat Y\rVert^2
              +\gamma\,\lVert W-\bar W\rVert^2 ,

    where :math:`\bar W` are the weights that merging alone gives (with width 1 the average after
    permutation), and weights from one network's own units to the other's stay zero. The penalty,
    here in place of the paper's gradient descent from :math:`\bar W`, decides about directions in
    which no activation varies. Outputs are averaged: with width 2 the result is exactly the mean
    of the two networks' outputs.

    Args:
        module: the architecture, in evaluation mode; its own parameters are not used.
        models: parameters of two networks.
        group: what the units are: those that one linear layer makes and linear layers read, each
            with a site. What reads or makes no such units is averaged.
        inputs: shape (n, ...), at least two. No labels are needed.
        width: from 1 to 2, the number of units of the result over that of one network.
        ridge: :math:`\gamma` over the mean square of an input of the layer, positive.
        chunk: examples in one forward pass.

    Returns:
        The merged network; :func:`sokmerge.merge.resized` makes a module for it.

    Raises:
        ArgumentError: an argument is not as described.

    >>> from sokmerge import params, symmetry
    >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    >>> a, b = params.of(net), params.normal_like(params.of(net), seed=0)
    >>> merged = pleas(net, [a, b], symmetry.chain(net, ["0", "2"]), torch.randn(50, 2), width=1.5)
    >>> merged["0.weight"].shape
    torch.Size([6, 2])
    """
    require_models(models, least=2)
    if len(models) != 2:
        raise ArgumentError("models", found=f"{len(models)} models", expected="two")
    require_examples(inputs, chunk)
    if not 1 <= width <= 2:
        raise ArgumentError("width", found=f"{width}", expected="a number from 1 to 2")
    if not ridge > 0:
        raise ArgumentError("ridge", found=f"{ridge}", expected="above zero")
    network = Network(module, inputs.device)
    network.require(**{f"models[{i}]": model for i, model in enumerate(models)})
    group.require_fits(models[0], "models[0]")
    require_sites(network, group)
    made, read = _layers(network, group)
    found = moments([network] * 2, models, group, inputs, chunk)
    held = {
        block.name: _kept(found[block.name].correlation(), block.size, width)
        for block in group.blocks
    }
    merged = {
        name: ((wide(t) + wide(models[1][name])) / 2).to(t.dtype) if t.is_floating_point() else t
        for name, t in models[0].items()
    }
    layers = sorted({*made, *read})
    maps = {}
    for name in layers:
        layer = network.skeleton.get_submodule(name)
        like = wide(models[0][f"{name}.weight"])
        into = _whole(layer.in_features, like) if name not in read else held[read[name]]
        out = _whole(layer.out_features, like) if name not in made else held[made[name]]
        maps[name] = into, out
    sums = _products(network, models, maps, inputs, chunk)
    for name in layers:
        into, out = maps[name]
        start = _start(models, name, into, out)
        fitted = _fitted(*sums[name], start, _allowed(into, out), ridge)
        for own, part in ((f"{name}.weight", fitted[:, :-1]), (f"{name}.bias", fitted[:, -1])):
            if own in merged:
                merged[own] = part.to(models[0][own].dtype)
    return merged


Maps = tuple[Tensor, Tensor]
"""For each of the two networks which units of the result its units became, shape (m, n)."""


def _layers(network: Network, group: PermutationGroup) -> tuple[dict[str, str], dict[str, str]]:
    """Return for each linear layer the block that it makes, and the block that it reads."""
    made, read = {}, {}
    for block in group.blocks:
        makers, readers = set(), set()
        for x in block.axes:
            owner = x.parameter.rpartition(".")[0]
            (readers if reads(network.skeleton, x) else makers).add(owner)
        owners = [network.skeleton.get_submodule(n) for n in makers | readers]
        linear = all(isinstance(each, nn.Linear) for each in owners)
        if len(makers) != 1 or not linear or any(x.repeat > 1 for x in block.axes):
            raise ArgumentError(
                "group",
                found=f"block {block.name!r}, whose units {sorted(makers)} make and "
                f"{sorted(readers)} read",
                expected="units that one linear layer makes and linear layers read",
                do="Leave the block out of the group.",
            )
        made |= dict.fromkeys(makers, block.name)
        read |= dict.fromkeys(readers, block.name)
    return made, read


def _kept(correlation: Tensor, size: int, width: float) -> Maps:
    """Merge the best pairs: first the merged units, then those of each network alone."""
    pairs = size - round((width - 1) * size)
    cross = correlation[:size, size:]
    partner, value = np.arange(size), np.zeros(size)
    if has_values(correlation):
        numbers = host(cross)
        partner = host(assign(cross)).astype(int)
        value = numbers[np.arange(size), partner]
    ranked = np.argsort(-value, kind="stable")
    of_a, of_b = np.empty(size, dtype=int), np.empty(size, dtype=int)
    of_a[ranked] = np.arange(size)
    of_b[partner[ranked[:pairs]]] = np.arange(pairs)
    of_b[partner[ranked[pairs:]]] = size + np.arange(size - pairs)
    total = 2 * size - pairs
    return tuple(membership([int(k) for k in each], total, correlation) for each in (of_a, of_b))


def _whole(size: int, like: Tensor) -> Maps:
    """Return the maps of what both networks share: inputs, outputs."""
    identity = torch.eye(size, dtype=like.dtype, device=like.device)
    return identity, identity


def _means(held: Maps) -> Maps:
    """Return the maps that give merged units the mean of both."""
    copies = sum(each.sum(1, keepdim=True) for each in held)
    return tuple(each / copies for each in held)


def _allowed(into: Maps, out: Maps) -> list[tuple[Tensor, Tensor]]:
    """Return masks of outputs and, with a last entry for the bias, of inputs that they may read.

    What one network has alone reads nothing that the other has alone.
    """
    has_a, has_b = (each.sum(1) > 0 for each in into)
    makes_a, makes_b = (each.sum(1) > 0 for each in out)
    bias = has_a.new_ones(1)
    return [
        (makes_a & makes_b, torch.cat([has_a | has_b, bias])),
        (makes_a & ~makes_b, torch.cat([has_a, bias])),
        (makes_b & ~makes_a, torch.cat([has_b, bias])),
    ]


def _start(models: Sequence[Params], name: str, into: Maps, out: Maps) -> Tensor:
    """Return weights and, in the last column, biases that merging alone gives."""
    weight, bias = 0, 0
    for model, reading, making in zip(models, into, _means(out), strict=True):
        weight = weight + making @ wide(model[f"{name}.weight"]) @ reading.T
        own = model.get(f"{name}.bias")
        bias = bias + (making.sum(1) * 0 if own is None else making @ wide(own))
    return torch.cat([weight, bias[:, None]], 1)


def _products(
    network: Network,
    models: Sequence[Params],
    maps: dict[str, tuple[Maps, Maps]],
    inputs: Tensor,
    chunk: int,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return for each layer the mean products of its inputs, and of inputs with outputs."""
    states = [network.state(model, inputs) for model in models]
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def see(name: str, _: nn.Module, given: Tensor, output: Tensor) -> None:
        seen[name] = wide(given.flatten(0, -2)), wide(output.flatten(0, -2))

    handles = watched(network, list(maps), see)
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    count = 0
    with torch.inference_mode():
        for x in inputs.split(chunk):
            each = []
            for state in states:
                network(state, x)
                each.append(dict(seen))
            for name, (into, out) in maps.items():
                z, y = (
                    sum(one[name][k] @ m.T for one, m in zip(each, _means(held), strict=True))
                    for k, held in enumerate((into, out))
                )
                z = torch.cat([z, torch.ones_like(z[:, :1])], 1)
                products, cross = sums.get(name, (0, 0))
                sums[name] = products + z.T @ z, cross + z.T @ y
            count += len(x)
    for handle in handles:
        handle.remove()
    return {name: (p.clone() / count, c.clone() / count) for name, (p, c) in sums.items()}


def _fitted(
    products: Tensor,
    cross: Tensor,
    start: Tensor,
    allowed: Sequence[tuple[Tensor, Tensor]],
    ridge: float,
) -> Tensor:
    """Return the weights, biases last, that fit best with a penalty on the way from the start.

    What may not be read is taken out of the equations by a mask, so that no shape depends on it.
    """
    level = ridge * products.diagonal().mean()
    total = torch.zeros_like(start)
    for makes, has in allowed:
        inside = has.to(products.dtype)
        matrix = products * torch.outer(inside, inside)
        matrix = matrix + torch.diag(torch.where(has, level, 1.0))
        missing = (cross - products @ (start * inside).T) * inside[:, None]
        step = torch.linalg.solve(matrix, missing)
        total = torch.where(makes[:, None], start * inside + step.T, total)
    return total
