"""FedMA: matched averaging layer by layer, and what the clients are asked to train."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import average, fedma, resized
from sokmerge.symmetry import Axis, Block, PermutationGroup, chain


def _mlp():
    module = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(),
                           nn.Linear(7, 3)).double().eval()  # fmt: skip
    return module, chain(module, ["0", "2", "4"])


def _cnn():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5),
        nn.ReLU(), nn.Linear(5, 3),
    ).double().eval()  # fmt: skip
    return module, chain(module, ["0", "1", "4", "6"])


@pytest.mark.parametrize("make", [_mlp, _cnn])
def test_shuffled_copies_are_recognised(make):
    module, group = make()
    a = params.normal_like(params.of(module), 1)
    copies = [group.act(group.sample(k), a) for k in (2, 3)]
    found = fedma(module, [a, *copies], group, noise=1e-4)
    for name in a:
        torch.testing.assert_close(found[name], a[name], rtol=1e-9, atol=1e-9)


def test_when_all_is_matched_it_is_the_average_after_matching():
    """Noise is so large that no new unit pays."""
    module, group = _mlp()
    a = params.normal_like(params.of(module), 1)
    b = params.add(a, params.scale(params.normal_like(a, 5), 1e-3))
    found = fedma(module, [a, group.act(group.sample(2), b)], group)
    expected = average([a, b])
    for name in a:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-9)


def test_what_nobody_else_has_is_kept_and_outputs_are_averaged():
    """With nothing in common the result is both networks side by side, their outputs averaged."""
    module, group = _mlp()
    a, b = (params.scale(params.normal_like(params.of(module), k), 20) for k in (1, 2))
    found = fedma(module, [a, b], group, noise=0.01, prior=10)
    assert found["0.weight"].shape == (18, 6) and found["2.weight"].shape == (14, 18)
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).double()
    outputs = functional_call(resized(module, found), found, (x,))
    expected = (functional_call(module, a, (x,)) + functional_call(module, b, (x,))) / 2
    torch.testing.assert_close(outputs, expected, rtol=1e-9, atol=1e-9)


def test_clients_train_what_is_not_frozen():
    module, group = _mlp()
    a = params.normal_like(params.of(module), 1)
    b = group.act(group.sample(2), a)
    calls = []

    def train(j, point, frozen):
        calls.append((j, frozen))
        return {name: t + (j + 1) for name, t in point.items()}

    found = fedma(module, [a, b], group, train=train, noise=1e-4)
    first, second = {"0.weight", "0.bias"}, {"2.weight", "2.bias"}
    assert calls == [(0, first), (1, first), (0, first | second), (1, first | second)]
    for name in first:  # a client cannot change what is frozen
        torch.testing.assert_close(found[name], a[name], rtol=1e-9, atol=1e-9)
    # What client j does after the k-th layer adds j + 1 to all that is open, each time.
    torch.testing.assert_close(found["4.bias"], a["4.bias"] + 3, rtol=1e-9, atol=1e-9)
    assert found["2.weight"].shape[0] == 14, "trained apart, the second layers are no longer alike"


def test_a_class_is_averaged_over_those_who_saw_it():
    module, group = _mlp()
    a = params.normal_like(params.of(module), 1)
    b = {**a, "4.weight": a["4.weight"] + 1, "4.bias": a["4.bias"] + 1}
    counts = [torch.tensor([8, 0, 6]), torch.tensor([0, 4, 2])]
    found = fedma(module, [a, b], group, counts=counts, noise=1e-4)
    moved = torch.tensor([0.0, 1.0, 0.25]).double()
    torch.testing.assert_close(found["4.bias"], a["4.bias"] + moved)
    torch.testing.assert_close(found["4.weight"], a["4.weight"] + moved[:, None])


def test_bad_arguments_are_named():
    module, group = _mlp()
    a = params.normal_like(params.of(module), 1)
    with pytest.raises(ArgumentError, match="train: found parameters of other names"):
        fedma(module, [a, a], group, train=lambda j, point, frozen: {})
    with pytest.raises(ArgumentError, match="mass: found 0"):
        fedma(module, [a, a], group, mass=0)
    with pytest.raises(ArgumentError, match="counts: found shapes"):
        fedma(module, [a, a], group, counts=[torch.ones(3)])
    two = Block("0", 9, (Axis("0.weight", 0), Axis("2.weight", 1)))
    both = Block("x", 7, (Axis("2.weight", 0), Axis("4.weight", 1)))
    silent = PermutationGroup((two, both, Block("y", 7, (Axis("2.bias", 0),))))
    with pytest.raises(ArgumentError, match="one layer that makes the units"):
        fedma(module, [a, a], silent)
