"""What a merge did, in closed forms and against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sokmerge import merge, params
from sokmerge.errors import ArgumentError


def _point(**entries):
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in entries.items()}


BASE = _point(w=[[1.0, 2.0], [2.0, 4.0]], b=[0.0, 0.0])
A = _point(w=[[4.0, 6.0], [2.0, 4.0]], b=[0.0, 0.0])  # v = (3, 4, 0, 0 | 0, 0)
B = _point(w=[[1.0, -1.0], [2.0, 8.0]], b=[0.0, 12.0])  # v = (0, -3, 0, 4 | 0, 12)


def test_norms_cosines_and_moves_in_closed_form():
    merged = _point(w=[[1.0, 2.0], [2.0, 9.0]], b=[3.0, 4.0])
    found = merge.report([A, B], merged, base=BASE)
    assert found.origin == "base"
    np.testing.assert_array_equal(found.norms, [5.0, 13.0])
    np.testing.assert_allclose(found.cosines, [[1, -12 / 65], [-12 / 65, 1]], rtol=1e-15)
    assert found.moves == (
        merge.Move("w", 4, 5.0, 1.0),
        merge.Move("b", 2, 5.0, math.inf),
    )
    assert found.moved == merge.Move("all", 6, math.sqrt(50), math.sqrt(50) / 5)


def test_without_a_base_the_models_are_the_vectors_and_the_mean_is_the_origin():
    a, b = _point(w=[3.0, 4.0]), _point(w=[4.0, -3.0])
    found = merge.report([a, b], _point(w=[3.5, 0.5]))
    assert found.origin == "mean"
    np.testing.assert_array_equal(found.norms, [5.0, 5.0])
    assert found.cosines[0, 1] == 0 and found.moved.distance == 0 and found.moved.relative == 0
    assert found.signs == merge.Conflict(1.0, 2.0, 2)


def test_signs_conflict_where_two_vectors_that_move_an_entry_disagree():
    found = merge.report([A, B], BASE, base=BASE)
    assert found.signs == merge.Conflict(1.0, 1.0, 6) and found.signs.rate == 1.0
    # Of six entries the largest 20 % are one: 4 of A and 12 of B, in different places.
    assert found.largest == merge.Conflict(0.0, 0.0, 6) and math.isnan(found.largest.rate)


def test_entries_as_large_as_the_smallest_to_keep_are_all_kept():
    a, b = _point(w=[1.0, 1.0, 1.0, 0.5, 0.5]), _point(w=[-1.0, 1.0, -1.0, -0.5, 0.0])
    zero = _point(w=[0.0] * 5)
    found = merge.report([a, b], zero, base=zero)
    assert found.top == 0.2
    assert found.largest == merge.Conflict(2.0, 3.0, 5) and found.signs.conflicting == 3.0


def test_a_rank_is_over_the_whole_vector_not_over_a_tensor():
    base = _point(large=[0.0, 0.0], small=[0.0, 0.0])
    a = _point(large=[5.0, 6.0], small=[0.1, 0.2])
    b = _point(large=[5.0, 6.0], small=[-0.1, -0.2])
    found = merge.report([a, b], base, base=base, top=0.5)
    assert found.signs.rate == 0.5 and found.largest == merge.Conflict(0.0, 2.0, 4)


def _numbers(k):
    vector = st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0]), min_size=7, max_size=7)
    return st.lists(vector, min_size=k, max_size=k)


@settings(max_examples=30)
@given(_numbers(3), st.sampled_from([0.2, 0.5, 1.0]))
def test_the_counts_are_those_of_counting_by_hand(vectors, top):
    zero = _point(w=[0.0] * 4, b=[0.0] * 3)
    models = [_point(w=v[:4], b=v[4:]) for v in vectors]
    found = merge.report(models, zero, base=zero, top=top)
    kept = []
    for v in vectors:
        least = sorted(map(abs, v), reverse=True)[max(1, round(top * 7)) - 1]
        kept.append([x if abs(x) >= least else 0.0 for x in v])
    for conflict, rows in ((found.signs, vectors), (found.largest, kept)):
        columns = list(zip(*rows, strict=True))
        assert conflict.conflicting == sum(min(c) < 0 < max(c) for c in columns)
        assert conflict.shared == sum(sum(x != 0 for x in c) > 1 for c in columns)
        assert conflict.entries == 7


@settings(max_examples=15)
@given(_numbers(4), st.permutations(range(4)))
def test_the_order_of_the_models_only_orders_norms_and_cosines(vectors, order):
    models = [_point(w=v[:4], b=v[4:]) for v in vectors]
    base = _point(w=[0.5] * 4, b=[-0.5] * 3)
    merged = merge.task_arithmetic(models, base=base)
    one = merge.report(models, merged, base=base)
    other = merge.report([models[i] for i in order], merged, base=base)
    np.testing.assert_array_equal(one.norms[list(order)], other.norms)
    np.testing.assert_array_equal(one.cosines[np.ix_(order, order)], other.cosines)
    assert (one.signs, one.largest, one.moves, one.moved) == (
        other.signs,
        other.largest,
        other.moves,
        other.moved,
    )


def test_a_vector_of_zero_has_no_direction():
    found = merge.report([A, BASE], A, base=BASE)
    assert found.norms[1] == 0 and np.isnan(found.cosines[1]).all()


def test_half_precision_is_summed_wide():
    n = 5000  # in float16 neither the sum of squares nor the norm could be held
    model = {"w": torch.full((n,), 8.0, dtype=torch.float16)}
    base = {"w": torch.zeros(n, dtype=torch.float16)}
    found = merge.report([model], model, base=base)
    assert found.norms[0] == found.moved.distance == 8 * math.sqrt(n)


# --- what was not averaged --------------------------------------------------------------------


def _with(point, steps, mask=(1.0,)):
    return {**point, "steps": torch.tensor(steps), "mask": torch.tensor(mask)}


def test_entries_that_are_no_coordinates_are_noted_with_their_rule():
    models, base = [_with(A, 3), _with(B, 4)], _with(BASE, 5)
    rules = {
        "average": (merge.average(models), "differs, as in models[0]"),
        "task arithmetic": (merge.task_arithmetic(models, base=base), "differs, as in base"),
        "by hand": (_with(A, 9), "differs, as in none"),
    }
    for merged, rule in rules.values():
        found = merge.report(models, merged, base=base)
        told = {note.names: (note.kind, note.rule) for note in found.notes}
        assert told[("steps",)] == ("not floating point", rule)
        assert told[("mask",)] == ("constant", "equal in all, left as it is")
        assert told.keys() == {("steps",), ("mask",)}


def test_a_constant_that_the_merge_changed_is_noted():
    models = [_with(A, 3), _with(B, 3)]
    found = merge.report(models, _with(A, 3, mask=(0.5,)))
    assert [(note.names, note.rule) for note in found.notes] == [
        (("steps",), "equal in all, left as it is"),
        (("mask",), "equal in all, changed by the merge"),
    ]


def test_the_notes_of_a_reconciliation_are_carried_along():
    found = merge.reconcile([{**A, "again": A["w"]}, {**B, "again": B["w"]}])
    merged = merge.average(found.models)
    told = merge.report(found.models, merged, notes=found.notes)
    assert told.notes == found.notes and told.notes[0].kind == "tied"
    assert "w = again: tied" in str(told)


# --- as a table and as text -------------------------------------------------------------------


def test_rows_make_a_table():
    models, base = [_with(A, 3), _with(B, 4)], _with(BASE, 5)
    found = merge.report(models, merge.task_arithmetic(models, base=base), base=base)
    table = pd.DataFrame(found.as_rows()).set_index("tensor")
    assert list(table.index) == ["w", "b", "mask", "steps"]
    assert table.rule["w"] == "merged" and table.rule["steps"] == "differs, as in base"
    assert table.rule["mask"] == "equal in all, left as it is" and table.distance["mask"] == 0
    assert np.isnan(table.distance["steps"]) and table.entries["w"] == 4


def test_the_text_is_short_and_says_it_all():
    models, base = [_with(A, 3), _with(B, 4)], _with(BASE, 5)
    text = str(merge.report(models, merge.task_arithmetic(models, base=base), base=base))
    assert text.splitlines() == [
        "models: 2, entries: 7, tensors: 3",
        "norms of the task vectors: 5, 13",
        "cosines: -0.18",
        "signs: 1 of 7 entries are shared, 100.0% of these conflict",
        "signs of the largest 20%: 0 of 7 entries are shared",
        "moved: 13.04 (255.7% of its norm) from the base",
        "moved most: b, 12",
        "steps: not floating point in models[0], models[1], base; differs, as in base",
        "mask: constant in models[0], models[1], base; equal in all, left as it is",
    ]


def test_notes_that_say_one_thing_share_a_line():
    steps = {f"norm.{i}.steps": torch.tensor(i) for i in range(3)}
    told = str(merge.report([{**A, **steps}, {**B, **steps}], {**A, **steps}))
    assert "norm.0.steps (and 2 more): not floating point in models[0], models[1]; equal" in told
    assert "norm.1.steps" not in told


def test_one_model_is_compared_with_nothing():
    found = merge.report([A], A)
    assert found.cosines.tolist() == [[1.0]] and found.notes == ()
    assert "cosines" not in str(found) and "signs" not in str(found)


@pytest.mark.parametrize(
    ("arguments", "subject"),
    [
        ({"models": []}, "models"),
        ({"merged": _point(w=[1.0])}, "merged"),
        ({"base": _point(w=[1.0])}, "base"),
        ({"top": 0.0}, "top"),
        ({"top": 1.5}, "top"),
    ],
)
def test_what_cannot_be_reported_is_refused(arguments, subject):
    with pytest.raises(ArgumentError) as caught:
        merge.report(**{"models": [A, B], "merged": A, **arguments})
    assert caught.value.subject == subject


def test_nothing_to_report_of_counters_alone():
    counters = {"steps": torch.tensor(1)}
    with pytest.raises(ArgumentError, match="no floating-point entry"):
        merge.report([counters], counters)


def test_it_works_on_each_device(device):
    there = [params.to(p, device) for p in (A, B, BASE)]
    found = merge.report(there[:2], there[0], base=there[2])
    np.testing.assert_allclose(found.norms, [5.0, 13.0], rtol=1e-6)
