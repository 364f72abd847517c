"""Planes against a naive loop and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.probe import EmpiricalRisk, filter_normalised, plane, through
from sokmerge.testbed import models


def _bowl(device="cpu"):
    """The loss |w|^2 of a network that gives its two weights back."""
    net = nn.Linear(2, 1, bias=False).to(device).eval()
    x = torch.eye(2, device=device)
    risk = EmpiricalRisk(net, x, x, loss=lambda f, y, reduction: 2 * f.square().sum(1))
    weights = ([0.5, 0], [1.0, 0], [0, 2.0])
    return risk, [{"weight": torch.tensor([w], device=device)} for w in weights]


def test_a_closed_form(device):
    risk, (origin, u, v) = _bowl(device)
    alphas, betas = [-1, 0, 0.5], [0, 1, 2, 3]
    found = plane(risk, origin, u, v, alphas=alphas, betas=betas)
    a, b = np.meshgrid(alphas, betas, indexing="ij")
    np.testing.assert_allclose(found.loss, (0.5 + a) ** 2 + (2 * b) ** 2, rtol=1e-6)
    # Two examples, 2 x^2 and 2 y^2: their standard error is half their difference.
    expected = abs((0.5 + a) ** 2 - (2 * b) ** 2)
    np.testing.assert_allclose(found.loss_stderr, expected, rtol=1e-5, atol=1e-6)
    assert found.loss.shape == (3, 4) and found.n == 2
    assert np.isnan(found.error).all()


def test_points_of_a_row_may_share_a_pass():
    risk, (origin, u, v) = _bowl()
    grid = {"alphas": [-1, 0, 0.5], "betas": [0, 1, 2, 3]}
    one, some = (plane(risk, origin, u, v, **grid, together=k) for k in (1, 3))
    np.testing.assert_allclose(some.loss, one.loss, rtol=1e-6)
    np.testing.assert_allclose(some.loss_stderr, one.loss_stderr, rtol=1e-5, atol=1e-6)


def test_rows_are_not_sheared():
    """Moving along v alone must not move along u, in any row."""
    risk, (origin, u, v) = _bowl()
    found = plane(risk, origin, u, v, alphas=np.linspace(-2, 2, 5), betas=np.linspace(-1, 1, 5))
    np.testing.assert_allclose(found.loss, found.loss[:, ::-1], rtol=1e-6)
    assert (found.loss.argmin(axis=1) == 2).all()


@pytest.mark.parametrize(
    "arch",
    [models.MLP(width=8, depth=1), models.PlainCNN(channels=(4, 5)),
     models.ResidualCNN(channels=(3, 4), norm="batch")],
    ids=lambda arch: type(arch).__name__,
)  # fmt: skip
def test_it_agrees_with_a_naive_loop(arch):
    module = models.build(arch, seed=1)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 1, 28, 28, generator=generator), torch.arange(30) % 10
    origin = params.of(module)
    u, v = filter_normalised(origin, seed=0), filter_normalised(origin, seed=1)
    alphas, betas = np.array([-1, 0.25, 1]), np.array([-0.5, 0.75])
    found = plane(EmpiricalRisk(module, x, y, chunk=11), origin, u, v, alphas=alphas, betas=betas)
    for i, alpha in enumerate(alphas):
        for j, beta in enumerate(betas):
            point = {k: origin[k] + alpha * u[k] + beta * v[k] for k in origin}
            buffers = {k: b.clone() for k, b in module.named_buffers()}
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.train()
                    layer.momentum = 1.0
            with torch.no_grad():
                if buffers:
                    functional_call(module, {**point, **buffers}, (x,))
                module.eval()
                outputs = functional_call(module, {**point, **buffers}, (x,))
                losses = F.cross_entropy(outputs, y, reduction="none").double().numpy()
                errors = (outputs.argmax(1) != y).double().numpy()
            assert found.loss[i, j] == pytest.approx(losses.mean(), rel=1e-5)
            assert found.loss_stderr[i, j] == pytest.approx(losses.std(ddof=1) / 30**0.5, rel=1e-5)
            assert found.error[i, j] == pytest.approx(errors.mean(), abs=1e-12)
            assert found.error_stderr[i, j] == pytest.approx(errors.std(ddof=1) / 30**0.5, abs=1e-9)


def test_a_plane_through_three_points_meets_them():
    module = models.build(models.MLP(width=6, depth=1))
    risk = EmpiricalRisk(
        module, torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(0)),
        torch.arange(20) % 10,
    )  # fmt: skip
    points = [params.normal_like(params.of(module), seed) for seed in range(3)]
    frame = through(*points)
    for point, (alpha, beta) in zip(points, frame.coordinates, strict=True):
        found = plane(risk, frame.origin, frame.u, frame.v, alphas=[alpha], betas=[beta])
        assert found.loss[0, 0] == pytest.approx(risk(point).loss, rel=1e-4)


def test_what_the_plane_was_is_kept_with_it():
    risk, (origin, u, v) = _bowl()
    found = plane(risk, origin, u, v)
    assert found.origin is origin and found.u is u and found.v is v
    np.testing.assert_array_equal(found.alphas, np.linspace(-1, 1, 25))
    np.testing.assert_array_equal(found.betas, found.alphas)
    assert plane(risk, origin, u, v, alphas=[0, 1]).betas.tolist() == [0, 1]


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alphas", "betas"])
@pytest.mark.parametrize("positions", [[], [math.nan], [[0, 1]], 0.5, [math.inf]], ids=str)
def test_positions_are_a_list_of_finite_numbers(name, positions):
    risk, (origin, u, v) = _bowl()
    with pytest.raises(ArgumentError, match=f"{name}: found .* expected a list of finite numbers"):
        plane(risk, origin, u, v, **{name: positions})


def test_directions_belong_to_the_network():
    risk, (origin, u, v) = _bowl()
    with pytest.raises(ArgumentError, match=r"u\['weight'\]: found shape \(2, 2\)"):
        plane(risk, origin, {"weight": torch.eye(2)}, v)
    with pytest.raises(ArgumentError, match="v: found keys missing"):
        plane(risk, origin, u, {"bias": torch.zeros(1)})
    with pytest.raises(ArgumentError, match=r"origin\['weight'\]: found 2 of 2 entries NaN"):
        plane(risk, {"weight": torch.full((1, 2), math.nan)}, u, v)


def test_an_overflow_on_the_grid_is_named():
    risk, (origin, u, v) = _bowl()
    with pytest.raises(ArgumentError, match="the grid around origin: found .* on 2 of 4"):
        plane(risk, origin, u, v, alphas=[0, 1e30], betas=[0, 1])
