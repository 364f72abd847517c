"""Bytes that are sent, against a count by hand."""

from __future__ import annotations

import pytest
import torch

from sokmerge.errors import ArgumentError
from sokmerge.merge import bytes_communicated


def test_each_client_receives_and_sends_one_copy_in_each_round(draw_model):
    model = draw_model(0)  # 15 entries in float32 and a counter of 8 bytes
    assert bytes_communicated(model, clients=1, rounds=1) == 2 * (15 * 4 + 8)
    assert bytes_communicated(model, clients=3, rounds=5) == 15 * 2 * (15 * 4 + 8)
    assert bytes_communicated(model, clients=3, rounds=0) == 0
    half = {"w": torch.zeros(3, 4, dtype=torch.float16)}
    assert bytes_communicated(half, clients=1, rounds=1) == 48


@pytest.mark.parametrize(("clients", "rounds", "named"), [(0, 1, "clients"), (1, -1, "rounds")])
def test_what_cannot_be_counted_is_refused(clients, rounds, named):
    with pytest.raises(ArgumentError, match=f"^{named}: "):
        bytes_communicated({"w": torch.zeros(1)}, clients=clients, rounds=rounds)
