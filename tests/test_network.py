"""A module as a pure function: what it computes, its statistics, and that it is left alone."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.network import Network
from sokmerge.testbed import models


def _residual():
    return models.build(models.ResidualCNN(channels=(4, 6, 8)), seed=2)


def _inputs(n=12):
    return torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def _reference(module, point, inputs):
    """The textbook way: load, forget the statistics, one pass in training mode, evaluate."""
    module = copy.deepcopy(module)
    module.load_state_dict(point, strict=False)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative average, so that one batch counts in full
    module.train()
    with torch.no_grad():
        module(inputs)
    return module.eval()


@pytest.mark.parametrize("seed", range(3))
def test_statistics_are_those_of_one_pass_in_training_mode(seed, device):
    module, inputs = _residual().to(device), _inputs().to(device)
    point = params.normal_like(params.of(module), seed)
    expected = _reference(module, point, inputs)
    network = Network(module)
    state = network.state(point, inputs)
    for name, buffer in expected.named_buffers():
        if buffer.is_floating_point():
            torch.testing.assert_close(state[name], buffer, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(network(state, inputs), expected(inputs), rtol=1e-4, atol=1e-4)


def test_statistics_do_not_depend_on_what_they_were():
    module, inputs = _residual(), _inputs()
    point = params.of(module)
    first = Network(module).state(point, inputs)
    with torch.no_grad():
        for buffer in module.buffers():
            buffer.fill_(17)
    second = Network(module).state(point, inputs)
    assert all(torch.equal(first[k], second[k]) for k in first if "running" in k)


def test_statistics_given_with_the_point_are_not_used_and_not_overwritten():
    module, inputs = _residual(), _inputs()
    given = {k: t.clone() for k, t in module.state_dict().items()}
    for name in given:
        if "running" in name:
            given[name].fill_(5)
    before = {k: t.clone() for k, t in given.items()}
    network = Network(module)
    network.require(given=given)
    state = network.state(given, inputs)
    assert all(torch.equal(given[k], before[k]) for k in given)
    alone = network.state(params.of(module), inputs)
    assert all(torch.equal(state[k], alone[k]) for k in alone if "running" in k)


def test_other_buffers_given_with_the_point_take_the_place_of_the_modules():
    module = nn.Linear(1, 1, bias=False).eval()
    module.register_buffer("offset", torch.tensor([1.0]))
    module.register_forward_hook(lambda self, _, output: output + self.offset)
    network = Network(module)
    point = {"weight": torch.tensor([[2.0]])}
    x = torch.ones(1, 1)
    assert float(network(network.state(point, None), x)) == 3
    assert float(network(network.state({**point, "offset": torch.tensor([9.0])}, None), x)) == 11


@pytest.mark.parametrize(
    ("module", "keeps"),
    [
        (nn.Linear(2, 2), False),
        (nn.Sequential(nn.LayerNorm(2), nn.GroupNorm(1, 2)), False),
        (nn.BatchNorm1d(2, track_running_stats=False), False),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), True),
        (nn.Sequential(nn.Sequential(nn.BatchNorm3d(2, affine=False))), True),
    ],
)
def test_only_running_statistics_are_estimated(module, keeps):
    assert Network(module.eval()).keeps_statistics is keeps


def test_dropout_stays_off_while_statistics_are_estimated():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)).eval()
    network, inputs = Network(module), torch.randn(20, 4)
    first, second = (network.state(params.of(module), inputs) for _ in range(2))
    assert torch.equal(first["2.running_mean"], second["2.running_mean"])


def test_shared_parameters_stay_shared():
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).eval()
    module[1].weight = module[0].weight
    network = Network(module)
    assert network.parameters.keys() == {"0.weight"}
    doubled = {"0.weight": 2 * torch.eye(3)}
    assert torch.equal(network(doubled, torch.ones(1, 3)), torch.full((1, 3), 4.0))


def test_the_module_is_left_alone_and_later_changes_to_it_have_no_effect():
    module, inputs = _residual(), _inputs()
    before = {k: t.clone() for k, t in module.state_dict().items()}
    memory = {k: t.data_ptr() for k, t in module.state_dict().items()}
    network = Network(module)
    point = params.of(module)
    outputs = network(network.state(point, inputs), inputs)
    assert {k: t.data_ptr() for k, t in module.state_dict().items()} == memory
    assert all(torch.equal(t, before[k]) for k, t in module.state_dict().items())
    assert not any(m.training for m in module.modules())
    assert all(m.momentum == 0.1 for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    module.train()(inputs)  # which moves its statistics
    module.block = nn.ModuleList()
    assert all(not torch.equal(b, network.buffers[k]) for k, b in module.named_buffers())
    assert torch.equal(network(network.state(point, inputs), inputs), outputs)


def test_the_skeleton_takes_no_memory():
    skeleton = Network(_residual()).skeleton
    assert all(t.is_meta for t in (*skeleton.parameters(), *skeleton.buffers()))


# --- refusals ---------------------------------------------------------------------------------


def test_training_mode_is_named_with_the_part():
    module = _residual()
    module.block[1].train()
    with pytest.raises(ArgumentError, match="module: found its part 'block.1' in training mode"):
        Network(module)
    with pytest.raises(ArgumentError, match="module: found a module in training mode"):
        Network(_residual().train())


def test_what_does_not_belong_to_the_network_is_named():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    network, good = Network(module), params.of(module)
    network.require(a=good)
    bad = {
        "keys missing": {k: t for k, t in good.items() if k != "0.bias"},
        "unknown": {**good, "2.weight": torch.zeros(1)},
        "shape": {**good, "0.bias": torch.zeros(4)},
        "dtype": params.to(good, dtype=torch.float64),
        "on meta": params.to(good, device="meta"),
        "NaN or infinite": {**good, "0.bias": torch.tensor([0, math.nan, 1])},
    }
    for message, point in bad.items():
        with pytest.raises(ArgumentError, match=message) as caught:
            network.require(a=good, b=point)
        assert caught.value.subject.startswith("b")
    with pytest.raises(ArgumentError, match=r"b\['1.running_mean'\]: found shape \(4,\)"):
        network.require(a=good, b={**good, "1.running_mean": torch.zeros(4)})
    with pytest.raises(ArgumentError, match=r"b: found .* unknown \['1.running_mean'\]"):
        network.require(a=good, b={**good, "1.running_mean": torch.zeros(3)})
