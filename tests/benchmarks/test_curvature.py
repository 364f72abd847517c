"""Eigenvalue, density and trace of a Hessian against PyHessian and curvlinops, in CPU seconds.

Not part of ``make test``. Run ``make bench``: it measures all in the same process, on one thread,
and writes its section of ``book/benchmarks.md``.

PyHessian 0.1 is used as it is installed, with one help: its density ends with ``torch.eig``, which
PyTorch no longer has, so that a function of that name is put there. It is called after all products
are made. Both ways to give it data were tried; it gets batches of 128 images, the faster one.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import pytest
import torch
from curvlinops import HessianLinearOperator
from pyhessian import hessian as pyhessian
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.nn import functional as F

from sokmerge import params
from sokmerge.probe import EmpiricalRisk
from sokmerge.probe.curvature import density, eigenpairs, hessian, trace
from sokmerge.testbed import data

IMAGES, CHUNK = 1024, 128
RESIDUAL = 1e-3  # relative to the eigenvalue
STEPS = 50
SAMPLES = 64  # of PyHessian's trace; what more of them would give follows from their spread

MOST_PRODUCTS = 10  # for the largest eigenvalue
AT_LEAST = {"eigenvalue": 2.5, "density": 2.0, "trace": 3.0}  # times less; the trace in products

pytestmark = pytest.mark.benchmark(timer=time.process_time, disable_gc=True)


@dataclass(frozen=True)
class Row:
    """One program on one question."""

    program: str
    seconds: float
    products: int
    said: str


@dataclass
class Measured:
    """What the tests of this file find out, one after the other; the last one writes it down."""

    rows: dict[str, list[Row]] = field(default_factory=lambda: {k: [] for k in AT_LEAST})
    largest: float = math.nan
    traces: list[tuple[float, float]] = field(default_factory=list)


@pytest.fixture(scope="module")
def measured() -> Measured:
    return Measured()


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    return data.fashion("train", limit=IMAGES)


@pytest.fixture(scope="module")
def network(images) -> nn.Module:
    """A CNN after four epochs: curvature is looked at where a network has been trained to."""
    x, y = images
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(1568, 60), nn.ReLU(), nn.Linear(60, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(module.parameters(), 1e-3)
        for _ in range(4):
            for batch in torch.randperm(IMAGES).split(64):
                optimizer.zero_grad()
                F.cross_entropy(module(x[batch]), y[batch]).backward()
                optimizer.step()
        optimizer.zero_grad()
    return module.eval()


def _timed(benchmark, function):
    """Run a function once; return its result and its CPU seconds."""
    result = benchmark.pedantic(function, rounds=1, iterations=1)
    return result, benchmark.stats.stats.mean


class _Counted(pyhessian):
    """PyHessian that counts its products, with all it makes for one counted in its time."""

    products = 0

    def dataloader_hv_product(self, v):
        self.products += 1
        return super().dataloader_hv_product(v)


def _theirs(network, images):
    x, y = images
    batches = list(zip(x.split(CHUNK), y.split(CHUNK), strict=True))
    return _Counted(copy.deepcopy(network), nn.CrossEntropyLoss(), dataloader=batches, cuda=False)


def _ours(network, images):
    return hessian(EmpiricalRisk(network, *images, chunk=CHUNK), params.of(network))


def _residual(operator, vector):
    """The residual of the Rayleigh quotient of a vector, relative to it."""
    vector = vector / vector.norm()
    moved = operator @ vector
    value = vector @ moved
    return float((moved - value * vector).norm() / value.abs())


def test_the_largest_eigenvalue(benchmark, measured, network, images):
    def run():
        return eigenpairs(_ours(network, images), tol=RESIDUAL)

    found, seconds = _timed(benchmark, run)
    assert found.converged and found.products <= MOST_PRODUCTS
    measured.largest = float(found.values[0])
    residual = _residual(_ours(network, images), found.vectors[0])
    said = f"{measured.largest:.2f}, residual {residual:.0e}"
    measured.rows["eigenvalue"].append(
        Row("`probe.curvature.eigenpairs`", seconds, found.products, said)
    )


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_pyhessian_largest_eigenvalue(benchmark, measured, network, images, tol):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (program, (values, vectors)), seconds = _timed(
            benchmark,
            lambda: (p := _theirs(network, images), p.eigenvalues(tol=tol)),
        )
    operator = _ours(network, images)
    vector = operator.layout.flatten(dict(zip(operator.layout.shapes, vectors[0], strict=True)))
    said = f"{values[0]:.2f}, residual {_residual(operator, vector):.0e}"
    name = f"PyHessian {version('pyhessian')}, `eigenvalues(tol={tol:.0e})`"
    measured.rows["eigenvalue"].append(Row(name, seconds, program.products, said))
    assert values[0] == pytest.approx(measured.largest, rel=0.05)


def test_curvlinops_largest_eigenvalue(benchmark, measured, network, images):
    x, y = images
    batches = list(zip(x.split(CHUNK), y.split(CHUNK), strict=True))
    network, count = copy.deepcopy(network), 0

    def run():
        operator = HessianLinearOperator(
            network, nn.CrossEntropyLoss(), list(network.parameters()), batches,
            check_deterministic=False,
        )  # fmt: skip

        def product(v):
            nonlocal count
            count += 1
            return (operator @ torch.tensor(v.ravel())).numpy()

        wrapped = LinearOperator(operator.shape, product, dtype=np.float32)
        start = np.random.default_rng(0).standard_normal(operator.shape[0]).astype(np.float32)
        return eigsh(wrapped, 1, which="LA", tol=RESIDUAL, v0=start)

    (values, vectors), seconds = _timed(benchmark, run)
    residual = _residual(_ours(network, images), torch.tensor(vectors[:, 0]))
    name = f"curvlinops {version('curvlinops-for-pytorch')} with scipy's `eigsh(tol=1e-3)`"
    said = f"{values[0]:.2f}, residual {residual:.0e}"
    measured.rows["eigenvalue"].append(Row(name, seconds, count, said))
    assert values[0] == pytest.approx(measured.largest, rel=1e-3)


def test_the_density(benchmark, measured, network, images):
    found, seconds = _timed(benchmark, lambda: density(_ours(network, images), steps=STEPS))
    said = f"largest node {found.nodes.max():.2f}"
    measured.rows["density"].append(Row("`probe.curvature.density`", seconds, found.products, said))
    assert found.nodes.max() == pytest.approx(measured.largest, rel=1e-4)


def test_pyhessian_density(benchmark, measured, network, images, monkeypatch):
    def eig(matrix, eigenvectors):
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], 1), vectors

    monkeypatch.setattr(torch, "eig", eig, raising=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (program, (nodes, _)), seconds = _timed(
            benchmark, lambda: (p := _theirs(network, images), p.density(iter=STEPS))
        )
    name = f"PyHessian {version('pyhessian')}, `density(iter={STEPS})`"
    said = f"largest node {max(nodes[0]):.2f}"
    measured.rows["density"].append(Row(name, seconds, program.products, said))
    assert max(nodes[0]) == pytest.approx(measured.largest, rel=1e-2)


def test_pyhessian_trace(benchmark, measured, network, images):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (program, samples), seconds = _timed(
            benchmark,
            lambda: (p := _theirs(network, images), p.trace(maxIter=SAMPLES, tol=0)),
        )
    value, stderr = np.mean(samples), np.std(samples, ddof=1) / math.sqrt(SAMPLES)
    measured.traces.append((value, stderr))
    name = f"PyHessian {version('pyhessian')}, `trace(maxIter={SAMPLES}, tol=0)`"
    said = f"{value:.0f} ± {stderr:.1f}"
    measured.rows["trace"].append(Row(name, seconds, program.products, said))


@pytest.mark.parametrize("relative", [None, 0.01])
def test_the_trace(benchmark, measured, network, images, relative):
    if not measured.traces:
        pytest.skip("needs the trace of the test before")
    theirs, aim = measured.traces[0]
    wanted = {"stderr": aim} if relative is None else {"relative": relative}
    found, seconds = _timed(benchmark, lambda: trace(_ours(network, images), **wanted))
    assert found.converged and abs(found.value - theirs) < 4 * math.hypot(found.stderr, aim)
    told = "its standard error" if relative is None else "relative=0.01"
    name = f"`probe.curvature.trace`, {told}"
    said = f"{found.value:.0f} ± {found.stderr:.1f}"
    measured.rows["trace"].append(Row(name, seconds, found.products, said))


def test_it_takes_a_fraction_and_the_page_says_so(measured, write_section):
    if [len(rows) for rows in measured.rows.values()] != [4, 2, 3]:
        pytest.skip("needs the other tests of this file")
    write_section("curvature", _section(measured))
    ours, *others = measured.rows["eigenvalue"]
    assert min(r.seconds for r in others) / ours.seconds >= AT_LEAST["eigenvalue"]
    ours, theirs = measured.rows["density"]
    assert theirs.seconds / ours.seconds >= AT_LEAST["density"]
    *_, ours = measured.rows["trace"]
    assert _plain_products(measured) / ours.products >= AT_LEAST["trace"]


def _plain_products(measured: Measured) -> int:
    """Return how many products the plain estimator would need for our last standard error."""
    _, stderr = measured.traces[0]
    ours = float(measured.rows["trace"][-1].said.split("± ")[1])
    return math.ceil(SAMPLES * (stderr / ours) ** 2)


def _section(measured: Measured) -> str:
    def table(rows):
        return "\n".join(
            f"| {r.program} | {r.products} | {r.seconds:.1f} "
            f"| {1000 * r.seconds / r.products:.0f} | {r.said} |"
            for r in rows
        )

    def titled(title, rows):
        head = f"| {title} | products | CPU seconds | ms a product | result |"
        return f"{head}\n|---|---:|---:|---:|---:|\n{table(rows)}\n"

    precise, plain = measured.rows["trace"][-1], _plain_products(measured)
    tables = "\n".join(
        [
            titled("the largest eigenvalue", measured.rows["eigenvalue"]),
            titled(f"the density, {STEPS} steps from one start", measured.rows["density"]),
            titled("the trace, with its standard error", measured.rows["trace"]),
        ]
    )
    return f"""
## Curvature

How long does it take to look at the Hessian of the same CNN, trained for four epochs, on the same
{IMAGES:,} images, in chunks of {CHUNK}?
The seconds count everything from the network to the result, the building of graphs included.

{tables}
A residual is {{math}}`\\lVert Hv-\\lambda v\\rVert/\\lambda` of the vector that was returned,
measured afterwards in the same way for all.
PyHessian's power iteration stops when the eigenvalue changes by less than `tol` from one step to
the next, which says less than a residual.
At the last precision the plain estimator would need about {plain:,} products, as its error falls
with the square root of their number; ours takes {precise.products}, because the few eigenvalues
that hold most of the norm are taken out first.
For a rough trace the difference is smaller: ours never takes fewer than 30 products.

All rows were measured in one process, one after the other, with PyTorch
{torch.__version__.split("+")[0]} and {torch.backends.cpu.get_cpu_capability()} vectors.
PyHessian's density ends in a function that PyTorch no longer has (`torch.eig`); one of that name
was put in its place.
It was given batches, which was faster here than all images at once.
A product costs us less because the graph of each chunk's gradient is kept; that takes memory,
which the other programs, as they are used here, do not.
"""
