"""PLeaS: what is kept, what is merged, and that the layers are least squares."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import activation_matching, average, pleas, resized
from sokmerge.symmetry import chain


def _mlp():
    module = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(),
                           nn.Linear(8, 3)).double().eval()  # fmt: skip
    return module, chain(module, ["0", "2", "4"])


def _point(module, seed):
    noise = params.normal_like(params.of(module), seed)
    return {n: t.abs() if t.dim() == 1 else t / t[0].numel() ** 0.5 for n, t in noise.items()}


def _inputs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("ridge", [1e-6, 1.0])
def test_at_full_width_it_is_the_mean_of_both_networks_outputs(ridge, device):
    module, group = _mlp()
    module = module.to(device)
    a, b = (params.to(_point(module, k), device) for k in (1, 2))
    merged = pleas(module, [a, b], group, _inputs(60, 6).to(device), width=2, ridge=ridge)
    assert merged["2.weight"].shape == (16, 20)
    x = _inputs(40, 6, seed=1).to(device)
    found = functional_call(resized(module, merged), merged, (x,))
    expected = (functional_call(module, a, (x,)) + functional_call(module, b, (x,))) / 2
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("width", [1.0, 1.3, 2.0])
def test_a_shuffled_copy_gives_the_network_back(width):
    module, group = _mlp()
    a, x = _point(module, 1), _inputs(60, 6)
    b = group.act(group.sample(2), a)
    merged = pleas(module, [a, b], group, x, width=width)
    found = functional_call(resized(module, merged), merged, (x,))
    torch.testing.assert_close(found, functional_call(module, a, (x,)), rtol=1e-8, atol=1e-8)


def test_with_a_large_penalty_it_is_the_average_after_permutation():
    module, group = _mlp()
    a, b, x = _point(module, 1), _point(module, 2), _inputs(60, 6)
    merged = pleas(module, [a, b], group, x, ridge=1e12)
    match = activation_matching(module, a, b, group, x, similarity="correlation").permutation
    order = {  # the units come in the order of their similarity
        block.name: [
            int((merged[f"{block.name}.bias"] - bias).abs().argmin())
            for bias in average([a, group.act(match, b)])[f"{block.name}.bias"]
        ]
        for block in group.blocks
    }
    back = group.act({n: torch.tensor(o) for n, o in order.items()}, merged)
    for name, tensor in average([a, group.act(match, b)]).items():
        torch.testing.assert_close(back[name], tensor, rtol=1e-6, atol=1e-6)


def test_the_layers_against_lstsq():
    """With width 1 and no penalty to speak of, the last layer is a plain least squares fit."""
    module, group = _mlp()
    a, b, x = _point(module, 1), _point(module, 2), _inputs(200, 6)
    merged = pleas(module, [a, b], group, x, ridge=1e-12)
    match = activation_matching(module, a, b, group, x, similarity="correlation").permutation
    placed = group.act(match, b)
    z = sum(functional_call(module[:4], {n: t for n, t in p.items() if n[0] != "4"}, (x,))
            for p in (a, placed)) / 2  # fmt: skip
    y = (functional_call(module, a, (x,)) + functional_call(module, b, (x,))) / 2
    solved = torch.linalg.lstsq(torch.cat([z, torch.ones(200, 1).double()], 1), y).solution
    found = merged["4.weight"]
    same = torch.cdist(found.T, solved[:-1]).min(1)
    assert sorted(same.indices.tolist()) == list(range(8))
    torch.testing.assert_close(found, solved[same.indices].T, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(merged["4.bias"], solved[-1], rtol=1e-5, atol=1e-7)


def test_what_one_network_has_alone_reads_nothing_that_the_other_has_alone():
    module, group = _mlp()
    a, b = _point(module, 1), _point(module, 2)
    merged = pleas(module, [a, b], group, _inputs(60, 6), width=1.5)
    weight = merged["2.weight"]
    assert weight.shape == (12, 15)
    inputs, outputs = (5, 10), (4, 8)  # merged first, then a's own, then b's own
    assert (weight[outputs[0] : outputs[1], inputs[1] :] == 0).all()
    assert (weight[outputs[1] :, inputs[0] : inputs[1]] == 0).all()
    assert (weight[: outputs[0]] != 0).all()


def test_the_wider_the_nearer_to_both():
    module, group = _mlp()
    a, b, x = _point(module, 1), _point(module, 2), _inputs(300, 6)
    expected = (functional_call(module, a, (x,)) + functional_call(module, b, (x,))) / 2
    errors = []
    for width in (1.0, 1.5, 2.0):
        merged = pleas(module, [a, b], group, x, width=width)
        found = functional_call(resized(module, merged), merged, (x,))
        errors.append(float((found - expected).square().mean()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-12


def test_bad_arguments_are_named():
    module, group = _mlp()
    a, x = _point(module, 0), _inputs(8, 6)
    with pytest.raises(ArgumentError, match="models: found 3 models"):
        pleas(module, [a, a, a], group, x)
    with pytest.raises(ArgumentError, match="width: found 0.5"):
        pleas(module, [a, a], group, x, width=0.5)
    with pytest.raises(ArgumentError, match="ridge: found 0"):
        pleas(module, [a, a], group, x, ridge=0)
    conv = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2)).eval()
    point = params.of(conv)
    with pytest.raises(ArgumentError, match="units that one linear layer makes"):
        pleas(conv, [point, point], chain(conv, ["0", "2"]), torch.randn(4, 1, 4, 4))


def test_a_module_of_another_width_is_refused_where_the_names_differ():
    module, _ = _mlp()
    with pytest.raises(ArgumentError, match="names"):
        resized(module, {"x": torch.ones(1)})
