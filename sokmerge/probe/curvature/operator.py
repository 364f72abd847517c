r"""A symmetric matrix that is known by its products with vectors, and the vectors it acts on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, stream

__all__ = ["Layout", "Operator", "of_matrix"]


@dataclass(frozen=True)
class Layout:
    r"""The order in which the entries of named tensors stand in one flat vector.

    Attributes:
        shapes: the shape of each tensor, by name, in the order in which they follow one another.

    >>> layout = Layout({"w": torch.Size((2, 2)), "b": torch.Size((1,))})
    >>> flat = layout.flatten({"b": torch.tensor([5.0]), "w": torch.arange(4.0).view(2, 2)})
    >>> flat, layout.unflatten(flat)["b"]
    (tensor([0., 1., 2., 3., 5.]), tensor([5.]))
    """

    shapes: dict[str, torch.Size]

    @cached_property
    def size(self) -> int:
        """Number of entries of a flat vector."""
        return sum(shape.numel() for shape in self.shapes.values())

    def flatten(self, params: Params) -> Tensor:
        """Return the named tensors of a point or a direction as one vector, shape (size,).

        Raises:
            ArgumentError: a tensor is missing or has another shape.
        """
        for name, shape in self.shapes.items():
            found = tuple(params[name].shape) if name in params else "no such tensor"
            if found != tuple(shape):
                raise ArgumentError(
                    f"params[{name!r}]", found=f"{found}", expected=f"a tensor of shape {shape}"
                )
        return torch.cat([params[name].reshape(-1) for name in self.shapes])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return a flat vector, or several as the rows of (k, size), as named tensors."""
        parts = vector.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        before = vector.shape[:-1]
        return {
            name: part.reshape(*before, *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


@dataclass(frozen=True)
class Operator:
    r"""A symmetric matrix :math:`A` of order n that is known by its products.

    Multiply it with a vector of shape (n,), or with the columns of (n, k), by ``@``.

    Attributes:
        products: takes k vectors as the rows of (k, n) and returns their products as rows.
        layout: which tensors make up a vector, and in which order.
        device, dtype: where and in which precision a vector is expected.
        together: how many vectors one call of ``products`` should get at most.
        gradient: the gradient of the loss at the same point, if it came for free; shape (n,).

    >>> a = of_matrix(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
    >>> a @ torch.tensor([1.0, 0.0])
    tensor([2., 1.])
    """

    products: Callable[[Tensor], Tensor]
    layout: Layout
    device: torch.device
    dtype: torch.dtype
    together: int = 1
    gradient: Tensor | None = None

    @property
    def size(self) -> int:
        """The order n of the matrix."""
        return self.layout.size

    def __matmul__(self, vectors: Tensor) -> Tensor:
        if vectors.dim() not in (1, 2) or vectors.shape[0] != self.size:
            raise ArgumentError(
                "vectors",
                found=f"shape {tuple(vectors.shape)}",
                expected=f"shape ({self.size},) or ({self.size}, k)",
                do="Use operator.layout.flatten(params) to make a vector.",
            )
        if vectors.dim() == 1:
            return self.rows(vectors[None])[0]
        return self.rows(vectors.T).T

    def rows(self, vectors: Tensor) -> Tensor:
        """Return the products with the rows of (k, n), as rows."""
        groups = vectors.split(self.together)
        return torch.cat([self.products(group) for group in groups])

    def noise(self, count: int, key: str, first: int = 0) -> Tensor:
        """Return random vectors with independent standard normal entries.

        Each vector and each tensor has a stream of its own on the CPU, so that a vector depends
        neither on the device nor on how many are drawn, nor an entry on which layers are left out.

        Args:
            count: number of vectors, the rows of the result.
            key: what the numbers are for, the seed included.
            first: number of the first vector in the sequence that the key stands for.
        """

        def drawn(name: str, entries: int, i: int) -> Tensor:
            return torch.randn(entries, generator=stream(f"{key}:{i}:{name}"), dtype=torch.float32)

        sizes = {name: shape.numel() for name, shape in self.layout.shapes.items()}
        rows = [
            torch.cat([drawn(name, entries, i) for name, entries in sizes.items()])
            for i in range(first, first + count)
        ]
        return torch.stack(rows).to(device=self.device, dtype=self.dtype)


def of_matrix(matrix: Tensor) -> Operator:
    """Return a symmetric matrix of numbers as an operator: for toys and for tests.

    Raises:
        ArgumentError: the matrix is not square.
    """
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ArgumentError("matrix", found=f"shape {tuple(matrix.shape)}", expected="(n, n)")
    layout = Layout({"vector": matrix.shape[:1]})
    return Operator(lambda v: v @ matrix, layout, matrix.device, matrix.dtype, together=8)
