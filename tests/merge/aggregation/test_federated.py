"""Rounds of training apart, with clients whose training is known in closed form."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sokmerge.errors import ArgumentError
from sokmerge.merge import average, cold_fusion, fedavg
from sokmerge.merge.aggregation.federated import _drawn
from sokmerge.params import combine, lerp

EPS = torch.finfo(torch.float32).eps
seeds = st.integers(0, 2**31)


def _towards(target, rate=0.5, steps=1):
    """A client that goes down the squared distance to its target."""

    def train(params):
        for _ in range(steps):
            params = lerp(params, target, rate)
        return params

    return train


@given(seed=seeds)
@settings(max_examples=15)
def test_one_round_to_the_end_is_the_average(draw_model, seed):
    targets = [draw_model(seed + i) for i in range(3)]
    clients = [_towards(t, rate=1.0) for t in targets]
    base, weights = draw_model(seed + 9), [1.0, 2.0, 5.0]
    for found, expected in (
        (fedavg(base, clients, weights=weights), average(targets, weights=weights)),
        (cold_fusion(base, clients), average(targets)),
    ):
        for key in ("w", "b"):
            assert torch.equal(found[key], expected[key])


@given(seed=seeds, rounds=st.integers(0, 6), steps=st.integers(1, 3))
@settings(max_examples=20)
def test_rounds_follow_their_closed_form(draw_model, seed, rounds, steps):
    targets = [draw_model(seed + i) for i in range(3)]
    base, shares = draw_model(seed + 9), (0.5, 0.3, 0.2)
    clients = [_towards(t, steps=steps) for t in targets]
    found = fedavg(base, clients, rounds=rounds, weights=shares)
    centre, left = combine(shares, targets), 0.5 ** (steps * rounds)
    expected = combine([left, 1 - left], [base, centre])
    for key in ("w", "b"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=64 * EPS)


def test_no_round_is_the_base_and_clients_may_write_into_what_they_get(draw_model):
    base, before = draw_model(0), draw_model(0)

    def careless(params):
        params["w"].zero_()
        return params

    assert torch.equal(fedavg(base, [careless], rounds=0)["w"], base["w"])
    for method in (fedavg, cold_fusion):
        assert not method(base, [careless])["w"].any()
        assert torch.equal(base["w"], before["w"])


def test_a_part_of_the_clients_takes_part_and_the_seed_says_which(draw_model):
    base, asked = draw_model(0), []

    def client(k):
        return lambda params: asked.append(k) or params

    clients = [client(k) for k in range(6)]
    fedavg(base, clients, rounds=4, fraction=0.5, seed=3)
    first = asked[:]
    assert [len(set(first[i : i + 3])) for i in range(0, 12, 3)] == [3] * 4
    assert len({tuple(first[i : i + 3]) for i in range(0, 12, 3)}) > 1
    asked.clear()
    cold_fusion(base, clients, rounds=4, number=3, seed=3)
    assert asked == first
    asked.clear()
    fedavg(base, clients, rounds=4, fraction=0.5, seed=4)
    assert asked != first
    counts = torch.zeros(6)
    for k in range(600):
        counts[_drawn(6, 2, f"0:{k}")] += 1
    assert counts.sum() == 1200 and (counts - 200).abs().max() < 60  # five standard deviations


def test_contributors_keep_what_is_their_own():
    def contributor(value):
        def train(params):
            return {"body": params["body"] + value, "head": params["head"] + value}

        return train

    base = {"body": torch.zeros(1), "head": torch.zeros(1)}
    heads = []

    def watched(params):
        heads.append(params["head"].item())
        return contributor(2.0)(params)

    found = cold_fusion(base, [watched, contributor(4.0)], rounds=3, own=["head"])
    assert found["body"].item() == 9 and found["head"].item() == 0
    assert heads == [0, 2, 4]  # its own from one contribution to the next
    assert cold_fusion(base, [watched], rounds=2)["head"].item() == 4


def test_half_precision_is_averaged_in_more():
    base = {"w": torch.zeros(1, dtype=torch.bfloat16)}
    clients = [lambda params: {"w": torch.full((1,), 1.0, dtype=torch.bfloat16)}] * 300
    found = fedavg(base, clients)["w"]
    assert found.item() == 1 and found.dtype == torch.bfloat16


def test_unusable_arguments_are_named(draw_model):
    base, same = draw_model(0), lambda params: params
    with pytest.raises(ArgumentError, match="clients: found no clients"):
        fedavg(base, [])
    with pytest.raises(ArgumentError, match="contributors: found no contributors"):
        cold_fusion(base, [])
    with pytest.raises(ArgumentError, match="rounds: found -1"):
        fedavg(base, [same], rounds=-1)
    with pytest.raises(ArgumentError, match="weights: found"):
        fedavg(base, [same], weights=[1, 2])
    for fraction in (0, 1.5):
        with pytest.raises(ArgumentError, match="fraction: found"):
            fedavg(base, [same], fraction=fraction)
    with pytest.raises(ArgumentError, match="number: found 2; expected from 1 to 1"):
        cold_fusion(base, [same], number=2)
    with pytest.raises(ArgumentError, match=r"own: found \['head'\]"):
        cold_fusion(base, [same], own=["head"])
    with pytest.raises(ArgumentError, match=r"clients\[1\]\(params\): found keys missing"):
        fedavg(base, [same, lambda params: {"w": params["w"]}])
    with pytest.raises(ArgumentError, match=r"clients\[0\]\(params\)\['w'\]: found .* NaN"):
        fedavg(base, [lambda params: {**params, "w": params["w"] / 0}])
