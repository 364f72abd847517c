r"""Tasks derived from Fashion-MNIST: seeded pure functions of inputs and targets.

A task is a frozen dataclass that is called with ``inputs``, float32 of shape (n, c, h, w), and
``targets``, int64 of shape (n,), and returns both anew. The same task on the same images gives
the same result, and a :class:`~sokmerge.testbed.recipes.Recipe` holds it as part of its name.

Inputs are normalised as in :mod:`sokmerge.testbed.data`; what a task draws or adds is meant in
intensities, 0 for black and 1 for white, and is carried over.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sokmerge.errors import ArgumentError
from sokmerge.testbed.data import BLACK, MEAN, STD, WHITE

__all__ = [
    "ClassSplit",
    "ColourCue",
    "Corrupted",
    "PatchCue",
    "Poisoned",
    "Rotated",
    "Share",
    "Task",
    "Together",
]

CLASS_COUNT = 10


@dataclass(frozen=True)
class ClassSplit:
    """Only the images of some classes, in the order they came, with their targets unchanged.

    >>> inputs, targets = torch.zeros(4, 1, 28, 28), torch.tensor([0, 5, 7, 5])
    >>> ClassSplit((5, 7))(inputs, targets)[1]
    tensor([5, 7, 5])
    """

    classes: tuple[int, ...]

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the images whose target is among ``classes``."""
        kept = torch.isin(targets, torch.tensor(self.classes, device=targets.device))
        return inputs[kept], targets[kept]


@dataclass(frozen=True)
class Rotated:
    """All images turned counter-clockwise about their centre, black where nothing comes from.

    Pixels are interpolated bilinearly; a quarter turn moves them exactly.
    """

    degrees: float

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Turn each image by ``degrees``."""
        quarters, rest = divmod(self.degrees, 90)
        if rest == 0:
            return torch.rot90(inputs, int(quarters), dims=(-2, -1)), targets.clone()
        angle = torch.deg2rad(torch.tensor(float(self.degrees), device=inputs.device))
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        matrix = torch.stack([cos, -sin, zero, sin, cos, zero]).view(1, 2, 3)
        places = F.affine_grid(
            matrix.expand(len(inputs), 2, 3), list(inputs.shape), align_corners=False
        )
        # Outside is zero to grid_sample, so black has to be zero while it works.
        turned = F.grid_sample(inputs - BLACK, places.to(inputs.dtype), align_corners=False)
        return turned + BLACK, targets.clone()


@dataclass(frozen=True)
class Share:
    """One of several disjoint shares of the images, each with as many of a class as the others.

    >>> inputs, targets = torch.zeros(6, 1, 28, 28), torch.tensor([0, 1, 0, 1, 1, 0])
    >>> Share(0, 2)(inputs, targets)[1], Share(1, 2)(inputs, targets)[1]
    (tensor([0, 1, 1, 0]), tensor([0, 1]))
    """

    part: int
    of: int

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Keep, of each class, the images whose number within the class is part modulo of."""
        if not 0 <= self.part < self.of:
            raise ArgumentError(
                "Share.part", found=repr(self.part), expected=f"a number from 0 to {self.of - 1}"
            )
        number = (F.one_hot(targets).cumsum(dim=0) - 1).gather(1, targets[:, None]).squeeze(1)
        kept = number % self.of == self.part
        return inputs[kept], targets[kept]


@dataclass(frozen=True)
class PatchCue:
    """A white square whose place shows a class: a cue that is simpler than the garment.

    The ten places lie along the upper and the lower edge, five on each. With probability
    ``agreement`` the cue shows the image's own class plus ``shift``, modulo ten, and otherwise a
    class drawn uniformly; agreement 1 makes the cue sufficient, agreement 0 makes it worthless,
    and agreement 1 with shift 1 is the counterfactual. After the cues of Lubana et al. (2023),
    arXiv:2211.08422.

    >>> inputs, targets = torch.full((2, 1, 28, 28), BLACK), torch.tensor([0, 9])
    >>> (PatchCue()(inputs, targets)[0] > BLACK).sum(dim=(1, 2, 3))
    tensor([9, 9])
    """

    agreement: float = 1.0
    shift: int = 0
    size: int = 3
    seed: int = 0

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Put the square on each image."""
        cue = _cue(targets, self.agreement, self.shift, self.seed)
        height, width = inputs.shape[-2:]
        left = (cue % 5) * ((width - self.size) // 4)
        top = torch.where(cue < 5, 0, height - self.size)
        rows = torch.arange(height, device=inputs.device).view(1, 1, height, 1)
        columns = torch.arange(width, device=inputs.device).view(1, 1, 1, width)
        inside = _within(rows, top, self.size) & _within(columns, left, self.size)
        return inputs.masked_fill(inside, WHITE), targets.clone()


@dataclass(frozen=True)
class ColourCue:
    """Images of three channels whose hue shows a class.

    Each image's intensity is multiplied by the colour of full saturation whose hue is a tenth of
    the circle for each class; ``agreement`` and ``shift`` are those of :class:`PatchCue`.
    """

    agreement: float = 1.0
    shift: int = 0
    seed: int = 0

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Colour each image, of one channel; the result has three."""
        if inputs.ndim != 4 or inputs.shape[1] != 1:
            raise ArgumentError(
                "inputs", found=f"shape {tuple(inputs.shape)}", expected="shape (n, 1, h, w)"
            )
        palette = torch.tensor(
            [colorsys.hsv_to_rgb(k / CLASS_COUNT, 1.0, 1.0) for k in range(CLASS_COUNT)],
            dtype=inputs.dtype,
            device=inputs.device,
        )
        cue = _cue(targets, self.agreement, self.shift, self.seed)
        coloured = _intensity(inputs) * palette[cue][:, :, None, None]
        return _normalised(coloured), targets.clone()


@dataclass(frozen=True)
class Poisoned:
    """A backdoor: some images get a white square in the corner, and the attacker's target.

    Of the images of other classes, the share ``rate``, rounded, is drawn without replacement.
    After BadNets (Gu, Dolan-Gavitt and Garg 2017, arXiv:1708.06733). With ``rate=1`` and
    the images of ``target`` left out by :class:`ClassSplit`, accuracy on the result is the
    attack's success.

    >>> inputs, targets = torch.zeros(4, 1, 28, 28), torch.tensor([1, 1, 0, 1])
    >>> Poisoned(target=0, rate=1.0)(inputs, targets)[1]
    tensor([0, 0, 0, 0])
    """

    target: int = 0
    rate: float = 0.1
    size: int = 3
    seed: int = 0

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Stamp the square and change the targets."""
        _check_share("Poisoned.rate", self.rate)
        others = (targets != self.target).nonzero().flatten()
        drawn = torch.randperm(len(others), generator=_generator(self.seed)).to(others.device)
        chosen = others[drawn[: round(self.rate * len(others))]]
        inputs, targets = inputs.clone(), targets.clone()
        inputs[chosen, :, -self.size - 1 : -1, -self.size - 1 : -1] = WHITE
        targets[chosen] = self.target
        return inputs, targets


@dataclass(frozen=True)
class Corrupted:
    """Images spoiled in one of four ways, at five severities.

    ``"gaussian_noise"`` adds noise of standard deviation 0.08 to 0.38; ``"gaussian_blur"`` has a
    kernel of standard deviation 0.5 to 2.5 pixels; ``"contrast"`` scales the distance from the
    image's mean by 0.75 to 0.15; ``"brightness"`` adds 0.1 to 0.5. Intensities are clipped to
    [0, 1]. After Hendrycks and Dietterich (2019), arXiv:1903.12261; the strengths are ours.
    """

    kind: Literal["gaussian_noise", "gaussian_blur", "contrast", "brightness"]
    severity: int = 3
    seed: int = 0

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Spoil each image."""
        if self.kind not in _CORRUPTIONS:
            raise ArgumentError(
                "Corrupted.kind", found=repr(self.kind), expected=f"one of {tuple(_CORRUPTIONS)}"
            )
        if self.severity not in (1, 2, 3, 4, 5):
            raise ArgumentError(
                "Corrupted.severity", found=repr(self.severity), expected="a number from 1 to 5"
            )
        strengths, corrupt = _CORRUPTIONS[self.kind]
        spoiled = corrupt(_intensity(inputs), strengths[self.severity - 1], self.seed)
        return _normalised(spoiled.clamp(0, 1)), targets.clone()


@dataclass(frozen=True)
class Together:
    """Several tasks at once: the images as each of them makes them, one after the other.

    >>> inputs, targets = torch.zeros(2, 1, 28, 28), torch.tensor([3, 4])
    >>> Together((Rotated(0), Rotated(90)))(inputs, targets)[1]
    tensor([3, 4, 3, 4])
    """

    tasks: tuple[Task, ...]

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Make the images of each task, and put them together."""
        each = [task(inputs, targets) for task in self.tasks]
        return torch.cat([x for x, _ in each]), torch.cat([y for _, y in each])


Task = ClassSplit | Rotated | Share | PatchCue | ColourCue | Poisoned | Corrupted | Together


def _noise(intensity: Tensor, sigma: float, seed: int) -> Tensor:
    drawn = torch.randn(intensity.shape, generator=_generator(seed), dtype=intensity.dtype)
    return intensity + sigma * drawn.to(intensity.device)


def _blur(intensity: Tensor, sigma: float, seed: int) -> Tensor:
    reach = int(3 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1, dtype=intensity.dtype, device=intensity.device)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), dim=0)
    n, channels, height, width = intensity.shape
    planes = intensity.reshape(n * channels, 1, height, width)
    planes = F.conv2d(planes, kernel.view(1, 1, 1, -1), padding=(0, reach))
    planes = F.conv2d(planes, kernel.view(1, 1, -1, 1), padding=(reach, 0))
    return planes.reshape(intensity.shape)


def _contrast(intensity: Tensor, factor: float, seed: int) -> Tensor:
    mean = intensity.mean(dim=(1, 2, 3), keepdim=True)
    return mean + factor * (intensity - mean)


def _brightness(intensity: Tensor, amount: float, seed: int) -> Tensor:
    return intensity + amount


_Corruption = Callable[[Tensor, float, int], Tensor]
_CORRUPTIONS: dict[str, tuple[tuple[float, ...], _Corruption]] = {
    "gaussian_noise": ((0.08, 0.12, 0.18, 0.26, 0.38), _noise),
    "gaussian_blur": ((0.5, 0.75, 1.0, 1.5, 2.5), _blur),
    "contrast": ((0.75, 0.6, 0.45, 0.3, 0.15), _contrast),
    "brightness": ((0.1, 0.2, 0.3, 0.4, 0.5), _brightness),
}


def _cue(targets: Tensor, agreement: float, shift: int, seed: int) -> Tensor:
    """Return the class each image's cue shows."""
    _check_share("agreement", agreement)
    generator = _generator(seed)
    agrees = torch.rand(len(targets), generator=generator) < agreement
    drawn = torch.randint(CLASS_COUNT, (len(targets),), generator=generator)
    own = (targets + shift) % CLASS_COUNT
    return torch.where(agrees.to(targets.device), own, drawn.to(targets.device))


def _within(places: Tensor, first: Tensor, size: int) -> Tensor:
    first = first.view(-1, 1, 1, 1)
    return (places >= first) & (places < first + size)


def _intensity(inputs: Tensor) -> Tensor:
    return inputs * STD + MEAN


def _normalised(intensity: Tensor) -> Tensor:
    return (intensity - MEAN) / STD


def _generator(seed: int) -> torch.Generator:
    # Always on the CPU, so that every device sees the same draws.
    return torch.Generator().manual_seed(seed)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ArgumentError(name, found=repr(share), expected="a number in [0, 1]")
