"""Products against dense matrices, closed forms, differences of the risk, and curvlinops."""

from __future__ import annotations

import copy

import pytest
import torch
from curvlinops import EFLinearOperator, GGNLinearOperator, HessianLinearOperator
from torch import nn
from torch.func import functional_call, jacrev
from torch.func import hessian as dense_hessian
from torch.nn import functional as F

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.probe import EmpiricalRisk
from sokmerge.probe.curvature import empirical_fisher, fisher, gauss_newton, hessian

KINDS = {f.__name__: f for f in (hessian, gauss_newton, fisher, empirical_fisher)}
N = 11


def _mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 3))


def _cnn():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    )


def _batch():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.GELU(), nn.Flatten(), nn.Linear(12, 3)
    )


def _layer():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 3)
    )


NETWORKS = {"mlp": _mlp, "cnn": _cnn, "batch": _batch, "layer": _layer}


@pytest.fixture(params=NETWORKS)
def problem(request):
    return _problem(request.param)


def _problem(name, dtype=torch.float64, chunk=4):
    torch.manual_seed(3)
    module = NETWORKS[name]().to(dtype).eval()
    x, y = torch.randn(N, 1, 4, 4, dtype=dtype), torch.arange(N) % 3
    return module, EmpiricalRisk(module, x, y, chunk=chunk), params.of(module), x, y


def _dense(operator):
    """All columns at once, by vmap; another test holds that to one after the other."""
    return operator.products(torch.eye(operator.size, dtype=operator.dtype, device=operator.device))


def _reference(kind, module, point, buffers, x, y):
    """The matrix written out, by derivatives of the network on all examples at once."""
    shapes = {k: t.shape for k, t in point.items()}

    def outputs(flat):
        parts = flat.split([s.numel() for s in shapes.values()])
        named = {k: p.view(s) for (k, s), p in zip(shapes.items(), parts, strict=True)}
        return functional_call(module, {**buffers, **named}, (x,))

    flat = torch.cat([t.reshape(-1) for t in point.values()])
    if kind == "hessian":

        def loss(f):
            return F.cross_entropy(outputs(f), y)

        if any(isinstance(part, nn.LayerNorm) for part in module.modules()):
            # Second derivatives of torch.func go wrong in the weights of a LayerNorm (torch 2.14).
            slope, h = jacrev(loss), 1e-5
            steps = h * torch.eye(len(flat), dtype=flat.dtype)
            return torch.stack([(slope(flat + e) - slope(flat - e)) / (2 * h) for e in steps])
        return dense_hessian(loss)(flat)
    if kind == "empirical_fisher":
        rows = jacrev(lambda f: F.cross_entropy(outputs(f), y, reduction="none"))(flat)
        return rows.T @ rows / len(x)
    slopes = jacrev(lambda f: outputs(f).log_softmax(1))(flat)  # (n, C, size)
    p = outputs(flat).softmax(1)
    return torch.einsum("nc,nci,ncj->ij", p, slopes, slopes) / len(x)


def _buffers(module, x):
    """The statistics that one pass over all inputs in training mode gives."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None
    module.train()(x)
    return dict(module.named_buffers())


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_dense_matrix(problem, kind):
    module, risk, point, x, y = problem
    found = _dense(KINDS[kind](risk, point))
    expected = _reference(kind, module, point, _buffers(module, x), x, y)
    assert expected.abs().max() > 1e-3
    differences = kind == "hessian" and any(isinstance(m, nn.LayerNorm) for m in module)
    atol = 1e-7 if differences else 1e-11
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_given_statistics_are_left_as_they_are(kind):
    module, risk, point, x, y = _problem("batch")
    stated = {"1.running_mean": torch.full((3,), 0.3).double()}
    found = _dense(KINDS[kind](risk, {**point, **stated}, statistics="given"))
    buffers = {**dict(module.named_buffers()), **stated}
    expected = _reference(kind, module, point, buffers, x, y)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert (found - _dense(KINDS[kind](risk, point))).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["cnn", "batch"])
def test_neither_chunks_nor_memory_nor_many_at_once_change_it(kind, name):
    _, risk, point, _, _ = _problem(name)
    whole = KINDS[kind](_problem(name, chunk=N)[1], point)
    vectors = whole.noise(3, "v")
    expected = torch.stack([whole @ v for v in vectors])
    close = {"rtol": 1e-10, "atol": 1e-12}
    for memory in (2**30, 20_000, 0):
        again = KINDS[kind](risk, point, memory=memory)
        torch.testing.assert_close(again @ vectors.T, expected.T, **close)
        torch.testing.assert_close(again.products(vectors), expected, **close)
        if kind == "hessian":
            torch.testing.assert_close(again.gradient, whole.gradient, **close)


def test_only_graphs_that_fit_are_kept(monkeypatch):
    """Without memory each product goes through the network again, with enough of it never."""
    calls = []
    module, risk, point, _, _ = _problem("mlp")
    plain = risk.losses
    monkeypatch.setattr(risk, "losses", lambda f, y: calls.append(len(y)) or plain(f, y))
    for memory, per_product in ((0, 3), (2**30, 0)):
        operator = hessian(risk, point, memory=memory)
        calls.clear()
        operator @ operator.gradient
        assert len(calls) == per_product
    calls.clear()
    hessian(risk, point, memory=0)
    one = len(calls)
    assert one == 4  # one chunk to see how much it keeps, three for the gradient


@pytest.mark.parametrize("kind", KINDS)
def test_the_block_of_named_parameters(problem, kind):
    module, risk, point, _, _ = problem
    whole = KINDS[kind](risk, point)
    names = list(point)[-2:]
    block = KINDS[kind](risk, point, names=names[::-1])
    assert list(block.layout.shapes) == names
    start = whole.size - block.size
    torch.testing.assert_close(_dense(block), _dense(whole)[start:, start:], rtol=1e-10, atol=1e-13)


def test_the_gradient_comes_along(problem):
    module, risk, point, x, y = problem
    leaves = {k: t.clone().requires_grad_() for k, t in point.items()}
    loss = F.cross_entropy(functional_call(module, {**leaves, **_buffers(module, x)}, (x,)), y)
    expected = torch.autograd.grad(loss, list(leaves.values()))
    found = hessian(risk, point).layout.unflatten(hessian(risk, point).gradient)
    for given, slope in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(given, slope, rtol=1e-9, atol=1e-12)


def test_second_differences_of_the_risk_agree():
    _, risk, point, _, _ = _problem("layer")
    operator = hessian(risk, point)
    step, h = params.normal_like(point, seed=1), 3e-5
    ahead, behind = (risk(params.combine([1, s], [point, step])).loss for s in (h, -h))
    v = operator.layout.flatten(step)
    expected = (ahead - 2 * risk(point).loss + behind) / h**2
    assert float(v @ (operator @ v)) == pytest.approx(expected, rel=1e-5)


def test_linear_regression_has_the_second_moment_of_its_inputs(device):
    x, y = torch.randn(30, 4, device=device), torch.randn(30, 1, device=device)
    net = nn.Linear(4, 1, bias=False).to(device).eval()
    risk = EmpiricalRisk(
        net, x, y, chunk=7, loss=lambda f, y, reduction: (f - y).square().sum(1) / 2
    )
    expected = x.T @ x / 30
    for kind in (hessian, gauss_newton):
        torch.testing.assert_close(_dense(kind(risk, params.of(net))), expected)


def test_logistic_regression_has_its_closed_form():
    x, y = torch.randn(30, 4).double(), torch.randint(2, (30, 1)).double()
    net = nn.Linear(4, 1, bias=False).double().eval()

    def loss(f, y, reduction):
        return F.binary_cross_entropy_with_logits(f, y, reduction=reduction).mean(1)

    risk = EmpiricalRisk(net, x, y, loss=loss, chunk=7)
    p = net(x).detach().sigmoid()
    expected = x.T @ (p * (1 - p) * x) / 30
    for kind in (hessian, gauss_newton):
        torch.testing.assert_close(_dense(kind(risk, params.of(net))), expected)


@pytest.mark.parametrize("name", ["mlp", "cnn", "batch"])  # not "layer": see the dense matrix
def test_curvlinops_finds_the_same(name):
    module, risk, point, x, y = _problem(name)
    module = copy.deepcopy(module)
    module.load_state_dict({**_buffers(module, x), **point})
    data = [(x[:6], y[:6]), (x[6:], y[6:])]
    peers = {
        hessian: HessianLinearOperator,
        gauss_newton: GGNLinearOperator,
        empirical_fisher: EFLinearOperator,
    }
    for ours, theirs in peers.items():
        operator = ours(risk, point)
        other = theirs(
            module, nn.CrossEntropyLoss(), list(module.parameters()), data,
            check_deterministic=False,
        )  # fmt: skip
        v = operator.noise(1, "v")[0]
        torch.testing.assert_close(operator @ v, other @ v, rtol=1e-8, atol=1e-11)


def test_double_precision_of_a_single_precision_network():
    module, risk, point, x, y = _problem("batch", torch.float32)
    operator = hessian(risk, point, dtype=torch.float64)
    assert operator.dtype == operator.gradient.dtype == torch.float64
    doubled = EmpiricalRisk(copy.deepcopy(module).double(), x.double(), y, chunk=4)
    same = hessian(doubled, params.to(point, dtype=torch.float64))
    expected = _dense(same)
    torch.testing.assert_close(_dense(operator), expected, rtol=1e-10, atol=1e-12)
    single = _dense(hessian(risk, point))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_bend_has_no_curvature():
    """A loss that is linear in the outputs, and a parameter that is not used."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    net = Half().eval()
    x, y = torch.randn(5, 2), torch.zeros(5, 2)
    linear = EmpiricalRisk(net, x, y, loss=lambda f, y, reduction: (f - y).sum(1))
    for kind in (hessian, gauss_newton):
        assert (_dense(kind(linear, params.of(net))) == 0).all()
        eye = torch.eye(12)
        assert (kind(linear, params.of(net)).products(eye) == 0).all()
    risk = EmpiricalRisk(net, x, torch.zeros(5, dtype=torch.int64))
    for kind in KINDS.values():
        operator = kind(risk, params.of(net))
        found = operator.layout.unflatten(_dense(operator))
        assert (found["idle.weight"] == 0).all() and (found["used.weight"] != 0).any()
        torch.testing.assert_close(operator.products(torch.eye(12)), _dense(operator))


def test_nothing_outside_is_changed(problem):
    module, risk, point, _, _ = problem
    before = copy.deepcopy((module.state_dict(), point))
    operator = hessian(risk, point)
    first = operator @ operator.gradient
    with torch.no_grad():
        for tensor in (*module.parameters(), *point.values()):
            tensor.add_(1)
    assert torch.equal(operator @ operator.gradient, first)
    for tensor in (*module.parameters(), *point.values()):
        tensor.data.sub_(1)
    for now, then in zip((module.state_dict(), point), before, strict=True):
        assert all(torch.allclose(now[k], then[k]) for k in then)
    assert not first.requires_grad and not operator.gradient.requires_grad
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["9.weight"]}, r"names: found the unknown \['9.weight'\]; expected some of"),
        ({"names": []}, "names: found no names"),
        ({"statistics": "old"}, "statistics: found 'old'; expected 'estimated' or 'given'"),
    ],
)
@pytest.mark.parametrize("kind", KINDS.values())
def test_bad_arguments_are_named(kind, arguments, message):
    _, risk, point, _, _ = _problem("mlp")
    with pytest.raises(ArgumentError, match=message):
        kind(risk, point, **arguments)
    with pytest.raises(ArgumentError, match="params: found keys missing"):
        kind(risk, {"1.weight": point["1.weight"]})


def test_fisher_needs_class_scores():
    net = nn.Conv2d(1, 3, 3).eval()
    risk = EmpiricalRisk(
        net, torch.ones(2, 1, 4, 4), torch.ones(2), loss=lambda f, y, reduction: f.mean((1, 2, 3))
    )
    with pytest.raises(ArgumentError, match=r"outputs of shape \(2, 3, 2, 2\); expected class"):
        fisher(risk, params.of(net))


@pytest.mark.parametrize("shape", [(4,), (4, 2), (67, 2, 2)])
def test_a_vector_of_another_length_is_refused(shape):
    _, risk, point, _, _ = _problem("mlp")
    with pytest.raises(ArgumentError, match="vectors: found shape"):
        hessian(risk, point) @ torch.ones(shape).double()
