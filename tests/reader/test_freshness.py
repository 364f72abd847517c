"""A stale chapter says why."""

import copy
import json

import pytest

from sokmerge.files import sha256
from sokmerge.reader import freshness
from sokmerge.reader.chapters import chapter, code_cells

CSV = "book/public/figures/loss-line/loss-line.csv"
JSON = "book/public/figures/loss-line/loss-line.json"


@pytest.fixture
def made(executed_book):
    return chapter("demo")


def test_a_chapter_just_executed_is_fresh(made):
    assert freshness.stale(made) == []


def test_one_never_executed_is_stale(small_book):
    assert freshness.stale(chapter("demo")) == [
        "it was never executed by `sokmerge chapters execute`"
    ]


def test_prose_may_change_and_code_may_not(made):
    prose = next(cell for cell in made.content.cells if cell.cell_type == "markdown")
    prose.source += "\n\nAnother sentence."
    assert freshness.stale(made) == []
    code_cells(made.content)[2].source += "  # a comment"
    assert freshness.stale(made) == ["its code cells have changed"]


def test_outputs_are_those_of_the_run_pictures_included(made):
    picture = made.figures[0].output.data
    picture["image/png"] = picture["image/png"][::-1]
    assert freshness.stale(made) == ["its outputs are not those of its last execution"]


def test_code_and_inputs_it_was_made_with_are_named(made):
    stamped = made.content.metadata.sokmerge
    stamped.modules["sokmerge.reader.claims"] = "0" * 64
    stamped.modules["sokmerge.reader.no_longer"] = "0" * 64
    stamped.inputs["testbed/no_longer.npz"] = "0" * 64
    stamped.inputs["full-set-of-somebody.npz"] = "0" * 64
    assert freshness.stale(made) == [
        "module sokmerge.reader.claims has changed",
        "module sokmerge.reader.no_longer is gone",
        "input testbed/no_longer.npz is gone",
    ]


def test_an_input_that_changed_is_named(made):
    from sokmerge import inputs

    stamped = made.content.metadata.sokmerge
    stamped.inputs["reader/claims.py"] = sha256(inputs.PACKAGE / "reader" / "claims.py")
    assert freshness.stale(made) == []
    stamped.inputs["reader/claims.py"] = "0" * 64
    assert freshness.stale(made) == ["input reader/claims.py has changed"]


def test_files_of_a_figure_are_those_of_the_run(made, executed_book):
    table, told = executed_book / CSV, executed_book / JSON
    before = table.read_text()
    table.write_text(before.replace("0.25", "0.26"))
    assert freshness.stale(made) == [
        "the CSV of figure loss-line was not made by its last execution",
        "loss-line.csv is not the file that the JSON of figure loss-line vouches for",
    ]
    table.unlink()
    assert freshness.stale(made) == ["figure loss-line has no CSV file"]
    table.write_text(before)
    kept = told.read_text()
    told.unlink()
    assert freshness.stale(made) == ["figure loss-line has no JSON file"]
    told.write_text(kept)
    (executed_book / "book/public/figures/loss-line/loss-line.svg").unlink()
    assert freshness.stale(made) == [
        "loss-line.svg is not the file that the JSON of figure loss-line vouches for"
    ]
    told.write_text("{")
    assert freshness.stale(made) == ["the JSON of figure loss-line cannot be read"]
    assert json.loads(kept)["files"].keys() == {f"loss-line.{s}" for s in ("svg", "pdf", "csv")}


def test_the_hash_of_cells_knows_order_and_tags(made):
    content = made.content
    hashes = {freshness.hash_of_cells(content)}
    turned = copy.deepcopy(content)
    turned.cells.reverse()
    hashes.add(freshness.hash_of_cells(turned))
    tagged = copy.deepcopy(content)
    code_cells(tagged)[0].metadata["tags"] = ["raises-exception"]
    hashes.add(freshness.hash_of_cells(tagged))
    assert len(hashes) == 3
