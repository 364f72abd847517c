"""Every routine, rehearsed for a device that is not there.

Under PyTorch's ``FakeTensorMode`` tensors have a shape, a dtype and a device, but no numbers. So a
tensor that was left on the processor meets one on the accelerator and fails, and so does any
attempt to look at a number, which would make the program wait for the device. Where waiting is part
of an algorithm it goes through ``sokmerge.params.host`` or through the assignment.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)

import sokmerge
from sokmerge import merge, params, probe, symmetry
from sokmerge.merge import task_vectors
from sokmerge.merge.alignment.matching import assign
from sokmerge.network import Network
from sokmerge.probe.risk import mean_and_stderr, require_finite_loss

DEVICES = ["meta", "cuda"]


def _cnn():
    """Convolutions, BatchNorm, a flattening and linear layers, in a chain."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(45, 7), nn.ReLU(), nn.Linear(7, 3),
    ).eval()  # fmt: skip


NAMES = ["0", "1", "3", "6", "8"]


class Stage:
    """A module, three points, inputs and targets that exist on a device in name only."""

    def __init__(self, device):
        self.device = torch.device(device)
        self.module = _cnn()
        self.group = symmetry.chain(self.module, NAMES)
        for part in self.module.modules():
            for table in (part._parameters, part._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                        table[name] = nn.Parameter(empty) if table is part._parameters else empty
        self.a, self.b, self.c = (params.of(self.module) for _ in range(3))
        self.inputs = torch.empty(6, 1, 10, 10, device=device)
        self.targets = torch.empty(6, dtype=torch.int64, device=device)
        self.risk = probe.EmpiricalRisk(self.module, self.inputs, self.targets, chunk=4)

    def require_there(self, point):
        """The points of a rehearsal are fake and lie on the device that is rehearsed."""
        for tensor in point.values():
            assert isinstance(tensor, FakeTensor) and tensor.device.type == self.device.type
        return True


@pytest.fixture(params=DEVICES)
def stage(request):
    with FakeTensorMode():
        yield Stage(request.param)


def _algebra(stage):
    a, b = stage.a, stage.b
    for made in (
        params.add(a, b), params.subtract(a, b), params.scale(a, 2.0), params.lerp(a, b, 0.3),
        params.combine([0.1, 0.2, 0.7], [a, b, stage.c]), params.normal_like(a, seed=0),
        params.to(a, dtype=torch.float16), params.lerp(*[params.to(p, dtype=torch.bfloat16)
                                                         for p in (a, b)], 0.5),
    ):  # fmt: skip
        assert stage.require_there(made)
    for scalar in (params.inner(a, b), params.norm(a), params.distance(a, b), params.cosine(a, b)):
        assert scalar.device.type == stage.device.type and scalar.shape == ()
    params.require_finite(a=a, b=b)


def _permutations(stage):
    group = stage.group
    p, q = group.sample(0), group.sample(1)
    element = group.compose(group.invert(p), q)
    assert stage.require_there(group.act(element, stage.a))
    there = {name: order.to(stage.device) for name, order in element.items()}
    assert stage.require_there(group.act(there, stage.a))


def _averaging(stage):
    assert stage.require_there(merge.average([stage.a, stage.b, stage.c], weights=[1, 2, 3]))


def _aggregation(stage):
    models = [stage.a, stage.b]
    halves = [params.to(p, dtype=torch.bfloat16) for p in models]
    for made in (
        merge.slerp(models, alpha=0.3), merge.slerp(halves),
        merge.model_stock(models, base=stage.c),
        merge.greedy_soup(models, score=lambda point: stage.risk(point).accuracy),
    ):  # fmt: skip
        assert stage.require_there(made)


def _fisher(stage):
    models = [stage.a, stage.b]
    fishers = models
    # Going backward, autograd asks CUDA for its context, even if it is there in name only.
    if stage.device.type == "meta" or torch.cuda.is_available():
        fishers = [merge.fisher_diagonal(stage.module, m, stage.inputs, chunk=4) for m in models]
        assert stage.require_there(fishers[0]) and fishers[0].keys() == stage.a.keys()
    assert stage.require_there(merge.fisher(models, fishers=fishers, weights=[1, 2]))


def _regmean(stage):
    models = [stage.a, stage.b]
    grams = [merge.gram_matrices(stage.module, m, stage.inputs, chunk=4) for m in models]
    assert stage.require_there(grams[0]) and grams[0].keys() == {"6.weight", "8.weight"}
    assert stage.require_there(merge.regmean(models, grams=grams, weights=[1, 2]))


def _task_vectors(stage):
    models, base = [stage.a, stage.b], stage.c
    halves = [params.to(p, dtype=torch.bfloat16) for p in (*models, base)]
    for made in (
        merge.task_arithmetic(models, base=base, weights=[1, -1]),
        merge.ties(models, base=base), merge.ties(models, base=base, scope="tensor"),
        merge.ties(halves[:2], base=halves[2], weights=[1, 2]),
        merge.dare(models, base=base, seed=0), merge.breadcrumbs(models, base=base),
        merge.consensus(models, base=base), *task_vectors.task_vectors(models, base),
        task_vectors.trim(base, 0.2), task_vectors.drop_and_rescale(base, 0.5, seed=0),
        task_vectors.apply_mask(task_vectors.tall_mask(stage.a, base, stage.b), stage.b, base),
        task_vectors.emr(models, base=base).task(1),
    ):  # fmt: skip
        assert stage.require_there(made)


def _weight_matching(stage):
    found = merge.weight_matching(stage.a, stage.b, stage.group)
    assert found.passes == 1 and np.isnan(found.similarity)
    assert stage.require_there(stage.group.act(found.permutation, stage.b))


def _activation_matching(stage):
    for similarity in ("inner product", "correlation"):
        found = merge.activation_matching(
            stage.module,
            stage.a,
            stage.b,
            stage.group,
            stage.inputs,
            similarity=similarity,
            chunk=4,
        )
        assert stage.require_there(stage.group.act(found.permutation, stage.b))


def _risk(stage):
    value = stage.risk(stage.a)
    assert value.n == 6 and np.isnan(value.loss)
    losses, errors = stage.risk.per_example(stage.a)
    assert losses.device.type == errors.device.type == stage.device.type


def _statistics(stage):
    network = Network(stage.module)
    assert stage.require_there(network.state(stage.a, stage.inputs))


def _line(stage):
    found = probe.line(stage.risk, stage.a, stage.b, points=3)
    assert found.loss.shape == (3,) and np.isnan(found.excess_loss_stderr).all()


def _barrier(stage):
    assert np.isnan(probe.barrier(stage.risk, stage.a, stage.b, points=3).loss)


def _plane(stage):
    frame = probe.through(stage.a, stage.b, stage.c)
    direction = probe.filter_normalised(stage.a, seed=0)
    assert stage.require_there(direction) and stage.require_there(frame.v)
    found = probe.plane(stage.risk, stage.a, direction, frame.v, alphas=[0, 1], betas=[0, 1, 2])
    assert found.loss.shape == (2, 3)


ROUTINES = {f.__name__[1:]: f for f in (
    _algebra, _permutations, _averaging, _aggregation, _fisher, _regmean, _task_vectors,
    _weight_matching, _activation_matching, _risk, _statistics, _line, _barrier,
    _plane)}  # fmt: skip


@pytest.mark.parametrize("name", ROUTINES)
def test_it_runs_where_no_number_is_known(stage, name):
    ROUTINES[name](stage)


def test_every_declared_method_is_rehearsed():
    assert {d.name for d in merge.methods()} == {
        "average", "weight_matching", "activation_matching",
        "slerp", "fisher", "regmean", "model_stock", "greedy_soup",
        "task_arithmetic", "ties", "dare", "breadcrumbs", "consensus",
    }  # fmt: skip


# --- the rehearsal has teeth ------------------------------------------------------------------

WAITS = (DataDependentOutputException, DynamicOutputShapeException)
FAULTS = {
    "a number is looked at": (WAITS, lambda s: params.norm(s.a).item()),
    "a number is rounded": (WAITS, lambda s: round(float(params.norm(s.a)))),
    "a condition is decided": (WAITS, lambda s: bool((s.a["8.bias"] > 0).all())),
    "a list is made": (WAITS, lambda s: s.a["8.bias"].tolist()),
    "entries are selected": (WAITS, lambda s: s.a["8.bias"][s.a["8.bias"] > 0]),
    "two tensors are compared": (WAITS, lambda s: torch.equal(s.a["8.bias"], s.b["8.bias"])),
    "an array is made": (RuntimeError, lambda s: s.a["8.bias"].numpy()),
    "a tensor is left behind": (
        FakeTensorDeviceMismatchError,
        lambda s: s.b["8.bias"] + torch.ones(3),
    ),
    "indices are left behind": (
        FakeTensorDeviceMismatchError,
        lambda s: s.a["8.weight"].index_select(1, torch.arange(7)),
    ),
    "a module is left behind": (RuntimeError, lambda s: _cnn()(s.inputs)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_would_be_caught(stage, fault):
    error, run = FAULTS[fault]
    with pytest.raises(error):
        run(stage)


@pytest.mark.parametrize(
    ("error", "factor"),
    [(WAITS, lambda f: f.max().item()), (FakeTensorDeviceMismatchError, lambda f: torch.ones(4))],
    ids=["looks at a number", "leaves a tensor behind"],
)
def test_a_fault_deep_in_a_routine_would_be_caught(stage, error, factor):
    def faulty(outputs, targets, reduction):
        losses = nn.functional.cross_entropy(outputs, targets, reduction=reduction)
        return losses * factor(outputs)

    risk = probe.EmpiricalRisk(stage.module, stage.inputs, stage.targets, loss=faulty, chunk=4)
    with pytest.raises(error):
        probe.line(risk, stage.a, stage.b, points=3)


# --- where waiting is allowed -----------------------------------------------------------------

WAITING = {"item", "tolist", "cpu", "numpy", "nonzero", "synchronize", "equal", "allclose"}
ALLOWED = {
    ("params.py", "host"),  # every number that a decision or a result needs
    ("merge/alignment/matching.py", "assign"),  # the assignment is solved on the host
}


def _waiting(source):
    """Names of the functions in which a method is called that waits for the device."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                called = node.func if isinstance(node, ast.Call) else None
                if isinstance(called, ast.Attribute) and called.attr in WAITING:
                    yield function.name


def test_only_named_functions_wait_for_the_device():
    package = Path(sokmerge.__file__).parent
    files = [package / "params.py", package / "network.py"]
    for folder in ("symmetry", "merge", "probe"):
        files += sorted((package / folder).rglob("*.py"))
    found = {
        (file.relative_to(package).as_posix(), name)
        for file in files
        for name in _waiting(file.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED


def test_what_waits_gives_unknowns_for_what_is_unknown(stage):
    unknown = torch.empty(3, 3, device=stage.device)
    assert np.isnan(params.host(unknown)).all()
    assert assign(unknown).shape == (3,)
    require_finite_loss(unknown, "x")
    assert mean_and_stderr(unknown)[0].shape == (3,)
