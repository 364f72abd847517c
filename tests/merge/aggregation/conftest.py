"""Small random networks for the tests of aggregation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def draw_model() -> Callable[..., dict[str, Tensor]]:
    """Draws the parameters of a network with a counter, a different one for each seed."""

    def draw(seed: int, dtype: torch.dtype = torch.float32, device: object = "cpu"):
        generator = torch.Generator().manual_seed(seed)
        shapes = {"w": (3, 4), "b": (3,)}
        made = {k: torch.randn(s, generator=generator).to(device, dtype) for k, s in shapes.items()}
        return {**made, "steps": torch.tensor(seed % 7, device=device)}

    return draw
