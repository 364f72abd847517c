"""What stands beside the methods, rehearsed on every network for devices that are not there."""

from __future__ import annotations

import numpy as np

from sokmerge import merge


def test_a_report_knows_no_number(stage):
    found = merge.report([stage.a, stage.b], stage.c, base=stage.c)
    assert np.isnan(found.norms).all() and np.isnan(found.signs.conflicting)
    assert [move.name for move in found.moves] == list(stage.a)
    assert str(found) and len(found.as_rows()) == len(stage.a)


def test_what_has_no_values_is_reconciled(stage):
    shared = {**stage.a, "again": next(iter(stage.a.values()))}
    found = merge.reconcile([shared, stage.b], absent="skip")
    stage.require_there(*found.models)
    assert [note.kind for note in found.notes] == ["tied"]
    stage.require_there(found.complete(found.models[0]))
