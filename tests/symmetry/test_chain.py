"""The symmetry of a chain is read off the shapes of its layers."""

from __future__ import annotations

import pytest
from torch import nn

from sokmerge.errors import ArgumentError
from sokmerge.symmetry import Axis, Site, chain


def test_one_block_for_each_hidden_layer_with_the_axes_that_move_together():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False),
        nn.Flatten(), nn.Linear(45, 6), nn.LayerNorm(6, bias=False), nn.Linear(6, 2),
    )  # fmt: skip
    conv, second, hidden = chain(net, ["0", "1", "3", "5", "6", "7"]).blocks
    assert (conv.name, conv.size, conv.site) == ("0", 4, Site("3", 1))
    assert conv.axes == (
        Axis("0.weight", 0), Axis("0.bias", 0), Axis("1.weight", 0), Axis("1.bias", 0),
        Axis("1.running_mean", 0, buffer=True), Axis("1.running_var", 0, buffer=True),
        Axis("3.weight", 1),
    )  # fmt: skip
    assert (second.name, second.size, second.site) == ("3", 5, Site("5", -1, repeat=9))
    assert second.axes == (Axis("3.weight", 0), Axis("5.weight", 1, repeat=9))
    assert (hidden.name, hidden.size, hidden.site) == ("5", 6, Site("7", -1))
    assert [a.parameter for a in hidden.axes] == ["5.weight", "5.bias", "6.weight", "7.weight"]


def test_one_layer_alone_has_no_hidden_units():
    assert chain(nn.Sequential(nn.Linear(2, 3)), ["0"]).blocks == ()


@pytest.mark.parametrize(
    ("net", "names", "message"),
    [
        ([nn.Linear(2, 3)], ["head"], "names: found 'head'; expected names of submodules"),
        ([nn.Linear(2, 3), nn.ReLU()], ["0", "1"], "found '1', a ReLU; expected linear layers"),
        ([nn.Conv2d(4, 4, 3, groups=2)], ["0"], "found '0', a Conv2d; .* groups=1"),
        ([nn.Linear(2, 3), nn.Linear(4, 2)], ["0", "1"], "'1' with 4 inputs after '0' with 3"),
        ([nn.Linear(2, 4), nn.Linear(2, 2)], ["0", "1"], "'1' with 2 inputs after '0' with 4"),
        ([nn.Conv2d(1, 2, 3), nn.Conv2d(4, 2, 3)], ["0", "1"], "'1' with 4 inputs after '0'"),
        ([nn.Linear(2, 4), nn.BatchNorm1d(3)], ["0", "1"], r"'1', which normalises \(3,\)"),
        ([nn.BatchNorm1d(3), nn.Linear(3, 3)], ["0", "1"], r"'0', which normalises \(3,\)"),
        ([nn.Linear(2, 4), nn.LayerNorm((2, 2))], ["0", "1"], r"which normalises \(2, 2\)"),
    ],
)
def test_what_is_no_chain_is_named(net, names, message):
    with pytest.raises(ArgumentError, match=message):
        chain(nn.Sequential(*net), names)
