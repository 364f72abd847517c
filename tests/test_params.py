"""The algebra of parameters: its laws, its rounding, its refusals."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

from sokmerge import params
from sokmerge.errors import ArgumentError

SHAPES = {"conv.weight": (2, 1, 3, 3), "fc.weight": (3, 4), "fc.bias": (3,), "scale": ()}
HALVES = [torch.float16, torch.bfloat16]

points = st.builds(lambda seed, size: _point(seed, size=size),
                   st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 1e3]))  # fmt: skip
numbers = st.floats(-4, 4, allow_nan=False)
shares = st.floats(0, 1)


def _point(seed, dtype=torch.float64, size=1.0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    drawn = {k: torch.randn(s, generator=generator, dtype=torch.float64) for k, s in SHAPES.items()}
    return {name: (size * tensor).to(device, dtype) for name, tensor in drawn.items()}


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- the laws of a vector space ---------------------------------------------------------------


@given(points, points, points)
def test_addition_is_commutative_and_associative_with_zero_and_inverses(a, b, c):
    zero = params.scale(a, 0)
    assert _same(params.add(a, b), params.add(b, a))
    size = sum(float(params.norm(p)) for p in (a, b, c))
    left = params.add(params.add(a, b), c)
    right = params.add(a, params.add(b, c))
    assert float(params.distance(left, right)) <= 1e-14 * size
    assert _same(params.add(a, zero), a)
    assert _same(params.add(a, params.scale(a, -1)), zero)
    assert _same(params.subtract(a, b), params.add(a, params.scale(b, -1)))


@given(points, points, numbers, numbers)
def test_scaling_distributes(a, b, s, t):
    assert _same(params.scale(a, 1), a)
    size = (1 + abs(s) + abs(t)) * (1 + abs(s)) * float(params.norm(a) + params.norm(b))
    near = [
        (params.scale(params.scale(a, s), t), params.scale(a, s * t)),
        (params.scale(a, s + t), params.add(params.scale(a, s), params.scale(a, t))),
        (params.scale(params.add(a, b), s), params.add(params.scale(a, s), params.scale(b, s))),
        (params.combine([s, t], [a, b]), params.add(params.scale(a, s), params.scale(b, t))),
    ]
    for left, right in near:
        assert float(params.distance(left, right)) <= 1e-14 * size


@given(points, points, numbers)
def test_the_inner_product_is_symmetric_linear_and_positive(a, b, s):
    assert float(params.inner(a, b)) == float(params.inner(b, a))
    size = float(params.norm(a) * params.norm(b))
    scaled = float(params.inner(params.scale(a, s), b))
    assert scaled == pytest.approx(s * float(params.inner(a, b)), abs=1e-13 * max(size, 1e-300) * 4)
    assert float(params.inner(a, a)) > 0
    assert abs(float(params.inner(a, b))) <= size * (1 + 1e-12)
    assert float(params.norm(params.add(a, b))) <= float(params.norm(a) + params.norm(b)) * 1.0001


@given(points, points)
def test_norms_and_angles_are_those_of_the_flattened_vectors(a, b):
    x, y = (np.concatenate([t.numpy().ravel() for t in p.values()]) for p in (a, b))
    assert float(params.norm(a)) == pytest.approx(np.linalg.norm(x), rel=1e-12)
    assert float(params.distance(a, b)) == pytest.approx(np.linalg.norm(x - y), rel=1e-12)
    cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    assert float(params.cosine(a, b)) == pytest.approx(cosine, abs=1e-12)


def test_the_zero_vector_has_no_direction():
    a = _point(0)
    assert math.isnan(float(params.cosine(a, params.scale(a, 0))))


# --- the line ---------------------------------------------------------------------------------


@given(points, points, shares)
def test_the_ends_of_a_line_are_exact_and_a_line_to_itself_stays(a, b, alpha):
    assert _same(params.lerp(a, b, 0), a)
    assert _same(params.lerp(a, b, 1), b)
    assert _same(params.lerp(a, a, alpha), a)
    between, combined = params.lerp(a, b, alpha), params.combine([1 - alpha, alpha], [a, b])
    size = float(params.norm(a) + params.norm(b))
    assert float(params.distance(between, combined)) <= 1e-14 * size


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_the_ends_are_exact_in_every_dtype(dtype, device):
    a, b = _point(0, dtype, device=device), _point(1, dtype, size=1e-2, device=device)
    assert _same(params.lerp(a, b, 0), a) and _same(params.lerp(a, b, 1), b)


# --- rounding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 16))
def test_half_precision_is_accumulated_wide_and_rounded_once(dtype, seed, number):
    """Against float64, rounded once: at most one unit in the last place, and nearly always none."""
    models = [_point(seed + i, dtype) for i in range(number)]
    coefficients = torch.rand(number, generator=torch.Generator().manual_seed(seed)).tolist()
    ours = params.combine(coefficients, models)
    for name in SHAPES:
        exact = sum(c * m[name].double() for c, m in zip(coefficients, models, strict=True))
        oracle = exact.to(dtype)
        assert ours[name].dtype == dtype
        magnitude = sum(abs(c) * m[name].double().abs()
                        for c, m in zip(coefficients, models, strict=True))  # fmt: skip
        # The float32 sum is off by a few float32 roundings of its terms; then one rounding.
        allowed = _ulp(oracle) + number * torch.finfo(torch.float32).eps * magnitude
        assert bool(((ours[name].double() - oracle.double()).abs() <= allowed).all())


def test_rounding_at_every_step_would_be_seen():
    """What accumulation in bfloat16 would get wrong: 256 + 1 + 1 + ... stays 256 there."""
    ones = [{"w": torch.tensor([256.0 if i == 0 else 1.0]).bfloat16()} for i in range(9)]
    assert float(params.combine([1] * 9, ones)["w"]) == 264
    stepwise = ones[0]["w"]
    for one in ones[1:]:
        stepwise = stepwise + one["w"]
    assert float(stepwise) == 256


def _ulp(tensor):
    """The distance from each number to the next of its dtype."""
    above = torch.nextafter(tensor.abs(), torch.full_like(tensor, math.inf))
    return above.double() - tensor.abs().double()


# --- entries that are no part of the space ----------------------------------------------------


def test_integers_come_from_the_first_operand():
    a = {"w": torch.ones(2), "steps": torch.tensor(3)}
    b = {"w": torch.ones(2), "steps": torch.tensor(9)}
    for made in (params.add(a, b), params.lerp(a, b, 0.7), params.scale(a, 2.0),
                 params.combine([0, 1], [a, b])):  # fmt: skip
        assert made["steps"] is a["steps"]
    assert float(params.inner(a, b)) == 2
    assert params.normal_like(a, seed=0)["steps"] is a["steps"]
    assert params.to(a, dtype=torch.float64)["steps"].dtype == torch.int64


def test_operands_are_never_changed():
    a, b = _point(0), _point(1)
    before = {k: t.clone() for k, t in a.items()}, {k: t.clone() for k, t in b.items()}
    params.add(a, b), params.lerp(a, b, 0.3), params.combine([2, 3], [a, b]), params.norm(a)
    params.normal_like(a, 0), params.distance(a, b), params.require_finite(a=a)
    assert _same(a, before[0]) and _same(b, before[1])


# --- noise ------------------------------------------------------------------------------------


def test_noise_is_standard_normal_and_belongs_to_the_name_and_the_seed(device):
    like = {"a": torch.zeros(200, 200, device=device), "b": torch.zeros(200, 200, device=device)}
    noise = params.normal_like(like, seed=7)
    alone = params.normal_like({"b": like["b"]}, seed=7)
    assert torch.equal(noise["b"], alone["b"])
    assert not torch.equal(noise["a"], noise["b"])
    assert not torch.equal(noise["a"], params.normal_like(like, seed=8)["a"])
    assert noise["a"].device == like["a"].device
    every = torch.cat([noise["a"], noise["b"]]).double()
    assert abs(float(every.mean())) < 5 / math.sqrt(every.numel())
    assert float(every.std()) == pytest.approx(1, abs=0.02)


def test_noise_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    params.normal_like({"w": torch.zeros(3)}, seed=0)
    assert torch.equal(state, torch.get_rng_state())


# --- modules, devices -------------------------------------------------------------------------


def test_of_copies_parameters_and_leaves_buffers_out():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    made = params.of(net)
    assert made.keys() == dict(net.named_parameters()).keys()
    assert not any(t.requires_grad for t in made.values())
    made["0.weight"].zero_()
    assert bool(net[0].weight.any())


def test_there_and_back(device):
    a = {"w": torch.tensor([0.1]), "n": torch.tensor([1])}
    there = params.to(a, device=device, dtype=torch.float16)
    assert there["w"].device == device and there["n"].device == device
    assert there["w"].dtype == torch.float16 and there["n"].dtype == torch.int64
    assert params.host(there["w"]).dtype == np.float64


@pytest.mark.parametrize("value", [True, 3, 2.5])
def test_host_gives_float64(device, value):
    assert params.host(torch.tensor(value, device=device)) == float(value)
    assert params.host(nn.Parameter(torch.tensor(2.0, device=device))).shape == ()


def test_what_has_no_values_is_unknown_on_the_host():
    meta = torch.zeros(2, 3, device="meta")
    assert not params.has_values(meta) and params.has_values(torch.zeros(2))
    assert params.host(meta).shape == (2, 3) and np.isnan(params.host(meta)).all()


# --- refusals ---------------------------------------------------------------------------------

GOOD = {"w": torch.zeros(2), "v": torch.zeros(1)}
BAD = {
    "keys": ({"w": torch.zeros(2)}, r"b: found keys missing \['v'\] and unknown \[\]"),
    "unknown": ({**GOOD, "u": torch.zeros(1)}, r"missing \[\] and unknown \['u'\]"),
    "shape": ({**GOOD, "v": torch.zeros(2)}, r"b\['v'\]: found shape \(2,\); expected .* \(1,\)"),
    "dtype": ({**GOOD, "v": torch.zeros(1).half()}, r"b\['v'\]: found dtype torch.float16"),
    "device": ({**GOOD, "v": torch.zeros(1, device="meta")}, r"b\['v'\]: found a tensor on meta"),
    "empty": ({}, r"b: found keys missing"),
}  # fmt: skip
VERBS = {
    "add": params.add,
    "subtract": params.subtract,
    "lerp": lambda a, b: params.lerp(a, b, 0.5),
    "inner": params.inner,
    "distance": params.distance,
    "cosine": params.cosine,
    "require_matching": lambda a, b: params.require_matching(a=a, b=b),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("case", BAD)
def test_what_does_not_match_is_named_with_the_argument(verb, case):
    other, message = BAD[case]
    with pytest.raises(ArgumentError, match=message):
        VERBS[verb](GOOD, other)


def test_nothing_is_broadcast_in_a_combination():
    with pytest.raises(ArgumentError, match=r"points\[1\]\['w'\]: found shape \(1,\)"):
        params.combine([1, 1], [{"w": torch.zeros(3)}, {"w": torch.zeros(1)}])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_one_coefficient_for_each_point(count):
    with pytest.raises(ArgumentError, match=f"found {count} coefficients for 2 points"):
        params.combine([1.0] * count, [GOOD, GOOD])


def test_no_points_no_parameters_no_floating_entry():
    with pytest.raises(ArgumentError, match="0 coefficients for 0 points"):
        params.combine([], [])
    with pytest.raises(ArgumentError, match="a: found no parameters"):
        params.add({}, {})
    counters = {"n": torch.tensor(1)}
    with pytest.raises(ArgumentError, match="no floating-point entry"):
        params.norm(counters)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_and_counted(device, value):
    fine = {"w": torch.zeros(3, device=device), "v": torch.zeros(4, device=device)}
    params.require_finite(a=fine, counters={"n": torch.tensor(1)})
    broken = {**fine, "v": torch.tensor([0, value, value, 1], device=device)}
    with pytest.raises(ArgumentError, match=r"b\['v'\]: found 2 of 4 entries NaN or infinite"):
        params.require_finite(a=fine, b=broken)


def test_long_lists_of_keys_are_shortened():
    other = {f"k{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(ArgumentError, match=r"'\.\.\. 5 more'"):
        params.add(GOOD, other)
