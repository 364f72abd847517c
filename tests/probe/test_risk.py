"""The empirical risk against a plain forward pass, numpy means and numpy standard errors."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.probe import EmpiricalRisk
from sokmerge.testbed import models

ARCHITECTURES = [
    models.MLP(width=8, depth=2),
    models.PlainCNN(channels=(4, 6, 5)),
    models.ResidualCNN(channels=(4, 6, 8), norm="batch"),
    models.ResidualCNN(channels=(4, 6, 8), norm="layer"),
]


def _data(n=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 28, 28, generator=generator)
    return x, torch.randint(10, (n,), generator=generator)


def _naive(module, point, x, y, loss=F.cross_entropy):
    """Per-example losses and errors the plain way: load, estimate statistics, one forward pass."""
    module = copy.deepcopy(module)
    module.load_state_dict(point, strict=False)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    with torch.no_grad():
        module.train()(x)
        outputs = module.eval()(x)
        losses = loss(outputs, y, reduction="none").double().cpu().numpy()
    return losses, (outputs.argmax(1) != y).double().cpu().numpy()


def _stderr(samples):
    return samples.std(ddof=1) / math.sqrt(len(samples))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda arch: type(arch).__name__)
@pytest.mark.parametrize("chunk", [None, 7])
def test_it_is_the_mean_over_the_examples_with_its_standard_error(arch, chunk, device):
    module = models.build(arch, seed=1).to(device)
    x, y = (t.to(device) for t in _data())
    risk = EmpiricalRisk(module, x, y, chunk=chunk)
    for seed in range(3):
        here = params.of(module)
        point = params.combine([1, 0.05], [here, params.normal_like(here, seed)])
        losses, errors = _naive(module, point, x, y)
        value = risk(point)
        assert value.loss == pytest.approx(losses.mean(), rel=1e-5)
        assert value.loss_stderr == pytest.approx(_stderr(losses), rel=1e-5)
        assert value.error == pytest.approx(errors.mean(), abs=1e-12)
        assert value.error_stderr == pytest.approx(_stderr(errors), rel=1e-9)
        assert value.accuracy == 1 - value.error and value.n == 50


def test_chunks_only_change_the_rounding():
    module = models.build(models.PlainCNN(channels=(4, 6, 5)), seed=1)
    x, y = _data()
    values = [EmpiricalRisk(module, x, y, chunk=c)(params.of(module)).loss for c in (1, 7, 50, 999)]
    assert np.ptp(values) <= 1e-6 * values[0]


def test_any_loss_and_any_target():
    """A regression has no error, and a vector of outputs is averaged inside the loss."""
    module = nn.Linear(3, 2).eval()
    x, y = torch.randn(9, 3), torch.randn(9, 2)
    risk = EmpiricalRisk(module, x, y, loss=lambda f, y, reduction: (f - y).square().mean(1))
    value = risk(params.of(module))
    expected = (module(x) - y).detach().square().mean(1).double().numpy()
    assert value.loss == pytest.approx(expected.mean()) and math.isnan(value.error)
    assert value.loss_stderr == pytest.approx(_stderr(expected)) and math.isnan(value.accuracy)


def test_one_example_has_no_spread():
    value = EmpiricalRisk(nn.Linear(2, 2).eval(), torch.ones(1, 2), torch.tensor([1]))(
        {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
    )
    assert value.loss == pytest.approx(math.log(2)) and math.isnan(value.loss_stderr)


def test_a_constant_loss_has_standard_error_zero():
    net = nn.Linear(2, 4).eval()
    value = EmpiricalRisk(net, torch.randn(20, 2), torch.arange(20) % 4)(
        {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    )
    assert value.loss_stderr == 0 and value.loss == pytest.approx(math.log(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype).eval()
    x, y = torch.randn(40, 6).to(dtype), torch.arange(40) % 3
    value = EmpiricalRisk(module, x, y)(params.of(module))
    wide = copy.deepcopy(module).double()
    expected = F.cross_entropy(wide(x.double()), y).item()
    assert value.loss == pytest.approx(expected, rel={torch.float64: 1e-12}.get(dtype, 2e-2))


def test_calibration_inputs_are_those_that_are_given_or_spread_over_all():
    module = models.build(ARCHITECTURES[2], seed=1)
    point, (x, y), (other, _) = params.of(module), _data(), _data(seed=5)
    calibrated = EmpiricalRisk(module, x, y, calibration=other)(point).loss
    module_there = copy.deepcopy(module)
    for layer in module_there.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        module_there.train()(other)
        expected = F.cross_entropy(module_there.eval()(x), y).item()
    assert calibrated == pytest.approx(expected, rel=1e-5)
    assert EmpiricalRisk(module, x, y)(point).loss != calibrated

    many = torch.arange(1500.0)[:, None]  # sorted data: a prefix would see the small ones only
    norm = nn.BatchNorm1d(1).eval()
    risk = EmpiricalRisk(norm, many, many, loss=lambda f, y, reduction: f[:, 0])
    assert len(risk._calibration) == 1024
    assert float(risk._calibration.min()) == 0 and float(risk._calibration.max()) >= 1498


def test_statistics_are_estimated_anew_so_a_scaled_network_is_the_same_network():
    """BatchNorm undoes the scale of the weights before it, if its statistics follow them."""
    module = nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8, eps=1e-12), nn.ReLU(), nn.Linear(8, 3)
    )
    x, y = torch.randn(64, 5), torch.arange(64) % 3
    risk, point = EmpiricalRisk(module.eval(), x, y), params.of(module)
    scaled = {**point, "0.weight": 7 * point["0.weight"], "0.bias": 7 * point["0.bias"]}
    assert risk(scaled).loss == pytest.approx(risk(point).loss, rel=1e-6)


def test_buffers_may_come_along_and_stale_statistics_have_no_effect():
    module = models.build(ARCHITECTURES[2], seed=1)
    risk, point = EmpiricalRisk(module, *_data()), params.of(module)
    state = {k: t.clone() for k, t in module.state_dict().items()}
    stale = {k: t * 0 + 9 if "running" in k else t for k, t in state.items()}
    before = {k: t.clone() for k, t in stale.items()}
    assert risk(stale) == risk(point)
    assert all(torch.equal(stale[k], before[k]) for k in stale)


def test_nothing_outside_is_changed():
    module = models.build(ARCHITECTURES[2], seed=1)
    x, y = _data()
    point = params.of(module)
    before = {k: t.clone() for k, t in (*module.state_dict().items(), *point.items())}
    x_before, rng = x.clone(), torch.get_rng_state()
    risk = EmpiricalRisk(module, x, y)
    first = risk(point)
    assert all(torch.equal(t, before[k]) for k, t in module.state_dict().items())
    assert all(torch.equal(point[k], before[k]) for k in point)
    assert torch.equal(x, x_before) and torch.equal(rng, torch.get_rng_state())
    assert not any(m.training for m in module.modules())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.add_(1)
    assert risk(point) == first


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda arch: type(arch).__name__)
def test_points_may_share_a_pass(arch, device):
    """Five points in groups of one, two, four and all: the same losses, up to rounding."""
    module = models.build(arch, seed=1).to(device)
    x, y = (tensor.to(device) for tensor in _data(n=20))
    risk = EmpiricalRisk(module, x, y, chunk=8)
    ends = params.of(module), params.of(models.build(arch, seed=2).to(device))
    points = [params.lerp(*ends, alpha) for alpha in (0, 0.25, 0.5, 0.75, 1)]
    each = [risk.per_example(point) for point in points]
    for together in (1, 2, 4, 8, None):
        losses, errors = risk.per_example_at(iter(points), together)
        torch.testing.assert_close(losses, torch.stack([e[0] for e in each]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(errors, torch.stack([e[1] for e in each]), rtol=0, atol=0)


def test_points_that_share_a_pass_may_have_any_loss_and_buffers_of_their_own():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    x = torch.randn(9, 3)
    risk = EmpiricalRisk(module, x, x[:, :2], loss=lambda f, y, reduction: (f - y).square().sum(1))
    a = {**params.of(module), **dict(module.named_buffers())}
    points = [a, {name: 2 * tensor for name, tensor in a.items()}]
    losses, errors = risk.per_example_at(points, together=2)
    for point, found in zip(points, losses, strict=True):
        torch.testing.assert_close(found, risk.per_example(point)[0])
    assert errors.isnan().all() and errors.shape == losses.shape == (2, 9)


def test_on_a_processor_points_come_one_after_the_other(monkeypatch):
    risk = EmpiricalRisk(NET, X, Y)
    monkeypatch.setattr(risk, "_at_once", None)
    assert risk.per_example_at([GOOD, GOOD])[0].shape == (2, 4)
    with pytest.raises(TypeError):
        risk.per_example_at([GOOD, GOOD], together=2)


def test_there_is_a_point_and_a_pass_holds_one():
    risk = EmpiricalRisk(NET, X, Y)
    with pytest.raises(ArgumentError, match="points: found none; expected at least one"):
        risk.per_example_at([])
    with pytest.raises(ArgumentError, match="together: found 0; expected at least one point"):
        risk.per_example_at([GOOD], together=0)


def test_results_carry_no_graph():
    module = nn.Linear(2, 2).eval()
    risk = EmpiricalRisk(module, torch.ones(3, 2), torch.tensor([0, 1, 0]))
    losses, _ = risk.per_example(dict(module.named_parameters()))
    assert not losses.requires_grad


# --- refusals ---------------------------------------------------------------------------------

NET = nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.Linear(3, 3)).eval()
X, Y = torch.ones(4, 2), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[:0], Y[:0]), "inputs: found 0 inputs and 0 targets; expected equal numbers, at least"),
        ((X, Y[:3]), "targets: found 4 inputs and 3 targets; expected equal numbers"),
        ((X, Y + 1), "targets: found labels from 1 to 3; expected 0 to 2, as the network has 3"),
        ((X, Y - 1), "targets: found labels from -1 to 1; expected 0 to 2"),
    ],
)
def test_bad_data_are_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        EmpiricalRisk(NET, *arguments)


@pytest.mark.parametrize("chunk", [0, -5])
def test_a_chunk_holds_an_example(chunk):
    with pytest.raises(ArgumentError, match=f"chunk: found {chunk}; expected at least one"):
        EmpiricalRisk(NET, X, Y, chunk=chunk)


def test_training_mode_is_refused_also_of_a_part():
    net = copy.deepcopy(NET)
    net[1].train()
    with pytest.raises(ArgumentError, match="module: found its part '1' in training mode"):
        EmpiricalRisk(net, X, Y)
    assert net[1].training


@pytest.mark.parametrize("n", [0, 1])
def test_statistics_need_two_inputs(n):
    norm = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3)).eval()
    with pytest.raises(ArgumentError, match=f"calibration: found {n} inputs; expected at least"):
        EmpiricalRisk(norm, X, Y, calibration=X[:n])


@pytest.mark.parametrize(
    "loss",
    [lambda f, y, reduction: F.cross_entropy(f, y), lambda f, y, reduction: f],
    ids=["mean", "matrix"],
)
def test_a_loss_gives_one_value_for_each_example(loss):
    risk = EmpiricalRisk(NET, X, Y, loss=loss)
    with pytest.raises(ArgumentError, match=r"loss: found values of shape .* for 4 examples"):
        risk(params.of(NET))


GOOD = params.of(NET)
BAD = {
    r"params: found keys missing \['0.bias'\]": {k: t for k, t in GOOD.items() if k != "0.bias"},
    r"params\['0.bias'\]: found shape \(2,\); expected shape \(3,\)":
        {**GOOD, "0.bias": torch.zeros(2)},
    r"params\['0.weight'\]: found dtype torch.float64": params.to(GOOD, dtype=torch.float64),
    r"params\['0.weight'\]: found a tensor on meta; expected all parameters on cpu":
        params.to(GOOD, device="meta"),
    r"params\['2.bias'\]: found a tensor on meta":
        {**GOOD, "2.bias": torch.zeros(3, device="meta")},
    r"params\['2.bias'\]: found 1 of 3 entries NaN or infinite":
        {**GOOD, "2.bias": torch.tensor([0, math.nan, 0])},
    r"params: found a NaN or infinite loss on 4 of 4 evaluations":
        {k: torch.full_like(t, 3e38) for k, t in GOOD.items()},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_a_bad_point_is_named(message):
    with pytest.raises(ArgumentError, match=message):
        EmpiricalRisk(NET, X, Y)(BAD[message])
