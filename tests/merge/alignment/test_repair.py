"""REPAIR, TACT and the loss of variance, against statistics taken independently."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.func import functional_call

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import average, repair, tact, variance_ratio
from sokmerge.network import Network
from sokmerge.symmetry import Axis, Block, PermutationGroup, chain
from sokmerge.testbed import models

seeds = st.integers(0, 2**31)


def _mlp():
    module = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(),
                           nn.Linear(7, 3)).double().eval()  # fmt: skip
    return module, chain(module, ["0", "2", "4"]), (60, 5)


def _cnn():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(20, 3),
    ).double().eval()  # fmt: skip
    return module, chain(module, ["0", "2", "6"]), (30, 1, 8, 8)


MAKERS = {"mlp": _mlp, "cnn": _cnn}


def _point(module, seed):
    return params.normal_like(params.of(module), seed)


def _inputs(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _statistics(module, point, inputs, layer):
    """Mean and deviation of each unit of a layer of a plain sequence, computed directly."""
    x = inputs
    for index, part in enumerate(module):
        own = {k.split(".")[1]: t for k, t in point.items() if k.startswith(f"{index}.")}
        x = functional_call(part, own, (x,))
        if str(index) == layer:
            rows = x.movedim(1, -1).flatten(0, -2)
            return rows.mean(0), rows.std(0, correction=0)
    raise AssertionError(layer)


def _close(a, b, tolerance=1e-9):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MAKERS)
@given(seed=seeds, weights=st.sampled_from([(1, 1), (1, 3), (1, 0)]), chunk=st.integers(1, 70))
@settings(max_examples=4)
def test_means_and_deviations_are_the_interpolated_ones(name, seed, weights, chunk):
    module, group, shape = MAKERS[name]()
    a, b, x = _point(module, seed), _point(module, seed + 1), _inputs(shape)
    merged = repair(module, [a, b], group, x, weights=weights, chunk=chunk)
    share = weights[0] / sum(weights)
    for block in group.blocks:
        found = _statistics(module, merged, x, block.name)
        ends = [_statistics(module, point, x, block.name) for point in (a, b)]
        for k in (0, 1):
            expected = share * ends[0][k] + (1 - share) * ends[1][k]
            torch.testing.assert_close(found[k], expected, rtol=1e-7, atol=1e-7)
    plain = average([a, b], weights=weights)
    head = next(reversed(plain))
    assert torch.equal(merged[head], plain[head])  # the outputs are no hidden units


@pytest.mark.parametrize("name", MAKERS)
@given(seed=seeds)
@settings(max_examples=4)
def test_at_its_ends_and_between_equal_networks_it_changes_nothing(name, seed):
    module, group, shape = MAKERS[name]()
    a, b, x = _point(module, seed), _point(module, seed + 1), _inputs(shape)
    _close(repair(module, [a, b], group, x, weights=[1, 0]), a)
    _close(repair(module, [a, b], group, x, weights=[0, 1]), b)
    _close(repair(module, [a, a], group, x), a)


def test_it_does_not_matter_who_is_named_first_and_nothing_given_is_changed():
    module, group, shape = _mlp()
    points, x = [_point(module, seed) for seed in range(3)], _inputs(shape)
    kept = [{name: t.clone() for name, t in p.items()} for p in points]
    merged = repair(module, points, group, x, weights=[1, 2, 3])
    _close(merged, repair(module, points[::-1], group, x, weights=[3, 2, 1]))
    for point, copy in zip(points, kept, strict=True):
        assert all(torch.equal(point[name], copy[name]) for name in copy)


def test_a_unit_that_never_varies_is_shifted_only():
    module, group, shape = _mlp()
    a, b, x = _point(module, 0), _point(module, 1), _inputs(shape)
    b["0.weight"][2], a["0.bias"][2], b["0.bias"][2] = -a["0.weight"][2], 0.5, 1.5
    merged = repair(module, [a, b], group, x)
    assert bool((merged["0.weight"][2].abs() < 1e-12).all())
    means = [_statistics(module, point, x, "0")[0][2] for point in (a, b)]
    assert float(merged["0.bias"][2]) == pytest.approx(float(sum(means)) / 2)


def test_another_merge_than_the_average_can_be_corrected():
    module, group, shape = _mlp()
    a, b, c = (_point(module, seed) for seed in range(3))
    x = _inputs(shape)
    merged = repair(module, [a, b], group, x, merged=c)
    mean, deviation = _statistics(module, merged, x, "2")
    expected = [_statistics(module, point, x, "2") for point in (a, b)]
    torch.testing.assert_close(deviation, (expected[0][1] + expected[1][1]) / 2)
    torch.testing.assert_close(mean, (expected[0][0] + expected[1][0]) / 2)
    assert torch.equal(merged["4.weight"], c["4.weight"])


def _residual(norm):
    """A residual network of the testbed, with the units inside its second block."""
    module = models.build(models.ResidualCNN(norm=norm, channels=(4, 6))).double()
    axes = [Axis("block.1.conv.0.weight", 0), Axis("block.1.conv.1.weight", 1)]
    axes += [Axis(f"block.1.norm.0.{name}", 0) for name in ("weight", "bias")]
    return module, PermutationGroup((Block("block.1.conv.0", 6, tuple(axes)),))


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_normalisation_with_an_affine_map_is_corrected_like_a_layer(norm):
    module, group = _residual(norm)
    a, b = (_point(module, seed) for seed in (0, 1))
    x, seen = _inputs((12, 1, 28, 28)), {}
    points = {"a": a, "b": b, "merged": repair(module, [a, b], group, x)}
    _close(repair(module, [a, b], group, x, weights=[1, 0]), a)
    network = Network(module)
    for name, point in points.items():
        part = network.skeleton.get_submodule("block.1.norm.0")
        handle = part.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
        network(network.state(point, x), x)
        handle.remove()
    spreads = {name: out.transpose(0, 1).flatten(1).std(1) for name, out in seen.items()}
    expected = (spreads["a"] + spreads["b"]) / 2
    torch.testing.assert_close(spreads["merged"], expected, rtol=1e-6, atol=1e-9)


# --- TACT -------------------------------------------------------------------------------------


def test_each_task_gets_the_statistics_of_its_expert():
    module, group, shape = _mlp()
    experts, tasks = [_point(module, s) for s in (0, 1)], [_inputs(shape), 2 + _inputs(shape, 1)]
    for expert, x, merged in zip(experts, tasks, tact(module, experts, group, tasks), strict=True):
        for layer in ("0", "2"):
            found, expected = (_statistics(module, p, x, layer) for p in (merged, expert))
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


def test_with_equal_experts_nothing_happens_and_a_merge_can_be_given():
    module, group, shape = _cnn()
    a, b, x = _point(module, 0), _point(module, 1), _inputs(shape)
    for merged in tact(module, [a, a], group, [x, x + 1]):
        _close(merged, a)
    given_one, _ = tact(module, [a, b], group, [x, x], merged=a)
    _close(given_one, a)


def test_bad_arguments_of_both_are_named():
    module, group, shape = _mlp()
    a, x = _point(module, 0), _inputs(shape)
    with pytest.raises(ArgumentError, match="inputs: found 1 for 2 models"):
        tact(module, [a, a], group, [x])
    for call in (
        lambda x: repair(module, [a, a], group, x),
        lambda x: tact(module, [a], group, [x]),
    ):
        with pytest.raises(ArgumentError, match="inputs: found 1; expected at least 2 examples"):
            call(x[:1])
    with pytest.raises(ArgumentError, match="merged: found keys missing"):
        repair(module, [a, a], group, x, merged={})
    with pytest.raises(ArgumentError, match="weights"):
        repair(module, [a, a], group, x, weights=[-1, 2])


# --- the loss of variance ---------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_variance_ratios_against_a_direct_computation(name):
    module, group, shape = MAKERS[name]()
    a, b, x = _point(module, 0), _point(module, 1), _inputs(shape)
    middle = params.lerp(a, b, 0.5)
    found = variance_ratio(module, a, b, group, x, chunk=7)
    assert [each.layer for each in found] == [block.name for block in group.blocks]
    for each in found:
        ends = [_statistics(module, p, x, each.layer)[1].square().sum() for p in (a, b)]
        of_middle = _statistics(module, middle, x, each.layer)[1].square().sum()
        assert each.measured == pytest.approx(float(2 * of_middle / sum(ends)), rel=1e-9)
        assert each.predicted == (1 + each.rho) / 2 and -1 <= each.rho <= 1
    assert found[0].measured == pytest.approx(found[0].predicted, rel=1e-9)
    assert found[1].measured != pytest.approx(found[1].predicted, rel=1e-2)


def test_known_correlations_give_known_ratios():
    module, group, shape = _mlp()
    a, x = _point(module, 0), _inputs(shape)
    (first, *rest) = variance_ratio(module, a, a, group, x)
    for each in (first, *rest):
        assert (each.rho, each.measured) == (pytest.approx(1), pytest.approx(1))
    opposite = {name: -t for name, t in a.items()}
    first = variance_ratio(module, a, opposite, group, x)[0]
    assert first.rho == pytest.approx(-1) and first.measured == pytest.approx(0, abs=1e-12)
    # Inputs in two independent halves, each read by one network: no correlation at all.
    left, right = dict(a), dict(a)
    left["0.weight"], right["0.weight"] = torch.zeros(8, 5).double(), torch.zeros(8, 5).double()
    left["0.weight"][:, 0] = right["0.weight"][:, 1] = 1.0
    signs = torch.tensor([[1, 1, 0, 0, 0], [1, -1, 0, 0, 0], [-1, 1, 0, 0, 0], [-1, -1, 0, 0, 0]])
    first = variance_ratio(module, left, right, group, signs.double())[0]
    assert first.rho == pytest.approx(0, abs=1e-12) and first.measured == pytest.approx(0.5)


def test_variance_ratio_names_a_block_without_a_layer():
    module, group, shape = _mlp()
    a = _point(module, 0)
    renamed = PermutationGroup((Block("units", 8, group.blocks[0].axes),))
    with pytest.raises(ArgumentError, match="group: found block 'units'"):
        variance_ratio(module, a, a, renamed, _inputs(shape))
