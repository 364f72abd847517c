"""A plane against loss-landscapes, in CPU seconds, and the page that shows it.

Not part of ``make test``. Run ``make bench``: it measures both in the same process, on one thread,
holds the values to a naive loop, and writes its section of ``book/benchmarks.md``.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version

import loss_landscapes
import numpy as np
import pytest
import torch
from loss_landscapes.metrics import Loss
from torch import nn
from torch.nn import functional as F

from sokmerge import params
from sokmerge.probe import EmpiricalRisk, Plane, filter_normalised, plane
from sokmerge.testbed import data

SIDE = 25
IMAGES = 1024
AT_LEAST = 6  # times less CPU time than loss-landscapes
AGREEMENT = 1e-5  # relative, with a naive loop

pytestmark = pytest.mark.benchmark(timer=time.process_time, disable_gc=True)


@dataclass
class Measured:
    """What the tests of this file find out, one after the other; the last one writes it down."""

    plane: Plane | None = None
    difference: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)


@pytest.fixture(scope="module")
def measured() -> Measured:
    return Measured()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(1568, 60), nn.ReLU(), nn.Linear(60, 10),
        )  # fmt: skip
    assert sum(p.numel() for p in module.parameters()) == 99_550
    return module.eval()


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    return data.fashion("train", limit=IMAGES)


@pytest.fixture(scope="module")
def directions(network):
    origin = params.of(network)
    return origin, filter_normalised(origin, seed=0), filter_normalised(origin, seed=1)


def _once(benchmark, name, measured, function):
    """Run a function once, in CPU seconds."""
    result = benchmark.pedantic(function, rounds=1, iterations=1)
    measured.seconds[name] = benchmark.stats.stats.mean
    return result


def test_loss_landscapes(benchmark, measured, network, images):
    metric = Loss(nn.CrossEntropyLoss(), *images)

    def random_plane():
        return loss_landscapes.random_plane(
            network, metric, distance=1, steps=SIDE, normalization="filter", deepcopy_model=True
        )

    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = _once(benchmark, "loss-landscapes", measured, random_plane)
    assert values.shape == (SIDE, SIDE)


def test_sokmerge(benchmark, measured, network, images, directions):
    def probe():
        return plane(EmpiricalRisk(network, *images), *directions)

    measured.plane = _once(benchmark, "sokmerge", measured, probe)
    assert measured.plane.loss.shape == (SIDE, SIDE)


def test_a_naive_loop_finds_the_same_values(benchmark, measured, network, images, directions):
    """Load the point into the module, run all images at once, take the mean: 625 times."""
    (x, y), (origin, u, v), found = images, directions, measured.plane
    if found is None:
        pytest.skip("needs the plane of the test before")

    def loop():
        values = np.empty((SIDE, SIDE))
        with torch.no_grad():
            for i, alpha in enumerate(found.alphas):
                for j, beta in enumerate(found.betas):
                    for name, tensor in network.named_parameters():
                        tensor.copy_(origin[name] + alpha * u[name] + beta * v[name])
                    values[i, j] = F.cross_entropy(network(x), y).item()
        return values

    naive = _once(benchmark, "naive loop", measured, loop)
    measured.difference = float(np.abs(found.loss / naive - 1).max())
    assert measured.difference <= AGREEMENT


def test_it_takes_a_sixth_of_the_time_and_the_page_says_so(measured, write_section):
    if len(measured.seconds) < 3 or measured.difference is None:
        pytest.skip("needs the other tests of this file")
    write_section("plane", _section(measured))
    seconds = measured.seconds
    assert seconds["loss-landscapes"] / seconds["sokmerge"] >= AT_LEAST


def _section(measured: Measured) -> str:
    described = {
        "loss-landscapes": f"loss-landscapes {version('loss-landscapes')}, `random_plane`",
        "naive loop": "a naive loop: load the point, run all images, without gradients",
        "sokmerge": "`sokmerge.probe.plane`, with the error and both standard errors",
    }
    ours = measured.seconds["sokmerge"]
    rows = "\n".join(
        f"| {described[name]} | {seconds:.1f} | {1000 * seconds / SIDE**2:.1f} "
        f"| {seconds / ours:.1f} |"
        for name, seconds in sorted(measured.seconds.items(), key=lambda item: -item[1])
    )
    torch_version = torch.__version__.split("+")[0]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"""
## A plane

How long does a plane take?
A {SIDE} x {SIDE} plane through a CNN of 99,550 parameters (two convolutions with 16 and 32
channels, max pooling, two linear layers), evaluated on {IMAGES:,} images of the shipped
Fashion-MNIST subset, in CPU seconds of one thread.
The directions are random and filter-normalised {{cite:p}}`li2018visualizing`.

| program | CPU seconds | ms a point | times ours |
|---|---:|---:|---:|
{rows}

All rows were measured in one process, one after the other, with PyTorch {torch_version}
on a processor with the {platform.machine()} instruction set and {capability} vectors.
The largest relative difference between our {SIDE**2} losses and those of the naive loop is
{measured.difference:.0e}.

The network and the arithmetic are the same in all rows.
What differs is how the work is laid out: chunks of images that stay near the processor's cache,
images and kernels in channels-last order, max pooling as a maximum of slices, no gradients, and no
memory asked for anew from the operating system at every point.
That gain belongs to small convolutional networks on a processor; on a GPU, or where one image fills
the cache, expect less of it.
"""
