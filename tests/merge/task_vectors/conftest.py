"""Random models around a random base, shared by the tests of the methods on task vectors."""

from __future__ import annotations

import pytest
import torch

SHAPES = {"0.weight": (6, 5), "0.bias": (6,), "1.weight": (4, 6, 2, 2), "scale": ()}


@pytest.fixture(scope="session")
def fleet():
    """Return a function that makes a base and models: matrices, a convolution, a vector, a counter.

    ``rank`` makes the differences from the base matrices of that rank.
    """

    def make(seed, number=3, *, dtype=torch.float64, device="cpu", rank=None, spread=1.0):
        generator = torch.Generator().manual_seed(seed)

        def noise(shape):
            if rank is None or len(shape) < 2:
                return torch.randn(shape, generator=generator, dtype=torch.float64)
            rows, columns = shape[0], int(torch.tensor(shape[1:]).prod())
            left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
            right = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
            return (left @ right).reshape(shape)

        base = {k: torch.randn(s, generator=generator).double() for k, s in SHAPES.items()}
        models = [{k: t + spread * noise(t.shape) for k, t in base.items()} for _ in range(number)]
        made = [{k: t.to(device, dtype) for k, t in point.items()} for point in (base, *models)]
        for i, point in enumerate(made):
            point["steps"] = torch.tensor(i, device=device)
        return made[0], made[1:]

    return make
