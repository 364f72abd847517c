"""What the tests of derived symmetries share: random networks, and the check of a group."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call
from torch.utils import _pytree as pytree


def randomise(module, seed=0):
    """Give a module random parameters, and statistics that are not those of an untrained one."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for name, t in [*module.named_parameters(), *module.named_buffers()]:
            if not t.is_floating_point():
                continue
            noise = torch.rand(t.shape, generator=generator, dtype=t.dtype) * 2 - 1
            if name.endswith("running_var"):
                t.copy_(1.25 + noise / 2)
            elif t.dim() <= 1:
                t.copy_(noise / 2 + name.endswith("weight"))
            else:
                t.copy_(noise * (3 / t[0].numel()) ** 0.5)
    return module


def outputs(module, state, inputs):
    with torch.no_grad():
        made = functional_call(module, state, inputs, tie_weights=False)
    return [t for t in pytree.tree_leaves(made) if isinstance(t, torch.Tensor)]


def change(module, before, after, inputs):
    """The largest relative difference between the outputs under two states."""
    pairs = zip(outputs(module, before, inputs), outputs(module, after, inputs), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


@pytest.fixture(name="randomise")
def _randomise():
    return randomise


@pytest.fixture(name="change")
def _change():
    return change
