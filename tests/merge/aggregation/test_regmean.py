"""RegMean against least squares on the pooled data."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation import average, gram_matrices, regmean

seeds = st.integers(0, 2**31)


def _regressions(seed, features=5, outputs=3, counts=(20, 30, 9), dtype=torch.float64):
    """Data of several sites and the least-squares fit of each, as parameters of a linear layer."""
    generator = torch.Generator().manual_seed(seed)
    data, fits = [], []
    for n in counts:
        x = torch.randn(n, features, generator=generator, dtype=dtype)
        y = torch.randn(n, outputs, generator=generator, dtype=dtype)
        data.append((x, y))
        fits.append({"weight": torch.linalg.lstsq(x, y).solution.T})
    return data, fits


def _linear(features=5, outputs=3, dtype=torch.float64):
    return nn.Linear(features, outputs, bias=False, dtype=dtype).eval()


@given(seed=seeds)
@settings(max_examples=25)
def test_it_is_the_fit_to_the_pooled_data(seed):
    data, fits = _regressions(seed)
    grams = [gram_matrices(_linear(), f, x) for f, (x, _) in zip(fits, data, strict=True)]
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    pooled = torch.linalg.lstsq(x, y).solution.T
    merged = regmean(fits, grams=grams, scale=1)
    torch.testing.assert_close(merged["weight"], pooled, rtol=1e-8, atol=1e-8)
    for order in itertools.permutations(range(3)):
        other = regmean([fits[i] for i in order], grams=[grams[i] for i in order], scale=1)
        torch.testing.assert_close(other["weight"], pooled, rtol=1e-8, atol=1e-8)


def test_weights_count_like_repeated_data():
    data, fits = _regressions(0)
    grams = [gram_matrices(_linear(), f, x) for f, (x, _) in zip(fits, data, strict=True)]
    x, y = (torch.cat([d[k] for d, n in zip(data, (2, 1, 3), strict=True) for _ in range(n)])
            for k in (0, 1))  # fmt: skip
    merged = regmean(fits, grams=grams, scale=1, weights=[2, 1, 3])
    expected = torch.linalg.lstsq(x, y).solution.T
    torch.testing.assert_close(merged["weight"], expected, rtol=1e-8, atol=1e-8)


@given(seed=seeds, scale=st.floats(0, 1), weight=st.floats(0.1, 10))
@settings(max_examples=25)
def test_equal_gram_matrices_give_the_average(seed, scale, weight):
    data, fits = _regressions(seed)
    gram, weights = gram_matrices(_linear(), fits[0], data[0][0]), [1, weight, 2]
    merged = regmean(fits, grams=[gram] * 3, weights=weights, scale=scale)
    expected = average(fits, weights=weights)["weight"]
    torch.testing.assert_close(merged["weight"], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(seed=seeds, number=st.integers(1, 5))
@settings(max_examples=25)
def test_of_copies_it_is_the_copy(dtype, seed, number):
    data, fits = _regressions(seed)
    copy = params.to(fits[0], dtype=dtype)
    grams = [gram_matrices(_linear(), fits[0], data[i % 3][0]) for i in range(number)]
    merged = regmean([copy] * number, grams=grams)["weight"]
    assert merged.dtype == dtype
    torch.testing.assert_close(merged, copy["weight"], rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_the_shrinkage_is_that_of_the_formula():
    data, fits = _regressions(1)
    grams = [gram_matrices(_linear(), f, x) for f, (x, _) in zip(fits, data, strict=True)]
    shrunk = [0.9 * g["weight"] + 0.1 * g["weight"].diag().diag() for g in grams]
    pull = sum(g @ f["weight"].T for g, f in zip(shrunk, fits, strict=True))
    expected = torch.linalg.solve(sum(shrunk), pull).T
    torch.testing.assert_close(regmean(fits, grams=grams)["weight"], expected)
    diagonal = torch.stack([g["weight"].diag() for g in grams])[:, None]
    apart = (diagonal * torch.stack([f["weight"] for f in fits])).sum(0) / diagonal.sum(0)
    torch.testing.assert_close(regmean(fits, grams=grams, scale=0)["weight"], apart)


@pytest.mark.parametrize("scale", [0.9, 1])
def test_what_no_data_determines_is_averaged(scale):
    data, fits = _regressions(2)
    inputs = [torch.cat([x[:, :4], torch.zeros(len(x), 1)], 1) for x, _ in data]
    grams = [gram_matrices(_linear(), f, x) for f, x in zip(fits, inputs, strict=True)]
    merged = regmean(fits, grams=grams, scale=scale)["weight"]
    torch.testing.assert_close(merged[:, 4], average(fits)["weight"][:, 4])
    live = [{"weight": g["weight"][:4, :4]} for g in grams]
    part = regmean([{"weight": f["weight"][:, :4]} for f in fits], grams=live, scale=scale)
    torch.testing.assert_close(merged[:, :4], part["weight"])


def test_the_statistic_of_a_network(device):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4),
        nn.ReLU(), nn.Linear(4, 3),
    ).eval().to(device)  # fmt: skip
    x, theta = torch.randn(11, 1, 5, 5, device=device), params.of(net)
    grams = gram_matrices(net, theta, x, chunk=4)
    assert grams.keys() == {"4.weight", "6.weight"}
    with torch.no_grad():
        maps = net[0](x)
        seen = nn.functional.batch_norm(maps, None, None, net[1].weight, net[1].bias, True)
        variance, count = maps.var((0, 2, 3), keepdim=True), maps.numel() / 2
        assert count == 99 and variance.shape == (1, 2, 1, 1)
        ratio = (maps.var((0, 2, 3), correction=0, keepdim=True) + 1e-5) / (variance + 1e-5)
        rows = (seen * ratio.sqrt()).relu().flatten(1)
        last = net[4](rows).relu()
    for key, z in (("4.weight", rows), ("6.weight", last)):
        expected = params.wide(z).T @ params.wide(z)
        torch.testing.assert_close(grams[key], expected, rtol=1e-4, atol=1e-4)
    points = [theta, params.normal_like(theta, 1)]
    merged = regmean(points, grams=[grams, gram_matrices(net, points[1], x)])
    for key, tensor in average(points).items():
        assert merged[key].shape == tensor.shape
        assert torch.equal(merged[key], tensor) == (key not in grams)


def test_places_of_a_sequence_are_rows_and_a_shared_weight_has_one_name():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    net, x = Twice().eval(), torch.randn(5, 7, 3)
    theta = params.of(net)
    first = x.flatten(0, 1).double()
    second = (x @ theta["a.weight"].T).flatten(0, 1).double()
    grams = gram_matrices(net, theta, x)
    assert list(grams) == ["a.weight"]
    torch.testing.assert_close(
        grams["a.weight"], first.T @ first + second.T @ second, rtol=1e-5, atol=1e-5
    )


def test_wrong_arguments_are_named():
    data, fits = _regressions(3)
    net, x = _linear(), data[0][0]
    gram = gram_matrices(net, fits[0], x)
    with pytest.raises(ArgumentError, match="grams: found 1 statistics for 3 models"):
        regmean(fits, grams=[gram])
    with pytest.raises(ArgumentError, match=r"grams\[0\]: found an entry 'other'"):
        regmean(fits[:1], grams=[{"other": gram["weight"]}])
    with pytest.raises(ArgumentError, match=r"grams\[0\]\['weight'\]: found shape \(3, 5\) for"):
        regmean(fits[:1], grams=[{"weight": fits[0]["weight"]}])
    for scale in (-0.1, 1.1, math.nan):
        with pytest.raises(ArgumentError, match=f"scale: found {scale}; expected a number from 0"):
            regmean(fits, grams=[gram] * 3, scale=scale)
    with pytest.raises(ArgumentError, match="inputs: found 0; expected at least one example"):
        gram_matrices(net, fits[0], x[:0])
    with pytest.raises(ArgumentError, match=r"module: found no nn.Linear that is called"):
        conv = nn.Conv2d(1, 1, 1).eval()
        gram_matrices(conv, params.of(conv), torch.ones(1, 1, 2, 2))
