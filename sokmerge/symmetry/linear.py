r"""Symmetries beyond permutations: units that are rescaled, change sign, or mix.

A unit's preactivation may be multiplied by a number, if what reads the unit divides by it and all
that lies between passes it on. Positive numbers pass a ReLU, :math:`-1` passes a tanh, and where
nothing but linear maps lies between, as in an attention between queries and keys, whole vectors of
units may be multiplied by any invertible matrix :math:`M`: what makes the units by :math:`M`, what
reads them by :math:`M^{-\top}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params

__all__ = ["Flips", "Mixing", "MixedAxis", "Powers", "Rescaling"]

Array = np.ndarray
Factors = Mapping[str, Tensor]
"""An element: for each block a number for each unit, or a matrix for each set of units."""


@dataclass(frozen=True)
class Powers:
    """How the numbers of units multiply the entries along one axis of a parameter.

    Attributes:
        parameter: name of the parameter.
        dim: which of its dimensions.
        units: for each entry along it the place of its unit in the block, or -1 for none.
        powers: 1 where the unit's number multiplies the entry, -1 where it divides it.
        alias: whether this is a second name of a tied parameter, which Params may lack.
    """

    parameter: str
    dim: int
    units: Array = field(repr=False, compare=False)
    powers: Array = field(repr=False, compare=False)
    alias: bool = False


@dataclass(frozen=True)
class _Diagonal:
    """Blocks of units, each with a number: name, how many units, and the axes they lie along."""

    blocks: tuple[tuple[str, int, tuple[Powers, ...]], ...] = ()

    @property
    def units(self) -> int:
        """How many units have a number of their own."""
        return sum(size for _, size, _ in self.blocks)

    def identity(self) -> dict[str, Tensor]:
        """Return the element that changes nothing."""
        return {name: torch.ones(size, dtype=torch.float64) for name, size, _ in self.blocks}

    def compose(self, p: Factors, q: Factors) -> dict[str, Tensor]:
        """Return the element that acts as q first and p next."""
        return {name: p[name] * q[name] for name, _, _ in self.blocks}

    def invert(self, p: Factors) -> dict[str, Tensor]:
        """Return the element that undoes p."""
        return {name: 1 / p[name] for name, _, _ in self.blocks}

    def act(self, element: Factors, params: Params) -> dict[str, Tensor]:
        """Return the parameters of the network whose units are multiplied by their numbers.

        Raises:
            ArgumentError: a block is missing, or does not fit the parameters or this group.
        """
        moved = dict(params)
        for name, size, axes in self.blocks:
            factors = _required(element, name, (size,)).double()
            self._require_values(name, factors)
            for axis in axes:
                if axis.alias and axis.parameter not in moved:
                    continue
                tensor = _fitting(moved, axis.parameter, axis.dim, len(axis.units), name)
                units = torch.from_numpy(axis.units).to(factors.device)
                powers = torch.from_numpy(axis.powers).to(factors)
                line = torch.where(units >= 0, factors[units.clamp(min=0)] ** powers, 1.0)
                shape = [-1 if d == axis.dim else 1 for d in range(tensor.dim())]
                line = line.to(tensor.device, tensor.dtype).view(shape)
                moved[axis.parameter] = tensor * line
        return moved

    def _require_values(self, name: str, factors: Tensor) -> None:
        raise NotImplementedError


class Rescaling(_Diagonal):
    r"""Positive numbers: :math:`\operatorname{relu}(s\,z)=s\operatorname{relu}(z)` for s > 0.

    What makes a unit is multiplied by s, what reads it is divided by s. So it is for all that is
    positively homogeneous, such as ReLU, leaky ReLU, pooling by the maximum, and linear maps.

    >>> from torch import nn
    >>> from sokmerge import symmetry
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> group, x = symmetry.of(net, torch.zeros(1, 2)).rescaling, torch.ones(1, 2)
    >>> moved = group.act({"0": torch.tensor([2.0, 0.5, 4.0])}, dict(net.named_parameters()))
    >>> torch.allclose(torch.func.functional_call(net, moved, (x,)), net(x))
    True
    """

    def sample(self, seed: int) -> dict[str, Tensor]:
        """Return an element: numbers between 1/2 and 2, their logarithms drawn uniformly."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: 2 ** (2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1)
            for name, size, _ in self.blocks
        }

    def _require_values(self, name: str, factors: Tensor) -> None:
        if not bool((factors > 0).all()):
            raise ArgumentError(
                f"element[{name!r}]", found="a number that is not positive", expected="positive"
            )


class Flips(_Diagonal):
    r"""Signs: :math:`\tanh(-z)=-\tanh(z)`, and so for all that is odd, and for linear maps.

    >>> from torch import nn
    >>> from sokmerge import symmetry
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> symmetry.of(net, torch.zeros(1, 2)).flips.units
    3
    """

    def sample(self, seed: int) -> dict[str, Tensor]:
        """Return an element drawn uniformly."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: 2.0 * torch.randint(0, 2, (size,), generator=generator).double() - 1
            for name, size, _ in self.blocks
        }

    def _require_values(self, name: str, factors: Tensor) -> None:
        if not bool((factors.abs() == 1).all()):
            raise ArgumentError(
                f"element[{name!r}]", found="numbers other than 1 and -1", expected="signs"
            )


@dataclass(frozen=True)
class MixedAxis:
    """Where sets of units lie along one axis of a parameter.

    Attributes:
        parameter: name of the parameter.
        dim: which of its dimensions.
        places: the entries along it, shape (sets, size).
        reads: whether the units are read along this axis, rather than made.
        alias: whether this is a second name of a tied parameter, which Params may lack.
    """

    parameter: str
    dim: int
    places: Array = field(repr=False, compare=False)
    reads: bool = False
    alias: bool = False


@dataclass(frozen=True)
class Mixing:
    r"""Invertible matrices, one for each set of units between which only linear maps lie.

    The channels of a head are such sets: queries :math:`q\mapsto Mq` and keys
    :math:`k\mapsto M^{-\top}k` have the same products, and values :math:`v\mapsto Mv` are read by
    columns of the output layer times :math:`M^{-1}`. With an orthogonal M it is a rotation.

    Attributes:
        blocks: name, number of sets, units in each, and the axes that they lie along.

    >>> from torch import nn
    >>> from sokmerge import symmetry
    >>> net = nn.MultiheadAttention(6, 2, batch_first=True)
    >>> x = torch.zeros(1, 4, 6)
    >>> group = symmetry.of(net, (x, x, x)).mixing
    >>> [(count, size) for _, count, size, _ in group.blocks]  # queries with keys, and values
    [(2, 3), (2, 3)]
    """

    blocks: tuple[tuple[str, int, int, tuple[MixedAxis, ...]], ...] = ()

    @property
    def units(self) -> int:
        """How many units may be mixed with others."""
        return sum(count * size for _, count, size, _ in self.blocks)

    def identity(self) -> dict[str, Tensor]:
        """Return the element that changes nothing."""
        return {
            name: torch.eye(size, dtype=torch.float64).repeat(count, 1, 1)
            for name, count, size, _ in self.blocks
        }

    def sample(self, seed: int, *, orthogonal: bool = False) -> dict[str, Tensor]:
        """Return an element: random rotations; times a random stretch by up to 2, if not so."""
        generator = torch.Generator().manual_seed(seed)

        def rotations(count: int, size: int) -> Tensor:
            drawn = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
            q, r = torch.linalg.qr(drawn)
            return q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]

        found = {}
        for name, count, size, _ in self.blocks:
            found[name] = rotations(count, size)
            if not orthogonal:
                u = torch.rand(count, 1, size, generator=generator, dtype=torch.float64)
                found[name] = found[name] * 2 ** (2 * u - 1) @ rotations(count, size)
        return found

    def compose(self, p: Factors, q: Factors) -> dict[str, Tensor]:
        """Return the element that acts as q first and p next."""
        return {name: p[name] @ q[name] for name, *_ in self.blocks}

    def invert(self, p: Factors) -> dict[str, Tensor]:
        """Return the element that undoes p."""
        return {name: torch.linalg.inv(p[name]) for name, *_ in self.blocks}

    def act(self, element: Factors, params: Params) -> dict[str, Tensor]:
        """Return the parameters of the network whose units are mixed.

        Raises:
            ArgumentError: a block is missing, or does not fit the parameters or this group.
        """
        moved = dict(params)
        for name, count, size, axes in self.blocks:
            make = _required(element, name, (count, size, size)).double()
            read = torch.linalg.inv(make).mT
            for axis in axes:
                if axis.alias and axis.parameter not in moved:
                    continue
                least = int(axis.places.max()) + 1
                tensor = _fitting(moved, axis.parameter, axis.dim, least, name, exact=False)
                first = tensor.movedim(axis.dim, 0)
                places = torch.from_numpy(axis.places).to(tensor.device)
                rows = first[places.flatten()].double().view(count, size, -1)
                mixed = (read if axis.reads else make).to(tensor.device) @ rows
                mixed = mixed.view(count * size, *first.shape[1:]).to(tensor.dtype)
                first = first.index_copy(0, places.flatten(), mixed)
                moved[axis.parameter] = first.movedim(0, axis.dim)
        return moved


def _required(element: Factors, name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in element or tuple(element[name].shape) != shape:
        found = f"shape {tuple(element[name].shape)}" if name in element else "no entry"
        raise ArgumentError(f"element[{name!r}]", found=found, expected=f"shape {shape}")
    return element[name]


def _fitting(
    params: Params, name: str, dim: int, length: int, block: str, exact: bool = True
) -> Tensor:
    shape = tuple(params[name].shape) if name in params else None
    fits = shape is not None and dim < len(shape)
    if not fits or (shape[dim] != length if exact else shape[dim] < length):
        raise ArgumentError(
            f"params[{name!r}]",
            found="nothing" if shape is None else f"shape {shape}",
            expected=f"{length} entries along dimension {dim}, for block {block!r}",
            do="The group belongs to another architecture.",
        )
    return params[name]
