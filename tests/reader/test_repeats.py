"""Verdicts in another zoo are kept for the claims that ask the same, and only for these."""

from __future__ import annotations

import json

import pytest

from sokmerge.errors import ArgumentError, FileError
from sokmerge.reader import listing, repeats
from sokmerge.reader.chapters import chapter, chapters


def test_a_book_without_the_file_has_repeated_nothing(executed_book):
    assert repeats.kept(executed_book)["claims"] == {}
    claim = listing.claims(chapters(executed_book))[0]
    assert repeats.repeated(claim, repeats.kept(executed_book)) is None


def test_verdicts_are_kept_and_read_back(executed_book):
    path = repeats.keep(executed_book, [chapter("demo")], 3)
    assert path == executed_book / repeats.FILE
    known = repeats.kept(executed_book)
    assert known["master seed"] == 3
    claim = listing.claims([chapter("demo")])[0]
    other = repeats.repeated(claim, known)
    assert other["verdict"] == claim["verdict"] and other["chapter"] == "part/demo"
    assert other["tests"][0]["measured"] == claim["tests"][0]["measured"]


def test_claims_of_other_chapters_stay_if_the_zoo_is_the_same(executed_book):
    repeats.keep(executed_book, [chapter("demo")], 3)
    path = executed_book / repeats.FILE
    content = json.loads(path.read_text())
    content["claims"]["elsewhere"] = {"chapter": "part/two", "verdict": "supported", "tests": []}
    content["claims"]["gone"] = {"chapter": "part/demo", "verdict": "supported", "tests": []}
    path.write_text(json.dumps(content))
    repeats.keep(executed_book, [chapter("demo")], 3)
    assert set(repeats.kept(executed_book)["claims"]) == {"elsewhere", "line-has-a-barrier"}
    repeats.keep(executed_book, [chapter("demo")], 4)
    assert set(repeats.kept(executed_book)["claims"]) == {"line-has-a-barrier"}


def test_the_shipped_zoo_is_not_another_one_and_a_broken_file_is_told(executed_book):
    with pytest.raises(ArgumentError, match="SOKMERGE_MASTER_SEED"):
        repeats.keep(executed_book, [], 0)
    (executed_book / repeats.FILE).write_text("{")
    with pytest.raises(FileError, match="chapters repeat"):
        repeats.kept(executed_book)
