"""The group of permutations acts as a group, and leaves the function of a network as it is."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn
from torch.func import functional_call

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.symmetry import Axis, Block, PermutationGroup, chain
from sokmerge.testbed import models

seeds = st.integers(0, 2**31)


def _mlp():
    module = models.build(models.MLP(width=12, depth=2), seed=1)
    return module, models.chain(models.MLP(width=12, depth=2)), (1, 28, 28)


def _plain_cnn():
    module = models.build(models.PlainCNN(channels=(4, 6, 5)), seed=1)
    return module, models.chain(models.PlainCNN(channels=(4, 6, 5))), (1, 28, 28)


def _flattening_cnn():
    """A feature map of 5 channels and 3 x 3 places is flattened into 45 features."""
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(45, 7), nn.ReLU(), nn.Linear(7, 3),
    )  # fmt: skip
    return module.eval(), ["0", "2", "6", "8"], (1, 10, 10)


def _batchnorm_cnn():
    """With running statistics that are no longer those of an untrained network."""
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(180, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.2, 1.2) if tensor.dim() == 1 else tensor.normal_()
    return module.eval(), ["0", "1", "3", "4", "7", "8", "10"], (1, 10, 10)


def _layernorm_mlp():
    module = nn.Sequential(
        nn.Linear(8, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
    )
    with torch.no_grad():
        module[1].weight.uniform_(0.5, 2)
        module[1].bias.uniform_(-1, 1)
    return module.eval(), ["0", "1", "3", "5"], (8,)


NETWORKS = {f.__name__[1:]: f for f in (
    _mlp, _plain_cnn, _flattening_cnn, _batchnorm_cnn, _layernorm_mlp)}  # fmt: skip


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _state(module):
    return {k: t.detach().clone() for k, t in module.state_dict().items()}


@pytest.fixture(params=NETWORKS)
def network(request):
    """A module, its group and inputs for it; the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, names, shape = NETWORKS[request.param]()
    inputs = torch.randn(7, *shape, generator=torch.Generator().manual_seed(3))
    return module, chain(module, names), inputs


def test_the_function_stays(network, device):
    module, group, inputs = network
    state = params.to(_state(module), device=device)
    inputs, module = inputs.to(device), module.to(device)
    with torch.no_grad():
        before = module(inputs)
        for seed in range(5):
            moved = group.act(group.sample(seed), state)
            after = functional_call(module, moved, (inputs,))
            assert float((after - before).abs().max()) <= 1e-6 * float(before.abs().max())
            assert not _same(moved, state)


def test_every_block_matters_and_so_does_every_axis(network):
    """Left out anywhere, a permutation changes the function: the group moves what it must."""
    module, group, inputs = network
    state = _state(module)
    with torch.no_grad():
        before = module(inputs)
        for block in group.blocks:
            for axis in block.axes:
                if block.size == 1 or (axis.repeat == 1 and not bool(state[axis.parameter].any())):
                    continue
                without = tuple(a for a in block.axes if a != axis)
                crippled = PermutationGroup((Block(block.name, block.size, without),))
                turned = {block.name: torch.arange(block.size).roll(1)}
                after = functional_call(module, crippled.act(turned, state), (inputs,))
                assert float((after - before).abs().max()) > 1e-4, (block.name, axis)


@given(p=seeds, q=seeds)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_acts_as_a_group(name, p, q):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, names, _ = NETWORKS[name]()
    group, x = chain(module, names), _state(module)
    p, q = group.sample(p), group.sample(q)
    assert _same(group.act(group.identity(), x), x)
    assert _same(group.act(group.compose(p, q), x), group.act(p, group.act(q, x)))
    assert _same(group.act(group.invert(p), group.act(p, x)), x)
    assert _same(group.compose(p, group.invert(p)), group.identity())
    assert _same(group.compose(group.invert(p), p), group.identity())


def test_it_acts_linearly(network):
    module, group, _ = network
    a = params.of(module)
    b = params.normal_like(a, seed=0)
    p = group.sample(1)
    assert _same(
        group.act(p, params.lerp(a, b, 0.3)), params.lerp(group.act(p, a), group.act(p, b), 0.3)
    )
    assert float(params.norm(group.act(p, a))) == pytest.approx(float(params.norm(a)), rel=1e-12)


def test_buffers_move_with_their_units_and_may_be_absent():
    module, names, _ = _batchnorm_cnn()
    group, state = chain(module, names), _state(module)
    p = group.sample(0)
    moved = group.act(p, state)
    assert torch.equal(moved["4.running_var"], state["4.running_var"][p["3"]])
    assert torch.equal(moved["1.running_mean"], state["1.running_mean"][p["0"]])
    assert torch.equal(moved["1.num_batches_tracked"], state["1.num_batches_tracked"])
    without = {k: state[k] for k, _ in module.named_parameters()}
    assert group.act(p, without).keys() == without.keys()


def test_the_operand_is_not_changed(network):
    module, group, _ = network
    state = _state(module)
    before = {k: t.clone() for k, t in state.items()}
    group.act(group.sample(0), state)
    assert _same(state, before)


def test_samples_are_seeded_and_uniform():
    group = PermutationGroup((Block("h", 3, (Axis("w", 0),)),))
    state = torch.get_rng_state()
    drawn = [tuple(group.sample(seed)["h"].tolist()) for seed in range(1200)]
    assert torch.equal(state, torch.get_rng_state())
    assert drawn == [tuple(group.sample(seed)["h"].tolist()) for seed in range(1200)]
    counts = [drawn.count(order) for order in set(drawn)]
    assert len(counts) == 6 and all(abs(c - 200) < 65 for c in counts)  # 5 standard deviations


# --- refusals ---------------------------------------------------------------------------------

TWO = PermutationGroup((Block("h", 2, (Axis("w", 0), Axis("v", 1, repeat=3))),))
PARAMS = {"w": torch.zeros(2, 5), "v": torch.zeros(4, 6)}


@pytest.mark.parametrize(
    "order",
    [[0, 0], [0, 2], [-1, 0], [0], [0, 1, 2], [[0, 1]], [0.0, 1.0], [False, True]],
    ids=str,
)
def test_what_is_no_permutation_is_named(order):
    with pytest.raises(ArgumentError, match=r"permutation\['h'\].*each integer of 0 \.\.\. 1 once"):
        TWO.act({"h": torch.tensor(order)}, PARAMS)


def test_a_missing_block_is_named():
    with pytest.raises(ArgumentError, match="permutation: found no entry for block 'h'"):
        TWO.act({}, PARAMS)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"w": torch.zeros(2, 5)}, "params: found no parameter 'v'; expected one with 6 entries"),
        ({"w": torch.zeros(3, 5), "v": torch.zeros(4, 6)}, r"params\['w'\]: found shape \(3, 5\)"),
        ({"w": torch.zeros(2, 5), "v": torch.zeros(4, 2)}, r"expected 6 entries along dimension 1"),
        ({"w": torch.zeros(2, 5), "v": torch.zeros(6)}, r"params\['v'\]: found shape \(6,\)"),
    ],
)
def test_parameters_of_another_architecture_are_named(other, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        TWO.act(TWO.identity(), other)
    assert caught.value.do == "The group belongs to another architecture."


def test_an_axis_belongs_to_one_block_once():
    with pytest.raises(ArgumentError, match="axis 0 of 'w' in two places"):
        PermutationGroup((Block("a", 2, (Axis("w", 0),)), Block("b", 2, (Axis("w", 0),))))
    with pytest.raises(ArgumentError, match="a name twice"):
        PermutationGroup((Block("a", 2, (Axis("w", 0),)), Block("a", 2, (Axis("v", 0),))))
