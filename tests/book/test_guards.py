"""The guards, over every chapter there is: re-running it then proves what is printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sokmerge.reader import guards
from sokmerge.reader.chapters import Chapter, chapters

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = chapters(ROOT)


@pytest.mark.parametrize("guard", guards.GUARDS, ids=lambda guard: guard.__name__)
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name)
def test_chapter(chapter: Chapter, guard) -> None:
    assert list(guard(chapter)) == []


def test_between_the_chapters() -> None:
    assert guards.check_book(ROOT) == []


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name)
def test_a_claim_rests_on_five_replicates(chapter: Chapter) -> None:
    for claim in chapter.claims:
        for test in claim.record["tests"]:
            assert test["n"] >= 5, f"{claim.record['id']}: {test['label']}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name)
def test_a_chapter_shows_figures_and_claims(chapter: Chapter) -> None:
    assert chapter.figures and chapter.claims
