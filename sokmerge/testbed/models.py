"""The architectures of the book: a multilayer perceptron, a plain and a residual CNN, a small ViT.

An architecture is a frozen dataclass; :func:`build` makes the module it describes. Submodules
carry plain names (``hidden.0``, ``conv.0``, ``head``), by which the symmetry of a network is
described, and all inputs have the shape (n, in_channels, 28, 28).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sokmerge.errors import ArgumentError

__all__ = [
    "MLP",
    "Architecture",
    "ChannelLayerNorm",
    "PlainCNN",
    "ResidualCNN",
    "TinyViT",
    "build",
    "chain",
]

SIDE = 28


@dataclass(frozen=True)
class MLP:
    """``depth`` hidden layers of ``width`` ReLU units on the flattened image, and a linear head.

    >>> [name for name, _ in build(MLP(width=8, depth=2)).named_parameters()]
    ['hidden.0.weight', 'hidden.0.bias', 'hidden.1.weight', 'hidden.1.bias', 'head.weight', \
'head.bias']
    """

    width: int
    depth: int = 3
    in_channels: int = 1
    classes: int = 10


@dataclass(frozen=True)
class PlainCNN:
    """3 x 3 convolutions of stride 2 with ReLU, the mean over all places, and a linear head.

    There is no normalisation and no skip connection: the layers form a chain.

    >>> build(PlainCNN())(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    channels: tuple[int, ...] = (16, 32, 64)
    in_channels: int = 1
    classes: int = 10


@dataclass(frozen=True)
class ResidualCNN:
    """A small residual network: a stem, one block a stage, the mean over all places, a head.

    The stem is a 3 x 3 convolution of stride 2. A block is two 3 x 3 convolutions, each followed
    by normalisation, added to a shortcut (He et al. 2016, arXiv:1512.03385); from the second
    stage on the block halves the sides and its shortcut is a 1 x 1 convolution.

    ``norm`` is ``"batch"`` for BatchNorm, whose running statistics belong to the data as well as
    to the parameters, or ``"layer"`` for :class:`ChannelLayerNorm`, which keeps no statistics.

    >>> sum(p.numel() for p in build(ResidualCNN(norm="layer")).parameters())
    43870
    """

    norm: Literal["batch", "layer"] = "batch"
    channels: tuple[int, ...] = (12, 24, 48)
    in_channels: int = 1
    classes: int = 10


@dataclass(frozen=True)
class TinyViT:
    """A small vision transformer: patches as tokens, ``depth`` encoder layers, a linear head.

    Each square of ``patch`` x ``patch`` pixels becomes a token of ``width`` features, to which a
    learnt vector for its place is added (Dosovitskiy et al. 2021, arXiv:2010.11929). An encoder
    layer adds to the tokens what ``heads`` heads of attention make of them, and then what
    ``mlp_ratio * width`` GELU units make of each; both read the tokens through a layer
    normalisation. In place of a class token the head reads the mean of all tokens, normalised.

    >>> net = build(TinyViT())
    >>> sum(p.numel() for p in net.parameters()), net(torch.zeros(2, 1, 28, 28)).shape
    (71946, torch.Size([2, 10]))
    """

    patch: int = 4
    width: int = 64
    depth: int = 2
    heads: int = 4
    mlp_ratio: int = 2
    in_channels: int = 1
    classes: int = 10


Architecture = MLP | PlainCNN | ResidualCNN | TinyViT


def build(arch: Architecture, seed: int = 0) -> nn.Module:
    r"""Make the module an architecture describes, in eval mode, with seeded initial weights.

    Weights and biases of linear and convolutional layers are uniform on
    :math:`\pm 1 / \sqrt{\text{fan-in}}`, PyTorch's own default; normalisation starts as the
    identity, and what a vision transformer adds for a token's place as normal noise of deviation
    0.02. The global random state is neither read nor changed.

    Raises:
        ArgumentError: ``arch`` is no architecture, or one of its numbers is not positive.

    >>> a, b = build(MLP(width=4), seed=1), build(MLP(width=4), seed=1)
    >>> all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    True
    """
    makers = {MLP: _MLP, PlainCNN: _PlainCNN, ResidualCNN: _ResidualCNN, TinyViT: _TinyViT}
    if type(arch) not in makers:
        raise ArgumentError(
            "arch", found=repr(arch), expected="an MLP, a PlainCNN, a ResidualCNN or a TinyViT"
        )
    _check(arch)
    with torch.device("meta"):  # so that no layer draws from the global generator
        module = makers[type(arch)](arch)
    module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                bound = 1 / math.sqrt(layer.weight[0].numel())
                layer.weight.uniform_(-bound, bound, generator=generator)
                if layer.bias is not None:
                    layer.bias.uniform_(-bound, bound, generator=generator)
            elif isinstance(layer, nn.BatchNorm2d | nn.LayerNorm | ChannelLayerNorm):
                layer.reset_parameters()
            elif isinstance(layer, _TinyViT):
                layer.place.normal_(std=0.02, generator=generator)
    return module.eval()


def chain(arch: Architecture) -> list[str]:
    """Return the names of the layers, first to last, of an architecture that is a chain.

    Between two neighbours stand only functions that act on each unit alone, so that permuting
    the units of one layer is undone by permuting the inputs of the next.

    Raises:
        ArgumentError: the architecture has skip connections.

    >>> chain(MLP(width=128, depth=3))
    ['hidden.0', 'hidden.1', 'hidden.2', 'head']
    """
    if isinstance(arch, MLP):
        return [*(f"hidden.{i}" for i in range(arch.depth)), "head"]
    if isinstance(arch, PlainCNN):
        return [*(f"conv.{i}" for i in range(len(arch.channels))), "head"]
    raise ArgumentError(
        "arch", found=repr(arch), expected="an MLP or a PlainCNN, whose layers form a chain"
    )


class ChannelLayerNorm(nn.Module):
    r"""Layer normalisation over the channels of each place of each image.

    .. math:: y_c = w_c \frac{x_c - \bar x}{\sqrt{\overline{(x - \bar x)^2} + \epsilon}} + b_c

    where the means run over the channels (Ba, Kiros and Hinton 2016, arXiv:1607.06450). It keeps
    no statistics and commutes with a permutation of the channels.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.eps = eps
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make the layer start as plain normalisation."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape (n, channels, height, width)."""
        channels_last = x.permute(0, 2, 3, 1)
        normed = F.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)


class _MLP(nn.Module):
    def __init__(self, arch: MLP) -> None:
        super().__init__()
        widths = [arch.in_channels * SIDE * SIDE, *[arch.width] * arch.depth]
        self.hidden = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.head = nn.Linear(widths[-1], arch.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.head(x)


class _PlainCNN(nn.Module):
    def __init__(self, arch: PlainCNN) -> None:
        super().__init__()
        channels = [arch.in_channels, *arch.channels]
        self.conv = nn.ModuleList(_conv3x3(i, o, stride=2) for i, o in pairwise(channels))
        self.head = nn.Linear(channels[-1], arch.classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.conv:
            x = F.relu(layer(x))
        return self.head(x.mean(dim=(2, 3)))


class _ResidualCNN(nn.Module):
    def __init__(self, arch: ResidualCNN) -> None:
        super().__init__()
        norm = {"batch": nn.BatchNorm2d, "layer": ChannelLayerNorm}[arch.norm]
        first, *_, last = widths = [arch.channels[0], *arch.channels]
        self.stem = nn.Sequential(
            OrderedDict(
                conv=_conv3x3(arch.in_channels, first, stride=2, bias=False), norm=norm(first)
            )
        )
        self.block = nn.ModuleList(
            _Block(i, o, stride=1 if stage == 0 else 2, norm=norm)
            for stage, (i, o) in enumerate(pairwise(widths))
        )
        self.head = nn.Linear(last, arch.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.block:
            x = block(x)
        return self.head(x.mean(dim=(2, 3)))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv = nn.ModuleList(
            [_conv3x3(inputs, outputs, stride, bias=False), _conv3x3(outputs, outputs, bias=False)]
        )
        self.norm = nn.ModuleList([norm(outputs), norm(outputs)])
        plain = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if plain else _Projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm[0](self.conv[0](x)))
        return F.relu(self.shortcut(x) + self.norm[1](self.conv[1](inner)))


class _TinyViT(nn.Module):
    def __init__(self, arch: TinyViT) -> None:
        super().__init__()
        width, hidden = arch.width, arch.mlp_ratio * arch.width
        self.embed = nn.Conv2d(arch.in_channels, width, arch.patch, arch.patch)
        self.place = nn.Parameter(torch.empty((SIDE // arch.patch) ** 2, width))
        self.layer = nn.ModuleList(_Encoder(width, hidden, arch.heads) for _ in range(arch.depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, arch.classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.place
        for layer in self.layer:
            tokens = layer(tokens)
        return self.head(self.norm(tokens).mean(dim=1))


class _Encoder(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        read = self.norm[0](x)
        query, key, value = (
            make(read).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for make in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm[1](x))))


class _Projection(nn.Conv2d):
    """A 1 x 1 convolution with a stride, computed at the places that the stride leaves.

    Where oneDNN takes the stride itself, its gradient of the weights is wrong and overwrites
    memory if there are 2 to 7 input channels, in channels-last order and without AVX-512 (seen
    with oneDNN 3.12 in torch 2.14.1).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        down, across = self.stride
        return F.conv2d(x[:, :, ::down, ::across], self.weight)


def _conv3x3(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)


def _check(arch: Architecture) -> None:
    if isinstance(arch, ResidualCNN) and arch.norm not in ("batch", "layer"):
        raise ArgumentError("norm", found=repr(arch.norm), expected="'batch' or 'layer'")
    sizes = {name: value for name, value in vars(arch).items() if name != "norm"}
    for name, value in sizes.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or any(not isinstance(n, int) or n < 1 for n in numbers):
            raise ArgumentError(
                f"{type(arch).__name__}.{name}", found=repr(value), expected="positive integers"
            )
    if isinstance(arch, TinyViT):
        for name, whole in {"patch": SIDE, "heads": arch.width}.items():
            if whole % getattr(arch, name):
                raise ArgumentError(
                    f"TinyViT.{name}",
                    found=repr(getattr(arch, name)),
                    expected=f"a divisor of {whole}",
                )
