"""Representation surgery: what the correction does, and where it is put."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sokmerge.errors import ArgumentError
from sokmerge.merge import average, representation_surgery
from sokmerge.network import Network


@pytest.fixture(scope="module")
def scene():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Linear(5, 3)).eval()
        models = [{n: torch.randn(p.shape) for n, p in module.named_parameters()} for _ in range(2)]
        inputs = [torch.randn(40, 4) for _ in range(2)]
    return module, models, inputs


def test_without_a_step_the_merged_network_speaks_through_the_tasks_own_head(scene):
    module, models, inputs = scene
    operated = representation_surgery(models, module=module, layer="3", inputs=inputs, steps=0)
    for model, x, each in zip(models, inputs, operated, strict=True):
        merged = {**average(models), **{k: model[k] for k in ("3.weight", "3.bias")}}
        torch.testing.assert_close(each(x), Network(module)(merged, x))
        assert float(each.before) == float(each.after)
        assert not each.up.any()


def test_the_distance_is_that_of_the_representations(scene):
    module, models, inputs = scene
    body = nn.Sequential(*list(module)[:3]).eval()

    def represented(params, x):
        return Network(body)({k: t for k, t in params.items() if not k.startswith("3.")}, x)

    first, _ = representation_surgery(models, module=module, layer="3", inputs=inputs, steps=300)
    z, target = represented(average(models), inputs[0]), represented(models[0], inputs[0])
    torch.testing.assert_close(first.before, (z - target).abs().mean())
    corrected = z - (z @ first.down.T).relu() @ first.up.T
    torch.testing.assert_close(first.after, (corrected - target).abs().mean())
    assert first.after < 0.5 * first.before
    # What it says is what the head makes of the corrected representation.
    expected = corrected @ models[0]["3.weight"].T + models[0]["3.bias"]
    torch.testing.assert_close(first(inputs[0]), expected)


def test_a_network_merged_with_itself_needs_no_surgery(scene):
    module, models, inputs = scene
    (one,) = representation_surgery(
        models[:1], module=module, layer="3", inputs=inputs[:1], steps=20
    )
    assert float(one.before) == 0 and float(one.after) < 0.05
    other = representation_surgery(
        models, module=module, layer="3", inputs=inputs, merged=models[1], steps=0
    )
    assert float(other[0].before) > 0 and float(other[1].before) == 0


def test_the_rank_bounds_the_correction_and_the_seed_decides(scene):
    module, models, inputs = scene
    options = {"module": module, "layer": "3", "inputs": inputs, "steps": 30}
    thin, _ = representation_surgery(models, rank=1, **options)
    assert thin.down.shape == (1, 5) and thin.up.shape == (5, 1)
    again, _ = representation_surgery(models, rank=1, **options)
    other, _ = representation_surgery(models, rank=1, seed=1, **options)
    assert torch.equal(thin.down, again.down) and not torch.equal(thin.down, other.down)


def test_unusable_arguments_are_named(scene):
    module, models, inputs = scene
    options = {"module": module, "inputs": inputs}
    with pytest.raises(ArgumentError, match="layer: found 'head'; expected one of 0, 1, 2, 3"):
        representation_surgery(models, layer="head", **options)
    with pytest.raises(ArgumentError, match="rank: found 0"):
        representation_surgery(models, layer="3", rank=0, **options)
    with pytest.raises(ArgumentError, match=r"inputs: found \[40\] examples"):
        representation_surgery(models, module=module, layer="3", inputs=inputs[:1])
    with pytest.raises(ArgumentError, match="steps: found -1"):
        representation_surgery(models, layer="3", steps=-1, **options)
