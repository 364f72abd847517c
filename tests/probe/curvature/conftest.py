"""Matrices whose spectrum is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor


@pytest.fixture
def symmetric() -> Callable[..., tuple[Tensor, Tensor]]:
    """Return (A, eigenvectors as columns) for given eigenvalues, by a random rotation."""

    def make(
        values: Sequence[float], seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        n = len(values)
        rotation, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
        matrix = rotation @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ rotation.T
        return ((matrix + matrix.T) / 2).to(dtype), rotation.to(dtype)

    return make
