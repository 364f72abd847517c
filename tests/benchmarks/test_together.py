"""Several points in a forward pass, or directions in a product, against one after the other.

Not part of ``make test``. Run ``make bench``: it measures all in the same process, on one thread,
and writes its section of ``book/benchmarks.md``. What is chosen by default on a processor, one at a
time, is held to what is measured.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from sokmerge import params
from sokmerge.probe import EmpiricalRisk, curvature
from sokmerge.testbed import data

IMAGES, POINTS = 1024, 8
SIZES = (1, 2, 4, 8)
AGREEMENT = 1e-4

NETWORKS = {
    "MLP, three hidden layers of 64": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10),
    ),
    "CNN of 99,550 parameters": lambda: nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1568, 60), nn.ReLU(), nn.Linear(60, 10),
    ),
}  # fmt: skip


@dataclass
class Measured:
    """Seconds of a point or of a product by what was measured and how many go together."""

    seconds: dict[str, dict[int, float]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def measured() -> Measured:
    return Measured()


def _built(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name]().eval()


def _best(function, count):
    """Return the result, and the CPU seconds of one of its parts: the better of two runs."""
    seconds = []
    for _ in range(2):
        begin = time.process_time()
        result = function()
        seconds.append(time.process_time() - begin)
    return result, min(seconds) / count


@pytest.mark.parametrize("name", NETWORKS)
def test_points_in_a_forward_pass(measured, name):
    module = _built(name)
    risk = EmpiricalRisk(module, *data.fashion("train", limit=IMAGES))
    here = params.of(module)
    there = params.add(here, params.scale(params.normal_like(here, seed=0), 0.02))
    points = [params.lerp(here, there, k / (POINTS - 1)) for k in range(POINTS)]
    found = {}
    for size in SIZES:
        found[size], seconds = _best(lambda k=size: risk.per_example_at(points, k), POINTS)
        measured.seconds.setdefault(f"points of a line, {name}", {})[size] = seconds
        for one, some in zip(found[1], found[size], strict=True):
            torch.testing.assert_close(some, one, rtol=AGREEMENT, atol=AGREEMENT)


@pytest.mark.parametrize("name", NETWORKS)
def test_directions_in_a_product(measured, name):
    module = _built(name)
    risk = EmpiricalRisk(module, *data.fashion("train", limit=IMAGES))
    operator = curvature.hessian(risk, params.of(module))
    directions = operator.noise(POINTS, "benchmark")
    found = {}
    for size in SIZES:
        several = dataclasses.replace(operator, together=size)
        found[size], seconds = _best(lambda op=several: op.rows(directions), POINTS)
        measured.seconds.setdefault(f"Hessian times directions, {name}", {})[size] = seconds
        scale = float(found[1].abs().max())
        torch.testing.assert_close(found[size], found[1], rtol=0, atol=AGREEMENT * scale)


def test_one_at_a_time_is_the_choice_on_a_processor_and_the_page_says_so(measured, write_section):
    if len(measured.seconds) != 2 * len(NETWORKS):
        pytest.skip("needs the other tests of this file")
    write_section("together", _section(measured))
    convolutions = [s for name, s in measured.seconds.items() if "CNN" in name]
    assert all(seconds[1] == min(seconds.values()) for seconds in convolutions)
    # Matrices alone may gain, points less than directions.
    for name, seconds in measured.seconds.items():
        assert seconds[1] <= (1.5 if name.startswith("points") else 3) * min(seconds.values())


def _section(measured: Measured) -> str:
    heads = " | ".join(str(size) for size in SIZES)
    table = "\n".join(
        f"| {name} | {' | '.join(f'{1000 * seconds[size]:.1f}' for size in SIZES)} |"
        for name, seconds in measured.seconds.items()
    )
    ratios = [seconds[k] / seconds[1] for seconds in measured.seconds.values() for k in SIZES]
    most, least = max(ratios), 1 / min(ratios)
    version, vectors = torch.__version__.split("+")[0], torch.backends.cpu.get_cpu_capability()
    return f"""
## Several at once

Points of a line or a plane may share a forward pass, and directions a product with the Hessian, by
`torch.func.vmap`.
Does it pay?
The table holds milliseconds of CPU time a point, or a product, on one thread and {IMAGES:,} images,
by how many of the {POINTS} go together.

| | {heads} |
|---|{"---:|" * len(SIZES)}
{table}

Convolutions with several sets of weights at once are grouped convolutions, which the processor's
library does not do as well: at worst it took {most:.1f} times as long.
Networks of matrices alone can gain, above all in products: at best {least:.1f} times less.
On a processor the default is one at a time: convolutions lose more than matrices gain.
For points it is set by `together`, for an operator by `dataclasses.replace(operator, together=8)`.
On other devices the default is eight, in the expectation that small networks leave a GPU idle; that
was not measured here.

Measured in one process with PyTorch {version} and {vectors} vectors.
"""
