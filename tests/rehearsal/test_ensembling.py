"""Ensembling, rehearsed on every network for devices that are not there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

CASES: dict[str, Callable[..., None]] = {}

# (method, network): why the method refuses it.
DOES_NOT_APPLY: dict[tuple[str, str], str] = {}


@pytest.mark.parametrize("name", CASES)
def test_it_runs_where_no_number_is_known(stage, rehearse, name):
    rehearse(CASES[name], stage, DOES_NOT_APPLY.get((name, stage.network)))


def test_every_declared_method_is_rehearsed(declared):
    assert set(CASES) == declared("ensembling")
