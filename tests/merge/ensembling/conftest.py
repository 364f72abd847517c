"""Small classifiers with random weights, shared by the tests of the ensembling branch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sokmerge import params


@pytest.fixture(scope="session")
def club():
    """Return a function that makes a network, a base, models around it, and inputs."""

    def make(seed, number=3, *, dtype=torch.float64, device="cpu", norm=False, spread=0.5):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(4, 6), nn.BatchNorm1d(6) if norm else nn.Identity(), nn.ReLU()]
            module = nn.Sequential(*layers, nn.Linear(6, 3)).to(device, dtype).eval()
            base = params.of(module)
            models = [
                {k: t + spread * torch.randn(t.shape).to(device, dtype) for k, t in base.items()}
                for _ in range(number)
            ]
            inputs = torch.randn(16, 4).to(device, dtype)
            targets = torch.randint(3, (16,)).to(device)
        return SimpleNamespace(
            module=module, base=base, models=models, inputs=inputs, targets=targets
        )

    return make


@pytest.fixture(scope="session")
def outputs():
    """Return a function that gives what a network says at a point: an oracle of its own."""

    def at(module, point, inputs):
        return torch.func.functional_call(module, dict(point), (inputs,))

    return at
