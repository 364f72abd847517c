"""Instability, tangent kernels, pushes and masks: closed forms and second implementations."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.func import functional_call

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.network import Network
from sokmerge.probe import EmpiricalRisk, barrier, linear_cka
from sokmerge.probe.determinism import (
    instability,
    iterative_pruning,
    kernel_distance,
    kernel_velocity,
    magnitude_mask,
    masked,
    push_all_weights,
    push_one_weight,
    shuffled_mask,
    tangent_kernel,
)

NET = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4)).double().eval()
X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
Y = torch.randint(4, (20,), generator=torch.Generator().manual_seed(1))
RISK = EmpiricalRisk(NET, X, Y)
POINT = params.normal_like(params.of(NET), 3)

seeds = st.integers(0, 2**31)


def _point(seed):
    return params.normal_like(params.of(NET), seed)


# Instability --------------------------------------------------------------------------------


def test_each_pair_is_measured_as_if_alone():
    children = [_point(seed) for seed in range(3)]
    found = instability(RISK, children, points=5, inputs=X, layers=["2"])
    for n, (i, j) in enumerate(itertools.combinations(range(3), 2)):
        a, b = children[i], children[j]
        alone = barrier(RISK, a, b, 5)
        assert (found.loss[n], found.error[n]) == (alone.loss, alone.error)
        assert (found.loss_stderr[n], found.error_stderr[n]) == (
            alone.loss_stderr,
            alone.error_stderr,
        )
        assert found.distance[n] == pytest.approx(float(params.distance(a, b)))
        assert found.cosine[n] == pytest.approx(float(params.cosine(a, b)))
        outputs = [functional_call(NET, point, (X,)).detach() for point in (a, b)]
        differ = (outputs[0].argmax(1) != outputs[1].argmax(1)).double().mean()
        assert found.disagreement[n] == pytest.approx(float(differ))
        hidden = [torch.relu(X @ p["0.weight"].T + p["0.bias"]) for p in (a, b)]
        assert found.cka["2"][n] == pytest.approx(linear_cka(*hidden))


def test_twins_are_stable_and_strangers_are_not():
    twins = instability(RISK, [POINT, POINT], inputs=X, layers=["0", "2"])
    assert twins.error == twins.loss == twins.distance == twins.disagreement == 0
    assert twins.cosine == pytest.approx(1) and twins.stable()
    assert all(alike == pytest.approx(1) for alike in twins.cka.values())


def test_two_signs_of_one_function_are_a_whole_error_apart():
    """Logits w2 w1 x - 1/2 and 0 at x = 1: right for both signs of w, wrong at w = 0 between."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2)).double().eval()
    risk = EmpiricalRisk(net, torch.ones(4, 1).double(), torch.zeros(4).long())
    ends = [
        {"0.weight": s * torch.ones(1, 1), "1.weight": s * torch.tensor([[1.0], [0.0]]),
         "1.bias": torch.tensor([-0.5, 0.0])}
        for s in (1.0, -1.0)
    ]  # fmt: skip
    found = instability(risk, [params.to(end, dtype=torch.float64) for end in ends], points=3)
    assert found.error == 1 and found.barriers[0].error_alpha == 0.5 and not found.stable()


def test_the_threshold_is_on_the_mean_error_barrier():
    found = instability(RISK, [_point(0), _point(1), _point(2)])
    mean = found.error.mean()
    assert mean > 0 and found.stable(mean + 1e-9) and not found.stable(mean)
    assert found.stable() == (mean < 0.02) and np.isnan(found.disagreement).all()


def test_statistics_belong_to_each_child():
    """Scaling what goes into BatchNorm changes nothing, if its statistics are estimated anew."""
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5, eps=1e-12), nn.ReLU(), nn.Linear(5, 4))
    net = net.double().eval()
    own = params.of(net)
    scaled = own | {name: 3 * own[name] for name in ("0.weight", "0.bias")}
    found = instability(
        EmpiricalRisk(net, X, Y), [own, scaled], points=3, inputs=X, layers=["3"], calibration=X
    )
    assert found.disagreement == 0 and found.cka["3"] == pytest.approx(1)


def test_children_must_be_several_and_layers_need_inputs():
    with pytest.raises(ArgumentError, match="^children: found 1; expected at least two"):
        instability(RISK, [POINT])
    with pytest.raises(ArgumentError, match="^inputs: found None; expected inputs, for the layers"):
        instability(RISK, [POINT, POINT], layers=["2"])


# The tangent kernel -------------------------------------------------------------------------


def _naive(net, point, x):
    """One backward pass for each output of each example."""
    rows = []
    for one in x:
        leaves = {name: t.clone().requires_grad_() for name, t in point.items()}
        for output in functional_call(net, leaves, (one[None],))[0]:
            gradients = torch.autograd.grad(output, list(leaves.values()), retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows) @ torch.stack(rows).T


def test_the_kernel_is_that_of_the_gradients_one_by_one():
    for chunk in (2, 25):
        kernel = tangent_kernel(Network(NET), POINT, X[:5], chunk=chunk)
        torch.testing.assert_close(kernel, _naive(NET, POINT, X[:5]))


def test_the_kernel_of_a_convolution_and_of_batchnorm():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    )
    net = net.double().eval()
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(2)).double()
    own, network = params.of(net), Network(net)
    kernel = tangent_kernel(network, own, x)
    net.load_state_dict(network.state(own, x))
    torch.testing.assert_close(kernel, _naive(net, own, x))


def test_the_kernel_of_a_linear_map_does_not_depend_on_where_it_is():
    linear = nn.Linear(3, 2).double().eval()
    expected = torch.kron(X @ X.T + 1, torch.eye(2).double())
    for seed in (0, 1):
        at = params.normal_like(params.of(linear), seed)
        torch.testing.assert_close(tangent_kernel(Network(linear), at, X), expected)


def test_a_small_step_moves_the_outputs_as_the_kernel_says():
    """Under gradient flow df = -K dL/df."""
    network, lr = Network(NET), 1e-7
    leaves = {name: t.clone().requires_grad_() for name, t in POINT.items()}
    outputs = functional_call(NET, leaves, (X,))
    outputs.retain_grad()
    nn.functional.cross_entropy(outputs, Y).backward()
    stepped = {name: (t - lr * t.grad).detach() for name, t in leaves.items()}
    moved = (functional_call(NET, stepped, (X,)) - outputs).detach() / lr
    expected = -tangent_kernel(network, POINT, X) @ outputs.grad.flatten()
    torch.testing.assert_close(moved.flatten(), expected, rtol=1e-4, atol=1e-6)


def test_the_kernel_refuses_what_is_no_vector_and_no_input():
    with pytest.raises(ArgumentError, match="^inputs: found 0 in chunks of 25"):
        tangent_kernel(Network(NET), POINT, X[:0])
    flat = Network(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double().eval())
    with pytest.raises(ArgumentError, match="^network: found outputs that are no vector"):
        tangent_kernel(flat, flat.parameters, X)


@settings(max_examples=10, deadline=None)
@given(seeds, st.floats(0.1, 10))
def test_the_distance_of_kernels_ignores_scale_and_order(seed, factor):
    a, b = (torch.randn(5, 5, generator=params.stream(f"{seed}{k}")).double() for k in "ab")
    k, other = a @ a.T, b @ b.T
    assert kernel_distance(k, factor * k) == pytest.approx(0, abs=1e-12)
    assert kernel_distance(k, factor * other) == pytest.approx(kernel_distance(other, k))
    assert 0 <= kernel_distance(k, other) <= 1


def test_distance_and_velocity_in_closed_form():
    kernels = [torch.diag(torch.tensor(d)) for d in ([1.0, 0.0], [1.0, 1.0], [0.0, 2.0])]
    quarter = 1 - 0.5**0.5
    assert kernel_distance(kernels[0], kernels[1]) == pytest.approx(quarter)
    assert kernel_distance(kernels[0], kernels[2]) == 1
    np.testing.assert_allclose(kernel_velocity(kernels, [3, 5, 9]), [quarter / 2, quarter / 4])
    for steps in ([3, 5], [3, 3, 4]):
        with pytest.raises(ArgumentError, match="^steps: found"):
            kernel_velocity(kernels, steps)
    with pytest.raises(ArgumentError, match=r"^second: found shape \(3, 3\)"):
        kernel_distance(torch.eye(2), torch.eye(3))


# Pushes -------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(1e-6, 10))
def test_pushes_have_the_length_that_was_asked_for(seed, size):
    one, every = (push(POINT, size, seed) for push in (push_one_weight, push_all_weights))
    for pushed in (one, every):
        assert float(params.distance(POINT, pushed)) == pytest.approx(size, rel=1e-6)
    changed = sum(int((one[name] != POINT[name]).sum()) for name in POINT)
    assert changed == 1 and all((every[name] != POINT[name]).all() for name in POINT)


def test_every_entry_can_be_pushed_and_counters_are_not():
    theta = {"a": torch.zeros(2), "steps": torch.tensor(7), "b": torch.zeros(1, 2)}
    places = set()
    for seed in range(60):
        pushed = push_one_weight(theta, 1.0, seed)
        flat = torch.cat([pushed["a"], pushed["b"].flatten()])
        places.add((int(flat.abs().argmax()), float(flat.sum())))
        assert pushed["steps"] == 7
    assert places == set(itertools.product(range(4), (-1.0, 1.0)))
    assert push_all_weights(theta, 1.0, 0)["steps"] == 7
    with pytest.raises(ArgumentError, match="^params: found no floating-point entry"):
        push_one_weight({"steps": torch.tensor(7)}, 1.0, 0)


# Masks --------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_masks_keep_the_largest_and_lie_within(seed, keep, share):
    theta = _point(seed)
    weights = [name for name in theta if name.endswith("weight")]
    total = sum(theta[name].numel() for name in weights)
    mask = magnitude_mask(theta, keep)
    assert list(mask) == weights and sum(int(m.sum()) for m in mask.values()) == round(keep * total)
    kept = torch.cat([theta[n][mask[n].bool()].abs() for n in weights])
    gone = torch.cat([theta[n][~mask[n].bool()].abs() for n in weights])
    assert not len(kept) or not len(gone) or kept.min() >= gone.max()
    later = magnitude_mask(_point(seed + 1), keep * share, within=mask)
    assert all((later[n] <= mask[n]).all() for n in weights)
    drawn = shuffled_mask(mask, seed)
    assert all(drawn[n].sum() == mask[n].sum() for n in weights)
    zeroed = masked(theta, mask)
    assert all(torch.equal(zeroed[n], theta[n] * mask.get(n, 1)) for n in theta)


def test_a_shuffled_mask_is_another_one_and_the_same_for_a_seed():
    mask = magnitude_mask(POINT, 0.5)
    first, second, again = (shuffled_mask(mask, seed)["0.weight"] for seed in (0, 1, 0))
    assert not torch.equal(first, second) and torch.equal(first, again)


def test_rounds_prune_what_the_last_training_left_small():
    """What is large is another entry in each round; what is pruned once stays so."""
    first = {"w": torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]])}
    asked = []

    def train(mask):
        asked.append(mask["w"].clone())
        return masked({"w": first["w"].flip(1)}, mask)

    masks = iterative_pruning(train, first, share=0.5, rounds=3)
    assert [m["w"].nonzero()[:, 1].tolist() for m in masks] == [[4, 5, 6, 7], [4, 5], [4]]
    assert len(asked) == 2 and all(
        torch.equal(a, m["w"]) for a, m in zip(asked, masks, strict=False)
    )


def test_bad_masks_are_named():
    for keep in (-0.1, 1.1):
        with pytest.raises(ArgumentError, match="^keep: found"):
            magnitude_mask(POINT, keep)
    with pytest.raises(ArgumentError, match="^names: found 'no'"):
        magnitude_mask(POINT, 0.5, names=["no"])
    with pytest.raises(ArgumentError, match="^names: found no tensor"):
        magnitude_mask({"b": torch.zeros(3)}, 0.5)
    for how in ({"share": 1.0, "rounds": 1}, {"share": 0.5, "rounds": 0}):
        with pytest.raises(ArgumentError, match="^share: found"):
            iterative_pruning(lambda mask: POINT, POINT, **how)
