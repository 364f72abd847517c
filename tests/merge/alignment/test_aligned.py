"""Align, average and correct in one call: the same as step by step, and told where it is not."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from sokmerge import merge, params, symmetry
from sokmerge.errors import ArgumentError
from sokmerge.network import Network
from sokmerge.testbed import models

ARCHITECTURES = {
    "mlp": models.MLP(width=6, depth=2),
    "batch": models.ResidualCNN(norm="batch", channels=(4,)),
    "vit": models.TinyViT(patch=14, width=8, depth=1, heads=2),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request):
    """A network with random statistics, the derived group, two points and inputs, in float64."""
    module = models.build(ARCHITECTURES[request.param], seed=1).double()
    generator = torch.Generator().manual_seed(0)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2, generator=generator)
    state = {name: t.detach() for name, t in module.state_dict().items()}
    other = {
        name: t + 0.3 * torch.randn(t.shape, generator=generator, dtype=t.dtype).abs()
        if t.is_floating_point()
        else t
        for name, t in state.items()
    }
    x = torch.randn(12, 1, 28, 28, generator=generator, dtype=torch.float64)
    return request.param, module, symmetry.of(module, x[:1]), state, other, x


def _close(a, b, tolerance=1e-9):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)


def test_a_network_and_its_permuted_copy_make_that_network(case):
    _, module, group, a, _, x = case
    planted = group.sample(seed=2)
    found = merge.aligned(module, [a, group.act(planted, a)], x)
    home = group.invert(planted)
    for block in group.blocks:
        assert torch.equal(found.permutations[0][block.name], torch.arange(block.size))
        assert torch.equal(found.permutations[1][block.name], home[block.name])
    expected = Network(module).state(a, x)
    _close({name: found.params[name] for name in a}, {name: expected[name] for name in a}, 1e-7)
    assert found.stale == ()


def test_it_is_matching_average_and_correction(case):
    name, module, group, a, b, x = case
    found = merge.aligned(module, [a, b], x, group=group, weights=[1, 3], chunk=5)
    matched = group.act(merge.weight_matching(a, b, group).permutation, b)
    average = merge.average([a, matched], weights=[1, 3])
    if name == "batch":  # what is corrected there are the statistics, and nothing else
        assert found.repaired == () and len(found.recalibrated) == 3
        expected = Network(module).state(average, x)
    else:
        assert found.recalibrated == ()
        expected = merge.repair(module, [a, matched], group, x, weights=[1, 3], chunk=5)
        assert {
            "mlp": {"hidden.0", "hidden.1"},
            "vit": {"embed", "norm", *(f"layer.0.{part}" for part in (
                "norm.0", "norm.1", "query", "key", "value", "out", "up", "down"))},
        }[name] == set(found.repaired)  # fmt: skip
    assert found.params.keys() == expected.keys()
    assert all(torch.equal(found.params[key], t) for key, t in expected.items())


def test_with_all_weight_on_one_network_it_is_that_network(case):
    _, module, group, a, b, x = case
    found = merge.aligned(module, [a, b], x, group=group, weights=[1, 0])
    _close({n: found.params[n] for n, _ in module.named_parameters()},
           {n: a[n] for n, _ in module.named_parameters()})  # fmt: skip


def test_without_inputs_it_warns_and_says_what_is_stale(case):
    name, module, group, a, b, x = case
    with pytest.warns(UserWarning) as told:
        found = merge.aligned(module, [a, b], group=group)
    (warning,) = told
    assert warning.filename == __file__
    assert "Pass inputs=" in str(warning.message) and found.stale[0] in str(warning.message)
    what = "statistics of 3 BatchNorm layers" if name == "batch" else "may have lost variance"
    assert what in str(warning.message)
    whole = merge.aligned(module, [a, b], x, group=group)
    assert set(found.stale) == {*whole.repaired, *whole.recalibrated}
    assert (found.repaired, found.recalibrated) == ((), ())
    matched = group.act(found.permutations[1], b)
    expected = merge.average([a, matched])
    assert all(torch.equal(found.params[key], t) for key, t in expected.items())


def test_who_asks_for_no_correction_is_not_warned_of_it(case):
    name, module, group, a, b, x = case
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if name == "batch":
            with pytest.raises(UserWarning, match="BatchNorm"):
                merge.aligned(module, [a, b], group=group, corrected=False)
        else:
            merge.aligned(module, [a, b], group=group, corrected=False)
        found = merge.aligned(module, [a, b], x, group=group, corrected=False)
    assert found.repaired == () and bool(found.recalibrated) == (name == "batch")
    assert bool(found.stale) == (name != "batch")


def test_parameters_alone_are_enough(case):
    name, module, group, a, b, x = case
    ends = [{n: point[n] for n, _ in module.named_parameters()} for point in (a, b)]
    found = merge.aligned(module, ends, x, group=group)
    assert found.params.keys() == (a.keys() if name == "batch" else ends[0].keys())


def test_several_are_each_matched_to_the_first():
    module = models.build(models.MLP(width=8, depth=1))
    theta = params.of(module)
    group = symmetry.of(module, torch.zeros(1, 1, 28, 28))
    copies = [group.act(group.sample(seed), theta) for seed in range(3)]
    x = torch.randn(6, 1, 28, 28)
    for matching in ("weights", "activations"):
        found = merge.aligned(module, [theta, *copies], x, matching=matching)
        assert len(found.permutations) == 4
        _close(found.params, theta, 1e-5)


def test_bad_arguments_are_named():
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    theta, x = params.of(module), torch.zeros(4, 2)
    group = symmetry.of(module, x)
    for error, call in {
        "inputs: found None": lambda: merge.aligned(module, [theta]),
        "inputs: found None; expected examples": lambda: merge.aligned(
            module, [theta], group=group, matching="activations"
        ),
        "matching: found 'luck'": lambda: merge.aligned(module, [theta], x, matching="luck"),
        "inputs: found 1": lambda: merge.aligned(module, [theta], x[:1]),
        "models: found no models": lambda: merge.aligned(module, [], x),
        "weights: ": lambda: merge.aligned(module, [theta], x, weights=[1, 2]),
        "layers: found '2'": lambda: merge.repair(module, [theta], group, x, layers=["2"]),
    }.items():
        with pytest.raises(ArgumentError, match=error):
            call()
