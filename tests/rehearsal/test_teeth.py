"""The rehearsal has teeth: a fault would be caught, and nothing is left out of it."""

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
    FakeTensorDeviceMismatchError,
)

import sokmerge
from sokmerge import merge, params, probe
from sokmerge.merge.alignment.matching import assign
from sokmerge.probe.risk import mean_and_stderr, require_finite_loss

WAITS = (DataDependentOutputException, DynamicOutputShapeException)
FAULTS = {
    "a number is looked at": (WAITS, lambda s, w: params.norm(s.a).item()),
    "a number is rounded": (WAITS, lambda s, w: round(float(params.norm(s.a)))),
    "a condition is decided": (WAITS, lambda s, w: bool((s.a[w] > 0).all())),
    "a list is made": (WAITS, lambda s, w: s.a[w].tolist()),
    "entries are selected": (WAITS, lambda s, w: s.a[w][s.a[w] > 0]),
    "two tensors are compared": (WAITS, lambda s, w: torch.equal(s.a[w], s.b[w])),
    "an array is made": (RuntimeError, lambda s, w: s.a[w].numpy()),
    "a tensor is left behind": (
        FakeTensorDeviceMismatchError,
        lambda s, w: s.b[w] + torch.ones(s.b[w].shape),
    ),
    "indices are left behind": (
        FakeTensorDeviceMismatchError,
        lambda s, w: s.a[w].index_select(1, torch.arange(2)),
    ),
    "a module is left behind": (RuntimeError, lambda s, w: nn.Linear(10, 2)(s.inputs)),
}

# What is shown here is a property of the mode, not of a network.
EACH_DEVICE = pytest.mark.parametrize(
    "stage", [("meta", "mlp"), ("cuda", "mlp")], ids="-".join, indirect=True
)


@EACH_DEVICE
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_would_be_caught(stage, fault):
    error, run = FAULTS[fault]
    with pytest.raises(error):
        run(stage, stage.linear[-1])


@pytest.mark.parametrize("fault", [name for name, (error, _) in FAULTS.items() if error is WAITS])
@pytest.mark.parametrize("stage", [("meta", "transformer")], ids="-".join, indirect=True)
def test_waiting_fails_without_the_mode_too(stage, fault):
    with pytest.raises((RuntimeError, NotImplementedError)):
        FAULTS[fault][1](stage, stage.linear[-1])


@EACH_DEVICE
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
        probe.line(risk, stage.a, stage.b, points=3, together=1)
    with pytest.raises((RuntimeError, FakeTensorDeviceMismatchError)):  # vmap says it in its words
        probe.line(risk, stage.a, stage.b, points=3, together=3)


def test_each_method_stands_in_a_branch_that_is_rehearsed(declared):
    branches = [declared(f) for f in ("ensembling", "aggregation", "task_vectors", "alignment")]
    assert set().union(*branches) == {d.name for d in merge.methods()}


# --- where waiting is allowed -----------------------------------------------------------------

WAITING = {"item", "tolist", "cpu", "numpy", "nonzero", "synchronize", "equal", "allclose"}
ALLOWED = {
    ("params.py", "host"),  # every number that a decision or a result needs
    ("merge/alignment/matching.py", "assign"),  # the assignment is solved on the host
    ("merge/alignment/matching.py", "assign_nested"),  # so are those within one another
    # Arrays that were never on a device: candidates of a search, units and places of a symmetry,
    # weights, radii and numbers that a probe was given, and its draws.
    ("merge/aggregation/evolutionary.py", "made"),
    ("merge/alignment/similarities.py", "_updated"),
    ("probe/convexity.py", "basin"),
    ("probe/convexity.py", "hull"),
    ("probe/directedness/subspace.py", "share"),
    ("probe/star.py", "star"),
    ("symmetry/factors.py", "mixing"),
    ("symmetry/permutation.py", "sample"),
    ("symmetry/solving.py", "_axes"),
    ("symmetry/units.py", "_of_kin"),
}


def _waiting(source):
    """Names of the functions in which a method is called that waits for the device."""

    def within(node, name):
        for child in ast.iter_child_nodes(node):
            own = child.name if isinstance(child, ast.FunctionDef) else name
            called = child.func if isinstance(child, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in WAITING:
                yield own
            yield from within(child, own)

    yield from within(ast.parse(source), "")


def test_a_call_that_waits_is_told_with_the_function_it_stands_in():
    source = "def f(t):\n    def g():\n        return t.item()\n    return g, [t.max().tolist()]"
    assert list(_waiting(source)) == ["g", "f"]
    assert list(_waiting("x = t.cpu()")) == [""]


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


@EACH_DEVICE
def test_what_waits_gives_unknowns_for_what_is_unknown(stage):
    unknown = torch.empty(3, 3, device=stage.device)
    assert np.isnan(params.host(unknown)).all()
    assert assign(unknown).shape == (3,)
    require_finite_loss(unknown, "x")
    assert mean_and_stderr(unknown)[0].shape == (3,)
