"""The scorecard holds each claim on a property once, in its group, with its own verdict."""

from __future__ import annotations

import re

import pytest

from sokmerge.reader import Claim, Estimate, myst, pages, scorecard
from sokmerge.reader.chapters import chapter, chapters

HIGH = Estimate.of([0.9, 1.0, 1.1, 1.0, 1.0], label="a_b", unit="nats")
TESTS = {"yes": HIGH > 0, "no": HIGH < 0.5, "open": HIGH > 1.0}


@pytest.fixture
def book(executed_book):
    """A book with two chapters on properties, of two claims and of one, and one on none."""
    made = chapter("demo")
    for name, verdicts in (
        ("properties/modulo-permutation", ["no", "open"]),
        ("properties/convexity", ["yes"]),
    ):
        cell = [cell for cell in made.content.cells if cell.cell_type == "code"][6]
        empty = cell.outputs[0]
        cell.outputs = []
        for word in verdicts:
            claim = Claim(
                id=f"{word}-it-is", statement=f"It is *{word}*.", source="doe2020line",
                reported="1 <p>", prediction="1", tests=[TESTS[word]],
                figure="loss-line" if word == "yes" else None,
            )  # fmt: skip
            cell.outputs.append(type(empty)({**empty, "data": claim.bundle()}))
        path = executed_book / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        type(made)(path, executed_book, made.content).write()
    return executed_book


def test_each_claim_stands_in_the_group_of_its_property(book):
    text = scorecard.scorecard(scorecard.PROPERTIES, chapters(book))
    assert text.startswith(
        "Claims: 3, of which 1 supported, 1 not supported, 1 inconclusive at this scale.\n"
    )
    first, convexity, connectivity = text.split("\n### ")
    assert convexity.startswith("Mode convexity\n\nIn {doc}`/notebooks/properties/convexity`.")
    assert connectivity.startswith("Mode connectivity\n\nIn {doc}`/notebooks/properties/modulo-")
    assert "Claims: 2, of which 1 not supported, 1 inconclusive" in connectivity
    ids = re.findall(r"\{claim\}`([\w-]+)`", text)
    assert ids == ["yes-it-is", "no-it-is", "open-it-is"]
    counts = [re.findall(r"- (.+)", row) for row in first.split("* -")[1:]]
    assert counts[1:] == [["1", "1", "0", "0"], ["2", "0", "1", "1"], ["3", "1", "1", "1"]]
    assert "line-has-a-barrier" not in text


def test_a_row_says_what_was_reported_and_measured_and_where_to_look(book):
    text = scorecard.scorecard(scorecard.PROPERTIES, [chapter("convexity")])
    assert myst.literal("It is *yes*.") + " {cite:p}`doe2020line`" in text
    assert "\n  - 1 \\<p\\>\n" in text
    measured = chapter("convexity").claims[0].record["tests"][0]["measured"]
    told = f"  - a\\_b: {myst.literal(measured)}, n = 5; expected \\> 0\n"
    assert told in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "  - {claim}`yes-it-is`\n  - {numref}`fig-loss-line`\n" in text
    other = scorecard.scorecard(scorecard.PROPERTIES, [chapter("modulo-permutation")])
    assert "  - {claim}`no-it-is`\n  - –\n" in other


def test_a_chapter_without_claims_has_no_table(book):
    made = chapter("convexity")
    for cell in made.content.cells:
        cell.pop("outputs", None)
    none = "No chapter of this part holds a claim yet.\n"
    assert scorecard.scorecard(scorecard.PROPERTIES, [made]) == none
    text = scorecard.scorecard(scorecard.PROPERTIES, [made, chapter("modulo-permutation")])
    assert "convexity" not in text and text.count("### ") == 1


def test_it_is_written_for_the_chapters_that_the_contents_list(book):
    path = book / "book" / "_properties" / "scorecard.md"
    pages.write(book)
    assert not path.exists()
    with open(book / "_toc.yml", "a") as toc:
        toc.write("- file: notebooks/properties/convexity\n")
    assert path in pages.write(book)
    assert path.read_text() == scorecard.scorecard(scorecard.PROPERTIES, [chapter("convexity")])


def test_the_claims_that_the_page_links_are_counted_once_each(book):
    with open(book / "_toc.yml", "a") as toc:
        toc.write("- file: notebooks/properties/convexity\n")
    links = book / "book" / "_properties" / "links.md"
    pages.write(book)
    assert links.read_text() == "Claims that it links: 0.\n"
    (book / "book" / "properties.md").write_text(
        "{claim}`yes-it-is`, {claim}`no <no-it-is>`, {claim}`again <no-it-is>`"
    )
    pages.write(book)
    told = "Claims that it links: 2, of which 1 supported, 1 not supported.\n"
    assert links.read_text() == told


@pytest.mark.parametrize("part", scorecard.PARTS, ids=lambda part: part.name)
def test_every_chapter_of_a_part_is_in_a_group(root, part):
    """And no name of a group is misspelt, once its chapter is there."""
    assert len(part.chapters) == len(set(part.chapters))
    there = {made.name for made in chapters(root) if made.name.startswith(f"{part.name}/")}
    assert there <= set(part.chapters)


def test_another_zoo_has_a_column_once_it_is_known(book):
    known = {"master seed": 1, "claims": {}}
    asked = [("label", "a_b"), ("relation", "<"), ("threshold", 0.5)]
    other = {"chapter": "x", "tests": [dict(asked, measured="0.45", n=5)]}
    known["claims"]["no-it-is"] = {**other, "verdict": "supported"}
    known["claims"]["open-it-is"] = {**other, "verdict": "supported"}
    text = scorecard.scorecard(scorecard.PROPERTIES, [chapter("modulo-permutation")], known)
    assert "Of 1 claims that were asked again" in text and "1 the opposite one" in text
    assert "  - {claim}`no-it-is`\n  - supported" in text and "0.45" in text
    assert "  - {claim}`open-it-is`\n  - –\n" in text, "it asked something else there"
    asked = [("label", "a_b"), ("relation", ">"), ("threshold", 1.0)]
    alike = chapter("modulo-permutation").claims[1].record["tests"][0]
    alike = {**dict(asked), "measured": alike["measured"], "n": alike["n"]}
    known["claims"]["open-it-is"] = {"verdict": "inconclusive at this scale", "tests": [alike]}
    text = scorecard.scorecard(scorecard.PROPERTIES, [chapter("modulo-permutation")], known)
    assert "  - {claim}`open-it-is`\n  - same\n" in text, "five networks are of one zoo"
    known["claims"] = {}
    assert "nother zoo" not in scorecard.scorecard(
        scorecard.PROPERTIES, [chapter("modulo-permutation")], known
    )


def test_without_a_claim_the_count_is_none():
    assert scorecard.counted([]) == "Claims: 0."
