"""Each rule for what cannot be averaged: what is done, that it is said, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sokmerge import merge, params
from sokmerge.errors import ArgumentError


def _tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_models_that_match_are_left_alone():
    a, b = {"w": _tensor(1.0), "v": _tensor(2.0)}, {"w": _tensor(3.0), "v": _tensor(2.0)}
    found = merge.reconcile([a, b], base=b)
    assert found.notes == () and found.aliases == {}
    assert found.models[0]["w"] is a["w"] and found.models[1]["w"] is b["w"]
    assert _same(found.base, b) and _same(found.complete(a), a)


# --- not floating point -----------------------------------------------------------------------


def _counting(*steps):
    return [{"w": _tensor(float(i)), "steps": torch.tensor(s)} for i, s in enumerate(steps)]


@pytest.mark.parametrize(
    ("steps", "base", "expected", "rule"),
    [
        ((3, 3), None, 3, "equal in all, left as it is"),
        ((3, 3), 3, 3, "equal in all, left as it is"),
        ((3, 4), None, 3, "differs, taken from models[0]"),
        ((3, 4), 5, 5, "differs, taken from base"),
        ((3, 3), 5, 5, "differs, taken from base"),
    ],
)
def test_a_counter_is_not_averaged(steps, base, expected, rule):
    base = None if base is None else {"w": _tensor(9.0), "steps": torch.tensor(base)}
    found = merge.reconcile(_counting(*steps), base=base)
    (note,) = found.notes
    who = ("models[0]", "models[1]") if base is None else ("base", "models[0]", "models[1]")
    assert note == merge.Note("not floating point", ("steps",), who, rule)
    assert [int(model["steps"]) for model in found.models] == [expected, expected]
    assert int(merge.average(found.models)["steps"]) == expected


def test_a_large_counter_is_compared_exactly():
    big = 2**60
    (note,) = merge.reconcile(_counting(big, big + 1)).notes
    assert note.rule.startswith("differs")


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.uint8])
def test_other_kinds_of_numbers_are_not_averaged_either(dtype):
    models = [{"w": _tensor(1.0), "m": torch.tensor([x, 1]).to(dtype)} for x in (0, 1)]
    (note,) = merge.reconcile(models).notes
    assert note.kind == "not floating point" and note.rule == "differs, taken from models[0]"


# --- tied ---------------------------------------------------------------------------------------


def _tied(value, *, names=("embed", "head")):
    shared = _tensor(value, value + 1)
    return {**dict.fromkeys(names, shared), "w": _tensor(value)}


def test_a_tie_is_merged_once_and_stays_a_tie():
    models = [_tied(1.0), _tied(3.0)]
    found = merge.reconcile(models)
    assert found.notes == (
        merge.Note("tied", ("embed", "head"), ("models[0]", "models[1]"), "merged once"),
    )
    assert [list(model) for model in found.models] == [["embed", "w"]] * 2
    merged = found.complete(merge.average(found.models))
    assert merged["head"] is merged["embed"]
    assert torch.equal(merged["embed"], _tensor(2.0, 3.0))
    assert merged.keys() == models[0].keys()


def test_a_tie_is_seen_through_views_and_counts_once_in_a_norm():
    flat = _tensor(3.0, 4.0)
    (model,) = merge.reconcile([{"a": flat, "b": flat.view(2)}]).models
    assert float(params.norm(model)) == 5.0


def test_three_names_of_one_tensor():
    found = merge.reconcile([_tied(1.0, names=("x", "y", "z")), _tied(2.0, names=("x", "y", "z"))])
    assert found.aliases == {"y": "x", "z": "x"}
    merged = found.complete(found.models[0])
    assert merged["x"] is merged["y"] is merged["z"]


def test_a_copy_with_equal_values_agrees_with_a_tie():
    copied = {name: tensor.clone() for name, tensor in _tied(3.0).items()}
    found = merge.reconcile([_tied(1.0), copied])
    (note,) = found.notes
    assert note.models == ("models[0]",) and note.rule == "equal in models[1], merged once"
    assert found.aliases == {"head": "embed"}


def test_a_model_with_two_values_gives_up_the_tie_and_loses_nothing():
    apart = {"embed": _tensor(1.0, 1.0), "head": _tensor(5.0, 5.0), "w": _tensor(0.0)}
    found = merge.reconcile([_tied(3.0), apart])
    (note,) = found.notes
    assert note.rule == "different values in models[1], merged as different tensors"
    assert found.aliases == {}
    merged = found.complete(merge.average(found.models))
    assert torch.equal(merged["embed"], _tensor(2.0, 2.5))
    assert torch.equal(merged["head"], _tensor(4.0, 4.5))


def test_equal_values_alone_are_no_tie():
    models = [{"bias": _tensor(0.0), "other": _tensor(0.0)} for _ in range(2)]
    assert merge.reconcile(models).notes == ()


def test_a_tie_of_which_a_file_holds_one_name():
    saved = {name: tensor for name, tensor in _tied(3.0).items() if name != "head"}
    found = merge.reconcile([_tied(1.0), saved], base=_tied(0.0))
    (note,) = found.notes
    assert note.models == ("base", "models[0]")
    assert note.rule == "absent in models[1] and taken for tied, merged once"
    merged = found.complete(merge.task_arithmetic(found.models, base=found.base))
    assert torch.equal(merged["head"], _tensor(4.0, 5.0))


def test_what_is_tied_only_somewhere_is_absent_all_the_same():
    saved = {name: tensor for name, tensor in _tied(3.0).items() if name != "head"}
    copied = {name: tensor.clone() for name, tensor in _tied(3.0).items()}
    with pytest.raises(ArgumentError, match=r"models\[1\]: found no entry 'head'"):
        merge.reconcile([_tied(1.0), saved, copied])


def test_slices_of_one_flat_buffer_are_no_tie():
    flat = _tensor(1.0, 2.0, 3.0, 4.0)
    found = merge.reconcile([{"a": flat[:2], "b": flat[2:]}])
    assert found.notes == ()


@pytest.mark.parametrize(
    "views",
    [lambda t: (t, t.T), lambda t: (t, t[0]), lambda t: (t.flatten()[:3], t.flatten()[1:])],
    ids=["transposed", "a part", "overlapping"],
)
def test_memory_shared_otherwise_is_refused(views):
    a, b = views(torch.arange(4.0).reshape(2, 2))
    with pytest.raises(ArgumentError, match=r"models\[0\]\['b'\]: found memory shared with 'a'"):
        merge.reconcile([{"a": a, "b": b}])


def test_an_empty_tensor_is_tied_to_nothing():
    assert (
        merge.reconcile([{"a": torch.zeros(0), "b": torch.zeros(0), "c": _tensor(1.0)}]).notes == ()
    )


# --- absent -------------------------------------------------------------------------------------

FULL, PART = {"w": _tensor(1.0), "head": _tensor(2.0)}, {"w": _tensor(3.0)}


def test_an_absent_entry_is_an_error_by_default():
    with pytest.raises(ArgumentError, match=r"models\[1\]: found no entry 'head'") as caught:
        merge.reconcile([FULL, PART])
    assert "absent='skip'" in str(caught.value)


def test_an_absent_entry_is_left_out():
    for models in ([FULL, PART], [PART, FULL]):
        found = merge.reconcile(models, base=FULL, absent="skip")
        who = f"models[{models.index(PART)}]"
        assert found.notes == (merge.Note("absent", ("head",), (who,), "left out"),)
        assert all(model.keys() == {"w"} for model in (*found.models, found.base))


def test_an_absent_entry_is_taken_from_the_base():
    base = {"w": _tensor(0.0), "head": _tensor(7.0)}
    found = merge.reconcile([FULL, PART], base=base, absent="base")
    assert found.notes == (merge.Note("absent", ("head",), ("models[1]",), "taken from the base"),)
    assert found.models[1]["head"] is base["head"]
    merged = merge.task_arithmetic(found.models, base=found.base)
    assert torch.equal(merged["head"], FULL["head"])


@pytest.mark.parametrize(
    ("arguments", "subject"),
    [
        ({"models": []}, "models"),
        ({"models": [FULL], "absent": "drop"}, "absent"),
        ({"models": [FULL, PART], "absent": "base"}, "base"),
        ({"models": [FULL], "base": PART, "absent": "base"}, "base"),
        ({"models": [{"a": _tensor(1.0)}, {"b": _tensor(1.0)}], "absent": "skip"}, "models"),
        ({"models": [PART, {"w": _tensor(1.0, 2.0)}]}, "models[1]['w']"),
        ({"models": [PART, {"w": torch.ones(1)}]}, "models[1]['w']"),
        ({"models": [{"w": _tensor(float("nan"))}]}, "models[0]['w']"),
    ],
)
def test_what_no_rule_covers_is_refused(arguments, subject):
    with pytest.raises(ArgumentError) as caught:
        merge.reconcile(**arguments)
    assert caught.value.subject == subject


# --- together -----------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.permutations(range(3)), st.booleans())
def test_nothing_is_lost_silently(order, with_base):
    """Every name of every operand is in the result or in a note, and no operand is changed."""
    pool = [
        _tied(1.0) | {"steps": torch.tensor(1)},
        {"embed": _tensor(0.0, 1.0), "w": _tensor(5.0), "steps": torch.tensor(2)},
        _tied(3.0) | {"steps": torch.tensor(1), "extra": _tensor(8.0)},
    ]
    models = [pool[i] for i in order]
    base = _tied(0.0) | {"steps": torch.tensor(0)} if with_base else None
    before = [dict(model) for model in models]
    found = merge.reconcile(models, base=base, absent="skip")
    assert all(_same(a, b) for a, b in zip(models, before, strict=True))
    result = found.complete(merge.average(found.models))
    told = {name for note in found.notes for name in note.names}
    assert set().union(*models) <= result.keys() | told
    assert told == {"embed", "head", "steps", "extra"}
    expected = sum(model["embed"] for model in models) / 3
    torch.testing.assert_close(result["head"], expected, rtol=1e-14, atol=0)
    assert merge.reconcile(found.models, base=found.base).aliases == {}


def test_complete_asks_for_what_was_merged():
    found = merge.reconcile([_tied(1.0), _tied(2.0)])
    with pytest.raises(ArgumentError, match="no entry 'embed'"):
        found.complete({"w": _tensor(1.0)})


def test_it_works_on_each_device(device):
    models = [params.to(m, device) for m in _counting(1, 2)]
    found = merge.reconcile(models)
    assert found.models[1]["w"].device.type == device.type and len(found.notes) == 1
