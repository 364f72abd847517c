"""A small network that several files of probes look into."""

from __future__ import annotations

import pytest
from torch import nn
from torch.nn import functional as F


class Small(nn.Module):
    """A convolution whose ReLU is a plain call, BatchNorm, a head, and a layer nobody calls."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)
        self.unused = nn.Linear(1, 1)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="session")
def small_network() -> type[nn.Module]:
    """The class, for a test says itself how its weights are drawn."""
    return Small
