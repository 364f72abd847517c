"""Recipes that train in a moment, and a cache of their own for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sokmerge.testbed.models import MLP
from sokmerge.testbed.recipes import FAMILIES, SEEDS, Recipe


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Recipe]:
    """Make a recipe that trains in a moment, with some of its settings changed."""

    def make(family: str = "tiny", seed: int = 0, **changes) -> Recipe:
        settings = {"arch": MLP(width=4, depth=1), "limit": 200, "epochs": 1, "order_seed": seed}
        return Recipe(family, seed=seed, **settings | changes)

    return make


@pytest.fixture
def tiny_family(tiny, monkeypatch) -> tuple[Recipe, ...]:
    """A family called ``tiny``, known to the zoo and to the command line."""
    monkeypatch.setitem(FAMILIES, "tiny", tiny)
    return tuple(tiny(seed=seed) for seed in SEEDS)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache; returns its folder of checkpoints."""
    monkeypatch.setenv("SOKMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"
