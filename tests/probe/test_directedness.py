"""Direction: closed forms, second implementations, and laws that hold for any input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import task_vectors
from sokmerge.network import Network
from sokmerge.probe import EmpiricalRisk, curvature
from sokmerge.probe import directedness as d

FEW = settings(max_examples=15, deadline=None)


def rows(k, n, seed):
    """K orthonormal rows of length n."""
    drawn = torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T


# Subspaces ----------------------------------------------------------------------------------


@FEW
@given(st.integers(1, 6), st.integers(0, 99))
def test_the_share_is_that_of_the_projection_and_grows_with_the_space(k, seed):
    basis, g = rows(k, 8, seed), torch.randn(8, generator=params.stream(f"{seed}")).double()
    found = d.share(basis, g)
    projections = [basis[:i].T @ basis[:i] for i in range(1, k + 1)]
    projected = [float((p @ g).square().sum() / g.square().sum()) for p in projections]
    np.testing.assert_allclose(found.values, projected, rtol=1e-9)
    assert (np.diff(found.values) >= -1e-12).all() and found.values[-1] <= 1 + 1e-9
    inside, outside = d.split(g, basis)
    torch.testing.assert_close(inside + outside, g)
    assert abs(float(inside @ outside)) < 1e-9 * float(g @ g)
    assert d.share(basis, inside).values[-1] == pytest.approx(1)


def test_chance_is_what_random_directions_have():
    basis, generator = torch.eye(20)[:5], torch.Generator().manual_seed(0)
    drawn = torch.randn(4000, 20, generator=generator)
    shares = (drawn[:, :5].square().sum(1) / drawn.square().sum(1)).double()
    found = d.share(basis, drawn[0], [5])
    assert found.chance == pytest.approx(0.25)
    assert float(shares.mean()) == pytest.approx(0.25, abs=0.01)
    assert found.chance_spread == pytest.approx(float(shares.std()), rel=0.05)


def test_the_gradient_of_a_quadratic_lies_where_the_curvature_is():
    """Of L = sum l_i w_i^2 / 2 at equal w, the share of the first is l_1^2 over the sum."""
    values = torch.tensor([9.0, 3.0, 1.0, 0.5])
    pairs = curvature.eigenpairs(curvature.of_matrix(values.diag()), k=2, tol=1e-6)
    found = d.share(pairs.vectors, values)
    expected = np.cumsum([81, 9]) / (81 + 9 + 1 + 0.25)
    np.testing.assert_allclose(found.values, expected, rtol=1e-4)


@FEW
@given(st.integers(1, 5), st.integers(0, 99))
def test_the_overlap_is_symmetric_and_blind_to_the_basis(k, seed):
    a, b = rows(k, 9, seed), rows(k, 9, seed + 1000)
    assert d.overlap(a, b) == pytest.approx(d.overlap(b, a))
    turned = rows(k, k, seed) @ b
    assert d.overlap(a, turned) == pytest.approx(d.overlap(a, b))
    assert d.overlap(b, turned) == pytest.approx(1)
    # The cosines of the principal angles, squared, on average.
    angles = torch.linalg.svdvals(a @ b.T)
    assert d.overlap(a, b) == pytest.approx(float(angles.square().mean()))


@pytest.mark.parametrize("call", [
    lambda: d.share(torch.ones(2, 3), torch.ones(3)),
    lambda: d.share(torch.eye(3)[:2], torch.ones(4)),
    lambda: d.share(torch.eye(3)[:2], torch.ones(3), [3]),
    lambda: d.overlap(torch.eye(3)[:2], torch.eye(3)[:1]),
    lambda: d.projected_descent({"w": torch.ones(2)}, loss=None, keep="inside", lr=1, steps=1),
    lambda: d.projected_descent({"w": torch.ones(2)}, loss=None, lr=0, steps=1),
    lambda: d.random_subspace({"w": torch.ones(2)}, 3, seed=0),
    lambda: d.random_subspace({"w": torch.ones(2)}, 1, seed=0, kind="thick"),
    lambda: d.random_subspace({"w": torch.ones(2)}, 1, seed=0).point(torch.ones(2)),
    lambda: d.intrinsic_dimension([10, 5], [0.1, 0.2], 1.0),
    lambda: d.intrinsic_dimension([5, 10], [0.1, 0.2], 1.0, share=0),
    lambda: d.flip_signs({"w": torch.ones(2)}, 1.1),
    lambda: d.flip_signs({"w": torch.ones(2)}, 0.5, which="some"),
    lambda: d.disentanglement(None, {"w": torch.ones(2)}, [{}], [torch.ones(1)], alphas=[1]),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(ArgumentError):
        call()


# Descent ------------------------------------------------------------------------------------


def steep(point, step):
    return (50 * point["w"][0] ** 2 + point["w"][1] ** 2) / 2


def test_without_the_top_a_valley_is_walked_and_with_it_alone_it_is_not():
    """In closed form: the kept coordinate shrinks by 1 - eta l a step, the other stays."""
    top = lambda point: torch.tensor([[1.0, 0.0]])  # noqa: E731
    how = {"loss": steep, "subspace": top, "lr": 0.01, "steps": 7, "refresh": 3}
    ends = {
        keep: d.projected_descent({"w": torch.ones(2)}, keep=keep, **how)
        for keep in ("all", "inside", "outside")
    }
    a, b = 0.5**7, 0.99**7
    for keep, expected in {"all": [a, b], "inside": [a, 1], "outside": [1, b]}.items():
        torch.testing.assert_close(ends[keep].points[-1]["w"], torch.tensor(expected))
    assert ends["all"].refreshed == 0 and not len(ends["all"].shares)
    assert ends["inside"].refreshed == 3 and len(ends["inside"].shares) == 7
    assert ends["inside"].shares[0] == pytest.approx(2500 / 2501)


def test_all_of_the_gradient_is_plain_sgd():
    torch.manual_seed(0)
    module, x, y = nn.Linear(3, 2), torch.randn(8, 3), torch.randint(2, (8,))
    network, start = Network(module.eval()), params.of(module)
    loss = lambda p, step: F.cross_entropy(network(p, x[step : step + 4]), y[step : step + 4])  # noqa: E731
    found = d.projected_descent(start, loss=loss, lr=0.3, steps=4, at=[0, 2])
    assert found.steps == (0, 2, 4)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.3)
    for step in range(4):
        optimiser.zero_grad()
        F.cross_entropy(module(x[step : step + 4]), y[step : step + 4]).backward()
        optimiser.step()
    for name, p in params.of(module).items():
        torch.testing.assert_close(found.points[-1][name], p)
        assert torch.equal(found.points[0][name], start[name])


# Random subspaces ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_a_random_subspace_has_orthonormal_columns_and_a_gradient(kind):
    origin = {"w": torch.ones(4, 3), "count": torch.tensor(2), "b": torch.zeros(5)}
    space = d.random_subspace(origin, 6, seed=1, kind=kind)
    flat = lambda p: torch.cat([p["w"].flatten(), p["b"]])  # noqa: E731
    columns = torch.stack([flat(space.point(e)) - flat(origin) for e in torch.eye(6)])
    torch.testing.assert_close(columns @ columns.T, torch.eye(6), atol=1e-6, rtol=0)
    z = torch.zeros(6, requires_grad=True)
    point = space.point(z)
    assert point["count"] is origin["count"]
    g = torch.arange(17.0)
    (flat(point) @ g).backward()
    torch.testing.assert_close(z.grad, columns @ g, atol=1e-4, rtol=1e-5)
    again = d.random_subspace(origin, 6, seed=1, kind=kind).point(torch.ones(6))
    assert torch.equal(again["w"], space.point(torch.ones(6))["w"])


def test_a_sparse_subspace_of_full_dimension_is_everything():
    columns = d.random_subspace({"w": torch.zeros(7)}, 7, seed=0)
    moved = torch.stack([columns.point(e)["w"] for e in torch.eye(7)])
    torch.testing.assert_close(moved @ moved.T, torch.eye(7))


def test_the_dimension_is_read_between_the_grid_points():
    found = d.intrinsic_dimension([1, 10, 100], [0.0, 0.4, 0.95], 1.0)
    assert (found.low, found.high, found.target) == (10, 100, 0.9)
    assert found.value == pytest.approx(10 ** (1 + 0.5 / 0.55))
    none = d.intrinsic_dimension([1, 10], [0.0, 0.4], 1.0)
    assert math.isnan(none.value) and none.low == 10 and none.high == math.inf
    every = d.intrinsic_dimension([5, 10], [1.0, 0.4], 1.0)
    assert (every.value, every.low, every.high) == (5, 0, 5)


# Disentanglement ----------------------------------------------------------------------------


def test_a_network_of_two_parts_is_disentangled_and_a_shared_one_is_not():
    """Inputs of each task see an entry of their own; then one step is in the other's entry too."""
    base = {"w": torch.tensor([0.5, 0.5])}
    x = [torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 1.0]] * 5)]
    predict = lambda p, x: torch.stack([x @ p["w"], torch.zeros(len(x))], 1)  # noqa: E731
    own = {"w": torch.tensor([-1.0, 0.0])}, {"w": torch.tensor([0.0, -1.0])}
    alphas, betas = [-1.0, 0.0, 1.0], [0.0, 1.0]
    found = d.disentanglement(predict, base, own, x, alphas=alphas, betas=betas)
    assert found.error.shape == (3, 2) and not found.error.any() and found.n == (3, 5)
    shared = {"w": torch.tensor([-1.0, -1.0])}, own[1]
    found = d.disentanglement(predict, base, shared, x, alphas=alphas, betas=betas)
    # Only the second task changes: at alpha 1, where the first step turns its class.
    assert not found.each[0].any()
    np.testing.assert_array_equal(found.each[1], [[0, 1], [0, 0], [1, 0]])


def test_the_first_order_model_of_a_linear_network_needs_no_other_answer():
    torch.manual_seed(1)
    module, x = nn.Linear(4, 3).eval(), torch.randn(2, 6, 4)
    base, ways = params.of(module), [params.normal_like(params.of(module), s) for s in (0, 1)]
    both = [
        d.disentanglement(f, base, ways, list(x), alphas=[-1.0, 0.0, 2.0], chunk=4)
        for f in (Network(module), task_vectors.linearised(module, base))
    ]
    np.testing.assert_array_equal(both[0].each, both[1].each)
    assert both[0].error.max() > 0 and not both[0].error[1, 1]
    assert (both[0].error[1, 1], both[0].each[0][:, 1].max(), both[0].each[1][1].max()) == (0, 0, 0)
    p, n = both[0].each, 6
    np.testing.assert_allclose(both[0].each_stderr, np.sqrt(p * (1 - p) / (n - 1)), atol=1e-9)


# Entries ------------------------------------------------------------------------------------


@FEW
@given(st.floats(0, 1), st.sampled_from(["largest", "smallest", "random"]), st.integers(0, 9))
def test_flipping_keeps_magnitudes_and_flips_as_many_as_asked(part, which, seed):
    vector = params.normal_like({"w": torch.zeros(5, 4), "b": torch.zeros(7)}, seed)
    vector["count"] = torch.tensor(3)
    flipped = d.flip_signs(vector, part, which=which, seed=seed)
    flat = [torch.cat([v["w"].flatten(), v["b"]]) for v in (vector, flipped)]
    torch.testing.assert_close(flat[0].abs(), flat[1].abs())
    turned = flat[0] != flat[1]
    assert int(turned.sum()) == round(part * 27) and flipped["count"] == 3
    if which == "largest" and turned.any() and not turned.all():
        assert flat[0].abs()[turned].min() >= flat[0].abs()[~turned].max()


def test_the_share_of_a_gain_and_its_error_are_those_of_a_regression():
    """A second implementation: bootstrap over the examples."""
    torch.manual_seed(3)
    module, x = nn.Linear(5, 3).eval(), torch.randn(300, 5)
    base = {k: torch.zeros_like(p) for k, p in params.of(module).items()}
    way = params.of(module)
    y = Network(module)(way, x).argmax(1)
    half = params.scale(way, 0.5)
    noise = params.normal_like(way, 0)
    risk = EmpiricalRisk(module, x, y)
    found = d.gains(risk, base, way, [half, noise, way], measure="loss")
    losses = [risk.per_example(params.add(base, s))[0].double() for s in (way, half, noise)]
    before = risk.per_example(base)[0].double()
    whole, *rest = (before - each for each in losses)
    np.testing.assert_allclose(found.kept[:2], [float(r.mean() / whole.mean()) for r in rest])
    assert found.kept[2] == pytest.approx(1) and found.stderr[2] == pytest.approx(0, abs=1e-12)
    drawn = torch.randint(300, (2000, 300), generator=torch.Generator().manual_seed(0))
    for i, r in enumerate(rest):
        spread = (r[drawn].mean(1) / whole[drawn].mean(1)).std()
        assert found.stderr[i] == pytest.approx(float(spread), rel=0.1)
    assert d.gains(risk, base, way, [half]).kept == pytest.approx(1)  # the same classes
    assert len(d.gains(risk, base, way, []).kept) == 0


def test_no_gain_has_no_share():
    module = nn.Linear(2, 2).eval()
    risk = EmpiricalRisk(module, torch.eye(2), torch.tensor([0, 1]))
    nothing = params.scale(params.of(module), 0.0)
    assert np.isnan(d.gains(risk, params.of(module), nothing, [nothing]).kept).all()
