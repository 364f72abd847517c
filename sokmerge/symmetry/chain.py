"""The permutation symmetry of a chain of layers, read off the layers' shapes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sokmerge.errors import ArgumentError
from sokmerge.symmetry.permutation import Axis, Block, PermutationGroup, Site

__all__ = ["chain"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)


def chain(module: nn.Module, names: Sequence[str]) -> PermutationGroup:
    """Return the permutation group of a network whose layers form a chain.

    A chain is a network in which each layer reads the output of the one before, with nothing in
    between but what treats all units alike: ReLU, pooling over space, flattening. Its hidden
    units may be permuted layer by layer; the inputs and the outputs stay.

    Args:
        module: the network.
        names: its linear and convolutional layers, first to last, each normalisation behind the
            layer it normalises.

    Returns:
        A group with one block for each hidden layer.

    Raises:
        ArgumentError: a name is unknown, a layer is of another kind, or its size does not follow
            from the one before.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [(block.name, block.size) for block in chain(net, ["0", "2"]).blocks]
    [('0', 3)]
    """
    modules = dict(module.named_modules())
    blocks: list[Block] = []
    producer: str | None = None
    size = 0
    axes: list[Axis] = []
    for name in names:
        if name not in modules:
            raise ArgumentError(
                "names", found=f"{name!r}", expected="names of submodules, such as "
                + ", ".join(repr(n) for n in list(modules)[1:4])
            )  # fmt: skip
        layer = modules[name]
        if isinstance(layer, _NORMS):
            axes += _axes_of_norm(name, layer, size)
            continue
        if not isinstance(layer, (nn.Linear, *_CONVOLUTIONS)) or getattr(layer, "groups", 1) != 1:
            raise ArgumentError(
                "names",
                found=f"{name!r}, a {type(layer).__name__}",
                expected="linear layers, convolutions with groups=1, and normalisations",
            )
        linear = isinstance(layer, nn.Linear)
        inputs = layer.in_features if linear else layer.in_channels
        if producer is not None:
            repeat, left = divmod(inputs, size)
            if left or repeat < 1 or (repeat > 1 and not linear):
                raise ArgumentError(
                    "names",
                    found=f"{name!r} with {inputs} inputs after {producer!r} with {size} units",
                    expected="each layer to read the one before",
                    do="List the layers in the order in which the network applies them.",
                )
            reader = Site(name, -1 if linear else 1, repeat)
            blocks.append(Block(producer, size, (*axes, Axis(f"{name}.weight", 1, repeat)), reader))
        producer, size = name, layer.out_features if linear else layer.out_channels
        axes = [Axis(f"{name}.weight", 0)]
        if layer.bias is not None:
            axes.append(Axis(f"{name}.bias", 0))
    return PermutationGroup(tuple(blocks))


def _axes_of_norm(name: str, layer: nn.Module, size: int) -> list[Axis]:
    shape = tuple(layer.normalized_shape) if isinstance(layer, nn.LayerNorm) else (
        layer.num_features,
    )  # fmt: skip
    if shape != (size,):
        raise ArgumentError(
            "names",
            found=f"{name!r}, which normalises {shape}",
            expected=f"a normalisation of the {size} units before it",
        )
    parameters = [f"{name}.{p}" for p, _ in layer.named_parameters()]
    statistics = [f"{name}.{b}" for b, tensor in layer.named_buffers() if tensor.dim() == 1]
    return [Axis(p, 0) for p in parameters] + [Axis(s, 0, buffer=True) for s in statistics]
