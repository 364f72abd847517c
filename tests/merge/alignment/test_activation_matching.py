"""Activation matching against a direct computation with numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.func import functional_call

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import activation_matching
from sokmerge.merge.alignment.activation_matching import _Moments
from sokmerge.network import Network
from sokmerge.probe import EmpiricalRisk, barrier
from sokmerge.symmetry import Axis, Block, PermutationGroup, Site, chain
from sokmerge.testbed import models

SIMILARITIES = ["inner product", "correlation"]


def _cnn():
    """Two convolutions, the second read through a flattening of 3 x 3 places, and an MLP."""
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(45, 7), nn.ReLU(), nn.Linear(7, 3),
    ).eval()  # fmt: skip
    return module, chain(module, ["0", "2", "6", "8"])


def _batchnorm_cnn():
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5),
        nn.ReLU(), nn.Flatten(), nn.Linear(180, 3),
    ).eval()  # fmt: skip
    return module, chain(module, ["0", "1", "3", "4", "7"])


def _random(module, seed):
    """A point at which every unit is on for some inputs: those that never are cannot be matched."""
    noise = params.normal_like(params.of(module), seed)
    return {
        name: tensor.abs() / 4
        if tensor.dim() == 1
        else (tensor - tensor.flatten(1).mean(1).view(-1, *[1] * (tensor.dim() - 1)))
        / tensor[0].numel() ** 0.5
        for name, tensor in noise.items()
    }


def _inputs(n=30, seed=0):
    return torch.randn(n, 1, 10, 10, generator=torch.Generator().manual_seed(seed))


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _activations(module, point, inputs):
    """What the blocks of ``_cnn`` present to their readers, a unit a column, layer by layer."""
    with torch.no_grad():
        result, x = {}, inputs
        for index, layer in enumerate(module):
            own = {k.split(".")[1]: t for k, t in point.items() if k.startswith(f"{index}.")}
            x = functional_call(layer, own, (x,))
            if index in (1, 4, 7):
                block = {1: "0", 4: "2", 7: "6"}[index]
                places_last = x if x.dim() == 2 else x.permute(0, 2, 3, 1)
                result[block] = places_last.reshape(-1, places_last.shape[-1]).double().numpy()
    return result


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("chunk", [7, 1000])
def test_it_agrees_with_numpy(similarity, chunk):
    module, group = _cnn()
    a, b, inputs = _random(module, 1), _random(module, 2), _inputs()
    found = activation_matching(module, a, b, group, inputs, similarity=similarity, chunk=chunk)
    z_a, z_b = _activations(module, a, inputs), _activations(module, b, inputs)
    reached = 0.0
    for name in ("0", "2", "6"):
        if similarity == "correlation":
            size = z_a[name].shape[1]
            with np.errstate(invalid="ignore", divide="ignore"):
                scores = np.corrcoef(z_a[name], z_b[name], rowvar=False)[:size, size:]
            scores = np.nan_to_num(scores, nan=0.0)
        else:
            scores = z_a[name].T @ z_b[name]
        rows, columns = linear_sum_assignment(scores, maximize=True)
        assert found.permutation[name].tolist() == columns.tolist()
        reached += scores[rows, columns].sum()
    assert found.similarity == pytest.approx(reached, rel=1e-5)
    assert found.passes == 1


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [_cnn, _batchnorm_cnn])
def test_a_planted_permutation_is_recovered_exactly(make, seed, similarity, device):
    module, group = make()
    a = params.to(_random(module, seed), device=device)
    planted = group.sample(seed)
    b, inputs = group.act(planted, a), _inputs(60).to(device)
    module = module.to(device)
    found = activation_matching(module, a, b, group, inputs, similarity=similarity)
    aligned = group.act(found.permutation, b)
    assert _same(found.permutation, group.invert(planted)) and _same(aligned, a)
    network = Network(module)
    labels = network(network.state(a, inputs), inputs).argmax(1)  # a is right everywhere
    risk = EmpiricalRisk(module, inputs, labels)
    assert barrier(risk, a, aligned, points=5).loss == 0


def test_the_testbed_networks_too():
    arch = models.MLP(width=24, depth=3)
    module = models.build(arch)
    group = chain(module, models.chain(arch))
    a, planted = params.of(module), group.sample(0)
    inputs = torch.randn(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = activation_matching(module, a, group.act(planted, a), group, inputs)
    assert _same(found.permutation, group.invert(planted))


def test_a_unit_that_never_varies_is_correlated_with_nothing():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    group = chain(module, ["0", "2"])
    inputs = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    a = _random(module, 0)
    b = {k: t.clone() for k, t in a.items()}
    for point, unit, bias in ((a, 0, 0.1), (a, 1, -1.0), (b, 3, 7.7)):
        point["0.weight"][unit], point["0.bias"][unit] = 0, bias
    found = activation_matching(module, a, b, group, inputs, similarity="correlation")
    # Units 2 of both are equal; all else is constant on one side or the other, or differs.
    assert int(found.permutation["0"][2]) == 2
    assert 1 <= found.similarity <= 2 and math.isfinite(found.similarity)


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 7.7, 1e-3, 123.456])
def test_rounding_is_not_taken_for_variation(constant):
    """The variance of a constant is not always 0 when it is computed from sums."""
    sums = _Moments()
    varying = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    for chunk in varying.split(77):
        still = torch.full((len(chunk), 1), constant)
        sums.add(torch.cat([chunk[:, :2], still], 1), torch.cat([still, chunk[:, 1:]], 1))
    found = sums.correlation()
    assert not bool(found[2].any()) and not bool(found[:, 0].any())
    assert float(found[1, 1]) == pytest.approx(1, abs=1e-12)


def test_correlation_ignores_how_active_a_unit_is():
    module = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    group = chain(module, ["0", "2"])
    inputs = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    a, planted = _random(module, 3), group.sample(4)
    louder = {**a}
    factor = torch.tensor([100.0, 1e-2, 3.0, 1.0, 30.0, 0.1])
    louder["0.weight"] = a["0.weight"] * factor[:, None]
    louder["0.bias"] = a["0.bias"] * factor
    b = group.act(planted, louder)
    found = activation_matching(module, a, b, group, inputs, similarity="correlation")
    assert _same(found.permutation, group.invert(planted))
    assert found.similarity == pytest.approx(6, abs=1e-5)


def test_batchnorm_statistics_are_those_of_each_network_not_the_modules():
    """The module's own statistics are absurd; nobody asks for them."""
    module, group = _batchnorm_cnn()
    with torch.no_grad():
        module[1].running_mean.fill_(1e6)  # every unit would be switched off
        module[4].running_var.fill_(1e12)
    a, planted = _random(module, 5), group.sample(6)
    found = activation_matching(module, a, group.act(planted, a), group, _inputs())
    assert _same(found.permutation, group.invert(planted))


def test_the_module_is_not_changed():
    module, group = _batchnorm_cnn()
    calls = []
    module[0].register_forward_hook(lambda *_: calls.append(1))
    before = {k: t.clone() for k, t in module.state_dict().items()}
    hooks = {n: (len(m._forward_hooks), len(m._forward_pre_hooks))
             for n, m in module.named_modules()}  # fmt: skip
    activation_matching(module, _random(module, 0), _random(module, 1), group, _inputs())
    with pytest.raises(ArgumentError):  # neither when it fails half-way
        activation_matching(module, _random(module, 0), {}, group, _inputs())
    assert _same(module.state_dict(), before)
    assert hooks == {n: (len(m._forward_hooks), len(m._forward_pre_hooks))
                     for n, m in module.named_modules()}  # fmt: skip
    assert not any(m.training for m in module.modules())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"similarity": "cosine"}, "similarity: found 'cosine'; expected 'inner product' or"),
        ({"chunk": 0}, "chunk: found 0; expected at least one example"),
        ({"inputs": torch.zeros(0, 1, 10, 10)}, "inputs: found 0; expected at least one example"),
        ({"a": {}}, "a: found keys missing"),
        ({"b": {"0.weight": torch.zeros(4, 1, 3, 3)}}, "b: found keys missing"),
    ],
    ids=["similarity", "chunk", "inputs", "a", "b"],
)
def test_a_bad_argument_is_named(change, message):
    module, group = _cnn()
    good = {"a": _random(module, 0), "b": _random(module, 1), "inputs": _inputs(4)}
    with pytest.raises(ArgumentError, match=message):
        activation_matching(module, group=group, **{**good, **change})


def test_networks_of_another_architecture_are_named():
    module, group = _cnn()
    other = nn.Sequential(nn.Conv2d(1, 6, 3), *list(module)[1:2], nn.Conv2d(6, 5, 3),
                          *list(module)[3:]).eval()  # fmt: skip
    theirs = params.of(other)
    with pytest.raises(ArgumentError, match=r"a\['0.weight'\]: found shape \(6, 1, 3, 3\)"):
        activation_matching(module, theirs, theirs, group, _inputs(4))
    with pytest.raises(ArgumentError, match="The group belongs to another architecture"):
        activation_matching(other, theirs, theirs, group, _inputs(4))


def test_a_module_in_training_mode_is_named_by_its_part():
    module, group = _batchnorm_cnn()
    module[4].train()
    a = _random(module, 0)
    with pytest.raises(ArgumentError, match="module: found its part '4' in training mode"):
        activation_matching(module, a, a, group, _inputs(4))
    assert module[4].training


@pytest.mark.parametrize("site", [None, Site("nowhere", -1)])
def test_a_block_that_cannot_be_observed_is_named(site):
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).eval()
    hidden = Block("0", 4, (Axis("0.weight", 0), Axis("0.bias", 0), Axis("1.weight", 1)), site)
    a = params.of(module)
    with pytest.raises(ArgumentError, match="group: found the site .* for block '0'"):
        activation_matching(module, a, a, PermutationGroup((hidden,)), torch.zeros(2, 3))


def test_nan_in_a_network_is_named():
    module, group = _cnn()
    a = _random(module, 0)
    b = {**a, "8.bias": torch.tensor([0.0, math.nan, math.inf])}
    with pytest.raises(ArgumentError, match=r"b\['8.bias'\]: found 2 of 3 entries"):
        activation_matching(module, a, b, group, _inputs(4))
