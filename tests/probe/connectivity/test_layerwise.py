"""Layer by layer: of a linear network all is known, and permuted twins are told apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sokmerge import params, symmetry
from sokmerge.errors import ArgumentError
from sokmerge.network import Network
from sokmerge.probe import EmpiricalRisk, barrier
from sokmerge.probe.connectivity import feature_connectivity, layer_barriers, stitching


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.second = nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))


LAYERS = ["first", "second", "head"]


@pytest.fixture(scope="module")
def bench():
    """A network, its risk, itself with units in another order, and another network."""
    torch.manual_seed(0)
    module = Convolved().eval()
    inputs = torch.randn(60, 1, 7, 7)
    a = params.of(module)
    with torch.no_grad():
        targets = module(inputs).argmax(1)
    group = symmetry.chain(module, LAYERS)
    orders = {"first": torch.tensor([2, 0, 3, 1]), "second": torch.tensor([1, 2, 0, 4, 3])}
    twin = group.act(orders, a)
    other = {k: 0.3 * t for k, t in params.normal_like(a, seed=1).items()}
    return module, EmpiricalRisk(module, inputs, targets, chunk=25), a, twin, other


def names(module, *layers):
    return [n for n, _ in module.named_parameters() if n.split(".")[0] in layers]


def test_all_layers_together_make_the_ordinary_barrier(bench):
    module, risk, a, _, other = bench
    found = layer_barriers(risk, a, other, {"all": names(module, *LAYERS)}, points=5)
    known = barrier(risk, a, other, points=5)
    assert found.loss[0] == pytest.approx(known.loss) and found.alphas[0] == known.loss_alpha
    assert found.loss_stderr[0] == pytest.approx(known.loss_stderr)
    assert found.error[0] == pytest.approx(known.error) and found.n == 60


def test_a_layer_alone_against_a_network_put_together_by_hand(bench):
    module, risk, a, _, other = bench
    groups = {name: names(module, name) for name in LAYERS}
    found = layer_barriers(risk, a, other, groups, points=3)
    ends = risk(a).loss, risk(other).loss
    for k, own in enumerate(groups.values()):
        excess = []
        for alpha in (0.0, 0.5, 1.0):
            point = {**a, **{n: torch.lerp(a[n], other[n], alpha) for n in own}}
            excess.append(risk(point).loss - (1 - alpha) * ends[0] - alpha * ends[1])
        assert found.loss[k] == pytest.approx(max(excess), abs=1e-6)
        assert found.excess_loss[k] == pytest.approx(excess, abs=1e-6)
        assert found.error[k] == found.excess_error[k].max()


def test_from_a_network_to_itself_there_is_no_barrier(bench):
    module, risk, a, _, _ = bench
    found = layer_barriers(risk, a, a, {"head": names(module, "head")})
    assert found.loss[0] == 0 and found.error[0] == 0


@pytest.mark.parametrize("groups", [{"x": ["nothing"]}, {"x": []}])
def test_groups_name_parameters(bench, groups):
    _, risk, a, _, other = bench
    with pytest.raises(ArgumentError):
        layer_barriers(risk, a, other, groups)
    with pytest.raises(ArgumentError):
        layer_barriers(risk, a, other, {"h": ["head.weight"]}, points=1)


def test_the_features_of_a_layer_that_is_linear_in_its_parameters_interpolate(bench):
    """What the first layer gives out is linear in them; what it becomes by ReLU is not."""
    module, risk, a, _, other = bench
    inputs = torch.cat([x for x, _ in risk.chunks()])
    how = {"inputs": inputs, "layers": ["first"]}
    before = feature_connectivity(Network(module), a, other, alpha=0.3, **how)
    np.testing.assert_allclose(before.gap, 0, atol=1e-6)
    assert before.apart[0] > 0.1 and before.n == 60
    how["layers"] = ["second"]
    after = feature_connectivity(Network(module), a, other, at="input", alpha=0.3, **how)
    assert after.gap[0] > 1e-3


def test_a_permuted_twin_is_the_same_to_cka_and_another_to_the_cosine(bench):
    module, risk, a, twin, _ = bench
    inputs = torch.cat([x for x, _ in risk.chunks()])
    found = feature_connectivity(Network(module), a, twin, inputs, ["second", "head"], at="input")
    same = feature_connectivity(Network(module), a, a, inputs, ["second", "head"], at="input")
    np.testing.assert_allclose(found.cka, 1, atol=1e-6)
    assert (found.apart > 0.05).all() and (found.gap > 1e-3).all()
    np.testing.assert_allclose(same.gap, 0, atol=1e-6)
    np.testing.assert_allclose(same.apart, 0, atol=1e-6)
    assert (found.apart_stderr > 0).all()


def test_inputs_on_which_a_layer_is_silent_do_not_count():
    net = nn.Linear(1, 2, bias=False).eval()
    a, b = {"weight": torch.tensor([[1.0], [0.0]])}, {"weight": torch.tensor([[0.0], [1.0]])}
    inputs = torch.tensor([[1.0], [2.0], [0.0]])
    found = feature_connectivity(Network(net), a, b, inputs, [""])
    assert found.apart[0] == pytest.approx(1) and found.apart_stderr[0] == pytest.approx(0)


def test_an_affine_joint_undoes_a_permutation_and_the_identity_does_not(bench):
    _, risk, a, twin, _ = bench
    plain = stitching(risk, a, twin, ["second", "head"])
    fitted = stitching(risk, a, twin, ["second", "head"], fit=risk)
    assert (np.abs(fitted.penalty) < 1e-5).all() and (np.abs(plain.penalty) > 1e-3).all()
    np.testing.assert_allclose(fitted.error_penalty, 0, atol=1e-6)
    np.testing.assert_allclose(fitted.loss - fitted.penalty, risk(twin).loss, rtol=1e-5)


def test_a_network_stitched_to_itself_is_itself(bench):
    _, risk, a, _, _ = bench
    found = stitching(risk, a, a, LAYERS)
    np.testing.assert_allclose(found.penalty, 0, atol=1e-7)
    assert (found.error == found.error[0]).all() and found.n == 60


def test_training_the_joint_lowers_the_loss_it_is_trained_on(bench):
    _, risk, a, _, other = bench
    fitted = stitching(risk, a, other, ["second"], fit=risk)
    trained = stitching(risk, a, other, ["second"], fit=risk, steps=15)
    assert trained.loss[0] < fitted.loss[0]
    assert not any(m._forward_pre_hooks for m in risk.network.skeleton.modules())


def test_what_cannot_be_stitched_is_refused(bench):
    _, risk, a, twin, _ = bench
    with pytest.raises(ArgumentError):
        stitching(risk, a, twin, ["nowhere"])
    with pytest.raises(ArgumentError):
        stitching(risk, a, twin, ["head"], steps=3)
