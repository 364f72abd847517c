r"""Units of several networks brought to one set of units, by linear maps, layer by layer.

The symmetry group of a network says along which axes units lie. An axis either *makes* its units
(the rows of a weight, a bias, the scale of a norm) or *reads* them (the columns of the next
weight). A linear map of units acts with one matrix on the former and with another on the latter.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.alignment.activations import observe, variance
from sokmerge.merge.alignment.soft import act_softly
from sokmerge.network import Network
from sokmerge.params import Params, wide
from sokmerge.symmetry import Axis, Block, PermutationGroup

__all__ = [
    "Moments",
    "carry",
    "layer_order",
    "moments",
    "reads",
    "resized",
    "rounded",
    "rows",
    "sizes",
]

_READERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

# What a layer says of its own size, and the dimension of its weight that has it.
_SIZES = {
    "in_features": 1,
    "out_features": 0,
    "in_channels": 1,
    "out_channels": 0,
    "num_features": 0,
}


def reads(module: nn.Module, axis: Axis) -> bool:
    """Say whether a layer reads units along this axis: its input features or channels.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> reads(net, Axis("0.weight", 0)), reads(net, Axis("1.weight", 1))
    (False, True)
    """
    owner = axis.parameter.rpartition(".")[0]
    return axis.dim == 1 and isinstance(module.get_submodule(owner), _READERS)


def sizes(group: PermutationGroup, params: Params, name: str) -> dict[str, int]:
    """Return how many units each block has in a network, which may be wider or narrower.

    Raises:
        ArgumentError: a parameter is missing, or its axes do not tell one number of units.
    """
    found: dict[str, int] = {}
    for block in group.blocks:
        for axis in block.axes:
            if axis.buffer and axis.parameter not in params:
                continue
            if axis.parameter not in params or params[axis.parameter].dim() <= axis.dim:
                raise ArgumentError(
                    name,
                    found=f"no parameter {axis.parameter!r} of more than {axis.dim} dimensions",
                    expected=f"one, for block {block.name!r}",
                    do="The group belongs to another architecture.",
                )
            length = params[axis.parameter].shape[axis.dim]
            size, left = divmod(length, axis.repeat)
            if left or found.setdefault(block.name, size) != size:
                raise ArgumentError(
                    f"{name}[{axis.parameter!r}]",
                    found=f"{length} entries along dimension {axis.dim}",
                    expected=f"{found.get(block.name, size)} units of {axis.repeat} entries, "
                    f"as elsewhere in block {block.name!r}",
                )
    return found


def carry(
    module: nn.Module,
    block: Block,
    params: Params,
    make: Tensor,
    read: Tensor,
) -> dict[str, Tensor]:
    r"""Return parameters whose units of one block were mapped linearly.

    Args:
        module: the architecture, which says what makes units and what reads them.
        block: the units.
        params: the parameters.
        make: shape (m, n), by which what makes the n units is multiplied.
        read: shape (m, n), by which the columns of what reads them are multiplied:
            :math:`W\mapsto W R^\top`.
    """
    return act_softly(
        PermutationGroup((block,)),
        {block.name: make},
        params,
        readers={block.name: read},
        reads=lambda axis: reads(module, axis),
    )


def rounded(params: Params, like: Params) -> dict[str, Tensor]:
    """Return floating parameters in the dtypes that another network has."""
    return {
        name: tensor.to(like[name].dtype) if tensor.is_floating_point() else tensor
        for name, tensor in params.items()
    }


def rows(
    module: nn.Module,
    group: PermutationGroup,
    block: Block,
    params: Params,
    settled: frozenset[str],
) -> Tensor | None:
    """Return what makes the units of a block as a matrix, a row for each unit.

    A parameter whose entries belong to units of another block as well is left out unless that
    block is settled, that is, its units are in one order in all networks. None if nothing is left.
    """
    parts = []
    for axis, others in _makers(module, group, block):
        if others <= settled:
            first = wide(params[axis.parameter]).movedim(axis.dim, 0)
            parts.append(first.reshape(first.shape[0] // axis.repeat, -1))
    return torch.cat(parts, 1) if parts else None


def _makers(
    module: nn.Module, group: PermutationGroup, block: Block
) -> list[tuple[Axis, set[str]]]:
    """Return the axes along which a block is made, and the other blocks of their parameters."""
    return [
        (
            axis,
            {
                other.name
                for other in group.blocks
                for each in other.axes
                if each.parameter == axis.parameter and other.name != block.name
            },
        )
        for axis in block.axes
        if not axis.buffer and not reads(module, axis)
    ]


def layer_order(module: nn.Module, group: PermutationGroup, params: Params) -> list[Block]:
    """Return the blocks in the order in which their units can be compared by their weights.

    Next comes always the block of which the largest share of weights can be compared, the first
    of several. In a chain of layers this is the order of the layers.

    Raises:
        ArgumentError: there comes a block of which nothing can be compared.
    """
    settled: frozenset[str] = frozenset()
    left, found = list(group.blocks), []
    makers = {block.name: _makers(module, group, block) for block in group.blocks}
    while left:
        shares = []
        for block in left:
            entries = [(params[x.parameter].numel(), o <= settled) for x, o in makers[block.name]]
            whole = max(sum(number for number, _ in entries), 1)
            shares.append(sum(number for number, comparable in entries if comparable) / whole)
        best = max(range(len(left)), key=lambda k: shares[k])
        if shares[best] == 0:
            raise ArgumentError(
                "group",
                found=f"block {left[best].name!r}, whose weights all depend on the order of "
                "other units",
                expected="blocks that can be compared one after the other",
                do="Compare the units by their activations instead.",
            )
        found.append(left.pop(best))
        settled |= {found[-1].name}
    return found


@dataclass(frozen=True)
class Moments:
    """First and second moments of the units of several networks, side by side.

    Attributes:
        sizes: how many units each network has.
        mean: shape (sum of sizes,).
        square: shape (sum, sum), the means of products.
    """

    sizes: tuple[int, ...]
    mean: Tensor
    square: Tensor

    def correlation(self) -> Tensor:
        """Return Pearson's correlations; those of a unit that never varies are 0."""
        covariance = self.square - torch.outer(self.mean, self.mean)
        spread = variance(self.mean, self.square.diagonal()).sqrt()
        product = torch.outer(spread, spread)
        return torch.where(product > 0, covariance / product, 0.0).clamp(-1, 1)

    def distance(self, i: int, j: int) -> Tensor:
        """Return root mean squared differences of the units of networks i and j."""
        starts = [sum(self.sizes[:k]) for k in range(len(self.sizes))]
        a = slice(starts[i], starts[i] + self.sizes[i])
        b = slice(starts[j], starts[j] + self.sizes[j])
        own = self.square.diagonal()
        squared = own[a, None] + own[b] - 2 * self.square[a, b]
        rounding = 1e2 * torch.finfo(squared.dtype).eps * (own[a, None] + own[b])
        return squared.where(squared > rounding, 0.0).sqrt()


def moments(
    networks: Sequence[Network],
    models: Sequence[Params],
    group: PermutationGroup,
    inputs: Tensor,
    chunk: int,
) -> dict[str, Moments]:
    """Return for each block the joint moments of its units in all networks, on the inputs."""
    states = [n.state(m, inputs) for n, m in zip(networks, models, strict=True)]
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}
    widths: dict[str, tuple[int, ...]] = {}
    with torch.inference_mode():
        for x in inputs.split(chunk):
            found: dict[str, list[Tensor]] = {block.name: [] for block in group.blocks}
            for network, state in zip(networks, states, strict=True):
                seen, handles = observe(network, group)
                network(state, x)
                for handle in handles:
                    handle.remove()
                for name, activations in seen.items():
                    found[name].append(wide(activations))
            for name, parts in found.items():
                widths[name] = tuple(part.shape[1] for part in parts)
                joint = torch.cat(parts, 1)
                count, total, products = sums.get(name, (0, 0.0, 0.0))
                sums[name] = (
                    count + len(joint), total + joint.sum(0), products + joint.T @ joint
                )  # fmt: skip
    return {
        name: Moments(widths[name], (total / count).clone(), (products / count).clone())
        for name, (count, total, products) in sums.items()
    }


def resized(module: nn.Module, params: Params) -> nn.Module:
    """Return a copy of a module that has these parameters, of other widths than its own if need be.

    Args:
        module: the architecture; it is not changed.
        params: all of its parameters. Buffers stay as they are, so that layers which keep
            statistics of units must keep their number of units.

    Raises:
        ArgumentError: the names are not those of the module's parameters.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> wider = {"0.weight": torch.ones(5, 2), "0.bias": torch.ones(5),
    ...          "2.weight": torch.ones(1, 5), "2.bias": torch.ones(1)}
    >>> resized(net, wider)[0]
    Linear(in_features=2, out_features=5, bias=True)
    """
    names = {name for name, _ in module.named_parameters()}
    if names != set(params):
        raise ArgumentError(
            "params",
            found=f"names {sorted(set(params) ^ names)} that only one of the two has",
            expected="the names of the module's parameters",
        )
    made = copy.deepcopy(module)
    for name, tensor in params.items():
        owner, _, own = name.rpartition(".")
        layer = made.get_submodule(owner)
        setattr(layer, own, nn.Parameter(tensor.detach().clone()))
        if own == "weight":
            for size, dim in _SIZES.items():
                if hasattr(layer, size):
                    setattr(layer, size, tensor.shape[dim])
            if isinstance(layer, nn.LayerNorm):
                layer.normalized_shape = tuple(tensor.shape)
    return made


def membership(labels: Sequence[int], count: int, like: Tensor) -> Tensor:
    """Return the matrix, shape (count, n), whose column l has its one in row ``labels[l]``."""
    held = torch.tensor(labels).to(like.device)
    return (torch.arange(count, device=like.device)[:, None] == held).to(like.dtype)


def averaged(models: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    """Return the mean of one parameter."""
    return sum(model[name] for model in models) / len(models)
