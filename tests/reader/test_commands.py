"""The book from the command line."""

import json

import pytest
from typer.testing import CliRunner

from sokmerge.cli import app
from sokmerge.reader import repeats
from sokmerge.reader.chapters import chapter


@pytest.fixture
def call():
    def call(*arguments, **how):
        return CliRunner().invoke(app, arguments, **how)

    return call


def test_claims_and_figures_as_data(executed_book, call):
    [claim] = json.loads(call("claims", "--json").stdout)
    assert set(claim) == {
        *("id", "chapter", "title", "address", "statement", "source", "reported"),
        *("prediction", "verdict", "tests"),
    }
    assert claim["address"] == "notebooks/part/demo.html#claim-line-has-a-barrier"
    assert set(claim["tests"][0]) == {
        *("label", "relation", "threshold", "mean", "low", "high", "n", "unit", "method"),
        *("measured", "verdict", "reason"),
    }
    [figure] = json.loads(call("figures", "--json").stdout)
    assert set(figure) == {
        *("id", "chapter", "title", "address", "files", "licence", "bibtex", "caption", "alt"),
        *("columns", "rows", "seeds", "recipes", "tolerance"),
    }
    assert figure["files"]["svg"] == "figures/loss-line/loss-line.svg"
    assert "https://example.org/notebooks/part/demo.html#fig-loss-line" in figure["bibtex"]


def test_claims_and_figures_as_tables(executed_book, call):
    assert "line-has-a-barrier  part/demo  doe2020line  supported" in call("claims").stdout
    assert "1 claims: 1 supported" in call("claims").stdout
    assert "loss-line  part/demo" in call("figures").stdout


def test_unknown_ids_are_told_with_what_is_close(executed_book, call):
    assert len(json.loads(call("figures", "loss-line", "--json").stdout)) == 1
    told = call("figures", "los-line")
    assert told.exit_code == 1
    assert "figure id: found 'los-line'; expected one of loss-line." in told.stderr
    assert "claim id: found 'x'; expected one of line-has-a-barrier" in call("claims", "x").stderr


def test_a_book_without_chapters_has_nothing_to_tell(small_book, call):
    chapter("demo").path.unlink()
    assert json.loads(call("claims", "--json").stdout) == []
    assert json.loads(call("figures", "--json").stdout) == []
    assert "0 figures" in call("figures").stdout
    assert call("chapters", "execute", "--stale").exit_code == 0
    assert call("chapters", "check").exit_code == 0


def test_a_chapter_from_stale_to_checked(small_book, call):
    assert "never executed" in call("chapters", "list").stdout
    assert call("chapters", "check").exit_code == 1
    told = call("chapters", "execute", "--stale", "--jobs", "1")
    assert told.exit_code == 0
    assert "part/demo is stale: it was never executed" in told.stdout
    assert "1 chapters executed, 0 failed" in told.stdout
    assert "0 chapters executed" in call("chapters", "execute", "--stale").stdout
    assert "1 figures, 1 claims" in call("chapters", "list").stdout
    assert call("chapters", "check").exit_code == 0
    files = {path: path.read_bytes() for path in small_book.rglob("*") if path.is_file()}
    told = call("chapters", "repeat", "--jobs", "1", env={"SOKMERGE_MASTER_SEED": "1"})
    assert "line-has-a-barrier: supported\n" in told.stdout and told.exit_code == 0
    assert files == {path: path.read_bytes() for path in files}, "only the verdicts are kept"
    assert repeats.kept(small_book)["claims"].keys() == {"line-has-a-barrier"}
    told = call("chapters", "repeat")
    assert told.exit_code == 1 and "SOKMERGE_MASTER_SEED: found 0" in told.stderr
    assert call("chapters", "check").exit_code == 0
    written = [line.rsplit("/", 1)[-1] for line in call("pages").stdout.splitlines()]
    parts = ["map.html", "needs.md", "equations.md"]
    assert written == ["claims-ledger.md", "figure-index.md", *parts, "loss-line.png"]


def test_what_fails_is_named_and_counted(small_book, add_chapter, call):
    add_chapter(small_book, "part/broken", ["1 / 0"])
    told = call("chapters", "execute", "part/broken")
    assert told.exit_code == 1
    assert "broken.ipynb, code cell 1: found ZeroDivisionError" in told.stderr
    assert "0 chapters executed, 1 failed" in told.stdout
    told = call("chapters", "execute", "brokn")
    assert told.exit_code == 1 and "expected one of part/broken" in told.stderr
