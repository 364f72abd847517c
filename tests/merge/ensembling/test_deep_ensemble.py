"""Ensembles of outputs, against closed forms."""

from __future__ import annotations

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.nn import functional as F

from sokmerge import merge
from sokmerge.errors import ArgumentError

BOTH = pytest.mark.parametrize("ensemble", [merge.probability_ensemble, merge.logit_ensemble])
seeds = st.integers(0, 10**6)


@BOTH
def test_an_ensemble_of_copies_is_the_network(club, outputs, ensemble):
    c = club(0)
    found = ensemble([c.models[0]] * 3, module=c.module)(c.inputs)
    said = outputs(c.module, c.models[0], c.inputs)
    torch.testing.assert_close(found.softmax(1), said.softmax(1))


@settings(max_examples=10)
@given(seed=seeds, weights=st.lists(st.floats(0.1, 5), min_size=3, max_size=3))
def test_it_is_the_mean_of_probabilities_or_of_logits(club, outputs, seed, weights):
    c = club(seed)
    said = torch.stack([outputs(c.module, m, c.inputs) for m in c.models])
    shares = torch.tensor(weights, dtype=torch.float64)[:, None, None] / sum(weights)
    mixed = merge.probability_ensemble(c.models, module=c.module, weights=weights)(c.inputs)
    torch.testing.assert_close(mixed.exp(), (shares * said.softmax(2)).sum(0))
    mean = merge.logit_ensemble(c.models, module=c.module, weights=weights)(c.inputs)
    torch.testing.assert_close(mean, (shares * said).sum(0))
    geometric = (shares * said.log_softmax(2)).sum(0).exp()
    torch.testing.assert_close(mean.softmax(1), geometric / geometric.sum(1, keepdim=True))


@BOTH
@settings(max_examples=10)
@given(seed=seeds)
def test_its_loss_is_never_above_the_mean_loss(club, outputs, ensemble, seed):
    c = club(seed, spread=3.0)
    own = [F.cross_entropy(outputs(c.module, m, c.inputs), c.targets) for m in c.models]
    found = F.cross_entropy(ensemble(c.models, module=c.module)(c.inputs), c.targets)
    assert found <= sum(own) / 3 + 1e-9


def test_one_sure_network_has_a_veto_over_logits_alone(club):
    c = club(0)
    zero = {k: torch.zeros_like(t) for k, t in c.base.items()}
    sure = {**zero, "3.bias": torch.tensor([0.0, 0.0, -60.0], dtype=torch.float64)}
    say = {**zero, "3.bias": torch.tensor([0.0, 0.0, 8.0], dtype=torch.float64)}
    models = [sure, say]
    assert merge.probability_ensemble(models, module=c.module)(c.inputs)[0].argmax() == 2
    assert merge.logit_ensemble(models, module=c.module)(c.inputs)[0].argmin() == 2


@BOTH
@settings(max_examples=10)
@given(seed=seeds, order=st.permutations([0, 1, 2]))
def test_the_order_of_the_models_does_not_matter(club, ensemble, seed, order):
    c = club(seed)
    weights = [1.0, 2.0, 3.0]
    first = ensemble(c.models, module=c.module, weights=weights)
    again = ensemble(
        [c.models[i] for i in order], module=c.module, weights=[weights[i] for i in order]
    )
    torch.testing.assert_close(first(c.inputs), again(c.inputs), rtol=0, atol=1e-12)


@BOTH
def test_what_it_costs(club, ensemble):
    c = club(0)
    numbers = sum(p.numel() for p in c.module.parameters())
    found = ensemble(c.models, module=c.module, weights=[1, 0, 1])
    assert (found.passes, found.parameters, found.merging) == (2, 2 * numbers, 0)


@BOTH
def test_it_is_pure(club, ensemble):
    c = club(0)
    models, state = copy.deepcopy(c.models), copy.deepcopy(c.module.state_dict())
    ensemble(c.models, module=c.module)(c.inputs)
    for before, after in zip(models, c.models, strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0)
    torch.testing.assert_close(state, c.module.state_dict(), rtol=0, atol=0)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_and_device_stay(club, ensemble, dtype, device):
    c = club(0, dtype=dtype, device=device)
    found = ensemble(c.models, module=c.module)(c.inputs)
    assert found.dtype == dtype and found.device.type == device.type


def test_batch_statistics_are_each_networks_own(club, outputs):
    c = club(0, norm=True)
    with pytest.raises(ArgumentError, match="^calibration: .*statistics"):
        merge.probability_ensemble(c.models, module=c.module)
    found = merge.probability_ensemble(c.models, module=c.module, calibration=c.inputs)(c.inputs)
    own = []
    for model in c.models:
        hidden = F.linear(c.inputs, model["0.weight"], model["0.bias"])
        mean, variance = hidden.mean(0), hidden.var(0)
        normed = (hidden - mean) / (variance + c.module[1].eps).sqrt()
        hidden = (normed * model["1.weight"] + model["1.bias"]).relu()
        own.append(F.linear(hidden, model["3.weight"], model["3.bias"]).softmax(1))
    torch.testing.assert_close(found.exp(), sum(own) / 3)


def test_models_that_hold_their_buffers_keep_them(club, outputs):
    c = club(0, norm=True)
    state = {k: v.clone() for k, v in c.module.state_dict().items()}
    other = {**state, "1.running_mean": state["1.running_mean"] + 1}
    found = merge.probability_ensemble([state, other], module=c.module)(c.inputs)
    own = [outputs(c.module, each, c.inputs).softmax(1) for each in (state, other)]
    torch.testing.assert_close(found.exp(), (own[0] + own[1]) / 2)


@BOTH
@pytest.mark.parametrize("weights", [[1, 1], [1, -1, 1], [0, 0, 0]])
def test_weights_that_cannot_be_used_are_refused(club, ensemble, weights):
    c = club(0)
    with pytest.raises(ArgumentError, match="^weights"):
        ensemble(c.models, module=c.module, weights=weights)


@BOTH
def test_models_that_cannot_be_used_are_refused(club, ensemble):
    c = club(0)
    for models in (
        [],
        [{"w": torch.zeros(1)}],
        [{**c.base, "3.bias": c.base["3.bias"] * torch.inf}],
    ):
        with pytest.raises(ArgumentError, match="^models"):
            ensemble(models, module=c.module)
