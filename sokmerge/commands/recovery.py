"""Align networks back to themselves: a random element of the group, undone in spite of noise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sokmerge import symmetry
from sokmerge.merge import activation_matching, weight_matching
from sokmerge.params import stream
from sokmerge.symmetry import PermutationGroup

__all__ = ["NETWORKS", "Recovery", "ResNet20", "filled", "page", "recover"]

NOISE = 0.01
"""Of the noise that is added to each parameter, relative to the spread of its entries."""
ORDERS = 5
"""Of the layers, in which weight matching lets them take turns."""


@dataclass(frozen=True)
class Recovery:
    """What became of a network that was transformed, disturbed and aligned back.

    Attributes:
        network: its name.
        parameters: how many numbers it has.
        blocks: how many blocks its group has.
        units: how many units they have in all.
        moved: share of the units that the random element had moved.
        by_weights: share of the units that weight matching brought back to their place.
        by_activations: the same for activation matching, by correlations.
        seconds: CPU seconds of the weight matching.
    """

    network: str
    parameters: int
    blocks: int
    units: int
    moved: float
    by_weights: float
    by_activations: float
    seconds: float


def recover(name: str, seed: int = 0) -> Recovery:
    """Transform a network of :data:`NETWORKS` at random, disturb it by 1 %, and align it back."""
    module, shape = NETWORKS[name]()
    module = filled(module, f"{seed}: {name}")
    inputs = torch.randn(shape, generator=stream(f"{seed}: {name}: inputs"), dtype=torch.float64)
    group = symmetry.of(module, inputs[:1])
    a = {n: p.detach() for n, p in module.state_dict().items()}
    planted = group.sample(seed)
    noisy = {n: _disturbed(t, stream(f"{seed}: {name}: {n}")) for n, t in a.items()}
    b = group.act(planted, noisy)
    began = time.process_time()
    ends = [_parameters(module, p) for p in (a, b)]
    matched = weight_matching(*ends, group, orders=ORDERS).permutation
    seconds = time.process_time() - began
    observed = activation_matching(module, *ends, group, inputs, similarity="correlation")
    home = group.invert(planted)
    return Recovery(
        name,
        sum(p.numel() for p in module.parameters()),
        len(group.blocks),
        sum(block.size for block in group.blocks),
        1 - _share(planted, group.identity(), group),
        _share(matched, home, group),
        _share(observed.permutation, home, group),
        seconds,
    )


def _parameters(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: state[name] for name, _ in module.named_parameters()}


def _disturbed(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return tensor + NOISE * tensor.std(correction=0) * noise


def _share(found, wanted, group: PermutationGroup) -> float:
    agree = sum(int((found[b.name] == wanted[b.name]).sum()) for b in group.blocks)
    return agree / max(sum(block.size for block in group.blocks), 1)


def filled(module: nn.Module, key: str) -> nn.Module:
    """Give a module random parameters, and statistics unlike those of an untrained one."""
    module = module.double().eval()
    generator = stream(f"{key}: parameters")
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if "running_" not in name and name not in dict(module.named_parameters()):
                continue
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.dim() <= 1:
                tensor.uniform_(-0.5, 0.5, generator=generator).add_(name.endswith("weight"))
            else:
                bound = (3 / tensor[0].numel()) ** 0.5
                tensor.uniform_(-bound, bound, generator=generator)
    return module


# --- the networks -----------------------------------------------------------------------------


class ResNet20(nn.Module):
    """The residual network of three stages, each of three blocks (He et al. 2016).

    Named as in the code of Ainsworth et al. (2022), so that their specification can be read.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        sizes = [(width, width), (width, 2 * width), (2 * width, 4 * width)]
        for number, (inputs, outputs) in enumerate(sizes, start=1):
            first = _Block(inputs, outputs)
            setattr(self, f"layer{number}", nn.Sequential(first, *(_Block(outputs, outputs)
                                                                  for _ in range(2))))  # fmt: skip
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


def _mlp() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [nn.Flatten(), nn.Linear(784, 512), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Linear(512, 512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, 10)), (512, 1, 28, 28)


def _vgg() -> tuple[nn.Module, tuple[int, ...]]:
    from torchvision.models import vgg

    widths = [16, "M", 32, "M", 64, 64, "M", 128, 128, "M", 128, 128, "M"]
    made = vgg.VGG(vgg.make_layers(widths, batch_norm=True), num_classes=10, init_weights=False)
    made.avgpool = nn.AdaptiveAvgPool2d(1)
    made.classifier = nn.Sequential(
        nn.Linear(128, 128), nn.ReLU(True), nn.Linear(128, 128), nn.ReLU(True), nn.Linear(128, 10)
    )
    return made, (64, 3, 32, 32)


def _resnet18() -> tuple[nn.Module, tuple[int, ...]]:
    from torchvision.models import resnet18

    return resnet18(num_classes=10), (32, 3, 32, 32)


def _convnext() -> tuple[nn.Module, tuple[int, ...]]:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    stages = [CNBlockConfig(24, 48, 2), CNBlockConfig(48, 96, 2), CNBlockConfig(96, None, 2)]
    return ConvNeXt(stages, num_classes=10), (16, 3, 32, 32)


def _vit() -> tuple[nn.Module, tuple[int, ...]]:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 4, 4, 4, 64, 256, num_classes=10), (16, 3, 32, 32)


def _swin() -> tuple[nn.Module, tuple[int, ...]]:
    from torchvision.models import SwinTransformer

    made = SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=10)
    return made, (16, 3, 32, 32)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "MLP, three hidden layers of 512": _mlp,
    "VGG-11 with BatchNorm, a quarter as wide": _vgg,
    "ResNet-20": lambda: (ResNet20(), (16, 3, 32, 32)),
    "ResNet-18": _resnet18,
    "ConvNeXt, three stages, 24 to 96 wide": _convnext,
    "ViT, four layers, 64 wide, four heads": _vit,
    "Swin, two stages, 32 and 64 wide": _swin,
}
"""Networks that are aligned back, and the shapes of their inputs."""


# --- the page ---------------------------------------------------------------------------------

_PAGE = """\
---
myst:
  html_meta:
    description: "Networks, re-indexed at random and disturbed, that are aligned back."
---

# Networks aligned back

<!-- Written by `sokmerge symmetry recovery`; changes by hand are lost. -->

A matching that works must find what was hidden.
Each network below has random parameters.
A random element of its [derived group](symmetries.md) re-indexes it, and noise of 1 % of the spread
of each parameter is added.
Two matchings then look for the way back: {{py:func}}`sokmerge.merge.weight_matching`, and
{{py:func}}`sokmerge.merge.activation_matching` by correlations on random inputs.
Blocks are sets of units that move together, heads and channels within heads among them; back is
the share of all units that return to their place.

Activation matching sees the units that a linear layer or a convolution reads.
It matches the others, such as queries and keys, by their weights.
Units that none of the inputs switches on look alike to it, and do not come back.
Weight matching tries {orders} random orders of the layers and keeps the best.

| network | parameters | blocks | units | moved | back by weights | back by activations |
|---|---:|---:|---:|---:|---:|---:|
{rows}

To make it again:

```
sokmerge symmetry recovery
```
"""


def page(rows: list[Recovery]) -> str:
    """Return the page of the book for these rows."""
    told = "\n".join(
        f"| {r.network} | {_thousands(r.parameters)} | {r.blocks} | {r.units:,} "
        f"| {_percent(r.moved)} | {_percent(r.by_weights)} | {_percent(r.by_activations)} |"
        for r in rows
    )
    return _PAGE.format(rows=told, orders=ORDERS)


def _thousands(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _percent(share: float) -> str:
    """Rounded down, so that 100 % means all."""
    return f"{int(share * 1000) / 10:g} %"
