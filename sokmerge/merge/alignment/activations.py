r"""What the layers of a network give out on data: means, variances, covariances of units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.network import Network
from sokmerge.params import Params, wide
from sokmerge.symmetry import Block, PermutationGroup, Site

__all__ = [
    "observe",
    "require_examples",
    "require_sites",
    "require_some_sites",
    "spread",
    "watched",
]


def require_examples(inputs: Tensor, chunk: int) -> None:
    """Raise unless there are at least two examples, and one in a chunk."""
    for name, number, least in (("inputs", len(inputs), 2), ("chunk", chunk, 1)):
        if number < least:
            raise ArgumentError(
                name, found=f"{number}", expected=f"at least {least} example{'s' * (least > 1)}"
            )


def watched(
    network: Network, layers: Sequence[str], see: Callable[[str, nn.Module, Tensor, Tensor], None]
) -> list[torch.utils.hooks.RemovableHandle]:
    """Call ``see(name, layer, input, output)`` whenever one of the layers has been called.

    Returns:
        The handles by which the hooks are removed. The skeleton is the network's own copy, so
        they may also be left.
    """

    def hook(name: str):
        def after(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            see(name, layer, arguments[0], output)

        return after

    modules = dict(network.skeleton.named_modules())
    return [modules[name].register_forward_hook(hook(name)) for name in layers]


def units_last(layer: nn.Module, output: Tensor) -> Tensor:
    """Return what a layer gives out as a matrix: a row an input and place, a column a unit.

    Linear layers and ``nn.LayerNorm`` have their units in the last dimension, all others in the
    second.
    """
    if not isinstance(layer, (nn.Linear, nn.LayerNorm)):
        output = output.movedim(1, -1)
    return output.flatten(0, -2)


def require_sites(network: Network, group: PermutationGroup) -> None:
    """Raise unless the activations of each block can be observed."""
    submodules = dict(network.skeleton.named_modules())
    for block in group.blocks:
        if block.site is None or block.site.module not in submodules:
            _refuse(block)


def require_some_sites(network: Network, group: PermutationGroup) -> set[str]:
    """Return the names of the blocks that have a site; raise if none has, or one is not there."""
    observed = [block for block in group.blocks if block.site is not None]
    submodules = dict(network.skeleton.named_modules())
    for block in observed or group.blocks[:1]:
        if block.site is None or block.site.module not in submodules:
            _refuse(block)
    return {block.name for block in observed}


def _refuse(block: Block) -> None:
    raise ArgumentError(
        "group",
        found=f"the site {block.site} for block {block.name!r}",
        expected="a submodule at whose input the block's activations can be observed",
    )


def observe(
    network: Network, group: PermutationGroup
) -> tuple[dict[str, Tensor], list[torch.utils.hooks.RemovableHandle]]:
    """Return a dictionary that always holds what the readers of each block were last given.

    Blocks without a site are left out. And the handles by which it is ended, where the network is
    used further.
    """
    seen: dict[str, Tensor] = {}
    handles = []

    def keep(name: str, site: Site):
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen[name] = _units_last(arguments[0], site)

        return hook

    for block in group.blocks:
        if block.site is None:
            continue
        reader = network.skeleton.get_submodule(block.site.module)
        handles.append(reader.register_forward_pre_hook(keep(block.name, block.site)))
    return seen, handles


def _units_last(activations: Tensor, site: Site) -> Tensor:
    """Return a matrix of activations: a column for each unit, a row for each input and place."""
    last = activations.movedim(site.dim, -1)
    if site.repeat > 1:  # a flattened map: its places become rows
        last = last.unflatten(-1, (-1, site.repeat)).movedim(-1, -2)
    return last.flatten(0, -2)


def spread(
    network: Network, params: Params, inputs: Tensor, layers: Sequence[str], chunk: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and standard deviation of each unit of the layers that are called.

    Both in double precision where there is any; a spread that is but rounding is 0.
    """
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def see(name: str, layer: nn.Module, _: Tensor, output: Tensor) -> None:
        rows = wide(units_last(layer, output))
        count, total, squares = sums.get(name, (0, 0, 0))
        sums[name] = (count + len(rows), total + rows.sum(0), squares + rows.square().sum(0))

    state = network.state(params, inputs)
    handles = watched(network, layers, see)
    with torch.inference_mode():
        for x in inputs.split(chunk):
            network(state, x)
    for handle in handles:
        handle.remove()
    found = {}
    for name, (count, total, squares) in sums.items():
        mean = total / count
        found[name] = mean.clone(), variance(mean, squares / count).sqrt().clone()
    return found


def variance(mean: Tensor, mean_square: Tensor) -> Tensor:
    """Return the variance of each unit, exactly 0 where it is but rounding."""
    difference = mean_square - mean.square()
    rounding = 1e4 * torch.finfo(mean.dtype).eps * mean_square
    return difference.where(difference > rounding, 0.0)


def mixed(shares: Sequence[float], found: Sequence[Mapping[str, tuple[Tensor, Tensor]]]):
    """Return for each layer the weighted mean of means and of standard deviations."""
    return {
        name: tuple(
            sum(share * each[name][k] for share, each in zip(shares, found, strict=True))
            for k in (0, 1)
        )
        for name in found[0]
    }
