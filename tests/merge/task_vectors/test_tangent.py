"""The first-order model: against finite differences, against Jacobians, and its own identities."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import tangent, task_arithmetic
from sokmerge.merge.task_vectors import linearised


def _smooth():
    torch.manual_seed(0)
    layers = nn.Linear(3, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 2)
    net = nn.Sequential(*layers).double().eval()
    net[2].running_mean.uniform_(-0.5, 0.5)
    points = [params.add(params.of(net), params.normal_like(params.of(net), s)) for s in (1, 2)]
    return net, params.of(net), points, torch.randn(7, 3, dtype=torch.float64)


def test_at_the_base_it_is_the_network():
    net, base, _, x = _smooth()
    torch.testing.assert_close(linearised(net, base)(base, x), net(x).detach())


def test_it_is_the_jacobian_times_the_step():
    net, base, [point, _], x = _smooth()
    buffers = dict(net.named_buffers())
    jacobian = jacrev(lambda at: functional_call(net, {**buffers, **at}, (x,)))(base)
    expected = net(x).detach()
    for name, part in jacobian.items():
        expected = expected + (part.flatten(2) @ (point[name] - base[name]).flatten())
    torch.testing.assert_close(linearised(net, base)(point, x), expected)


def test_it_is_the_limit_of_short_steps():
    net, base, [point, _], x = _smooth()
    buffers, h = dict(net.named_buffers()), 1e-6
    near = params.lerp(base, point, h)
    slope = (functional_call(net, {**buffers, **near}, (x,)) - net(x)) / h
    found = linearised(net, base)(point, x) - net(x)
    torch.testing.assert_close(found, slope, rtol=1e-4, atol=1e-4)


def test_outputs_add_up_as_task_vectors_do():
    net, base, points, x = _smooth()
    model = linearised(net, base)
    predict = tangent(points, module=net, base=base, scale=0.5, weights=[2, -1])
    start = model(base, x)
    expected = start + 0.5 * (2 * (model(points[0], x) - start) - (model(points[1], x) - start))
    torch.testing.assert_close(predict(x), expected)
    merged = task_arithmetic(points, base=base, scale=0.5, weights=[2, -1])
    torch.testing.assert_close(predict(x), model(merged, x))
    curved = functional_call(net, {**dict(net.named_buffers()), **merged}, (x,))
    assert (predict(x) - curved).abs().max() > 0.1  # the network itself does not add up


def test_it_can_be_fine_tuned_by_gradients():
    """Least squares on a model that is linear in its parameters has one answer."""
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Tanh()).double().eval()
    base = {"0.weight": torch.tensor([[0.3, -0.2]], dtype=torch.float64)}
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double()
    y = torch.sin(x[:, :1])
    model = linearised(net, base)
    point = {"0.weight": base["0.weight"].clone().requires_grad_()}
    optimizer = torch.optim.LBFGS(
        point.values(), max_iter=50, tolerance_grad=1e-12, tolerance_change=0
    )

    def closure():
        optimizer.zero_grad()
        loss = (model(point, x) - y).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    slope = 1 - torch.tanh(x @ base["0.weight"].T).square()
    design = slope * x
    target = y - torch.tanh(x @ base["0.weight"].T)
    best = base["0.weight"] + torch.linalg.lstsq(design, target).solution.T
    torch.testing.assert_close(point["0.weight"].detach(), best, rtol=1e-6, atol=1e-6)


def test_it_refuses():
    net, base, points, x = _smooth()
    with pytest.raises(ArgumentError, match="module: found a module in training mode"):
        linearised(net.train(), base)
    net.eval()
    with pytest.raises(ArgumentError, match="base: found keys missing"):
        linearised(net, {"0.weight": base["0.weight"]})
    with pytest.raises(ArgumentError, match="point: found keys missing"):
        linearised(net, base)({"0.weight": base["0.weight"]}, x)
    with pytest.raises(ArgumentError, match="models: found no models"):
        tangent([], module=net, base=base)
