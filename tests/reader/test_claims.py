"""Claims: the computed verdict, and a card that everybody can read."""

import itertools
import json
from html.parser import HTMLParser

import pytest

from sokmerge.errors import ArgumentError
from sokmerge.reader import Claim, Estimate, show_claim
from sokmerge.reader.records import CLAIM

HIGH = Estimate.of([0.9, 1.0, 1.1, 1.0, 1.0], label="height", unit="nats")
HOLDS, FAILS, OPEN = HIGH > 0, HIGH < 0.5, HIGH > 1.0
WORDS = {HOLDS: "supported", FAILS: "not supported", OPEN: "inconclusive at this scale"}


def claim(**changed) -> Claim:
    parts = {
        "id": "lines-are-high",
        "statement": "Lines are high <everywhere> & always.",
        "source": "doe2020line",
        "reported": "a height of 1",
        "prediction": "a height above 0",
        "tests": [HOLDS],
    }
    return Claim(**(parts | changed))


def test_one_test_gives_its_own_verdict():
    for test, words in WORDS.items():
        assert test.verdict == claim(tests=[test]).verdict == words


@pytest.mark.parametrize("tests", list(itertools.product(WORDS, repeat=2)))
def test_two_tests_are_joined_by_and(tests):
    expected = WORDS[FAILS] if FAILS in tests else WORDS[OPEN] if OPEN in tests else WORDS[HOLDS]
    assert claim(tests=tests).verdict == expected


def test_too_few_replicates_support_nothing_and_say_so():
    few = claim(tests=[Estimate.of([1.0, 1.0, 1.01], label="height") > 0])
    assert few.verdict == "inconclusive at this scale"
    assert "rests on 3 replicates; a claim needs 5" in few.bundle()["text/html"]


class _Outline(HTMLParser):
    """The attributes of all elements, and whether each is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.attributes: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.attributes.append(dict(attrs))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("test", WORDS)
def test_card_says_all_in_words_and_has_an_address(test):
    outline = _Outline(claim(tests=[test]).bundle()["text/html"])
    assert outline.open == []
    card = outline.attributes[0]
    assert card["id"] == "claim-lines-are-high" and card["role"] == "group"
    assert card["aria-labelledby"] in {attributes.get("id") for attributes in outline.attributes}
    for part in (WORDS[test], "Lines are high <everywhere> & always.", "Doe 2020", "n = 5"):
        assert part in outline.text
    assert {"true"} == {a["aria-hidden"] for a in outline.attributes if "aria-hidden" in a}


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_verdicts_have_enough_contrast():
    from sokmerge.reader.claims import MARKS

    for _, colour in MARKS.values():
        assert 1.05 / (luminance(colour) + 0.05) >= 7


def test_record_is_plain_data_with_few_digits():
    record = claim(tests=[Estimate.of([1 / 3, 2 / 7, 0.3, 0.31, 0.29], label="x") < 0.5]).record()
    assert json.loads(json.dumps(record)) == record
    assert record["tests"][0]["mean"] == 0.304 and record["tests"][0]["method"].startswith("95 %")


def test_the_record_names_the_figure_if_there_is_one():
    assert "figure" not in claim().record()
    assert claim(figure="loss-line").bundle()[CLAIM]["figure"] == "loss-line"


def test_shown_outside_of_a_notebook_it_is_text(capsys):
    show_claim(claim())
    assert capsys.readouterr().out.startswith("Claim lines-are-high: supported\n")
    assert set(claim().bundle()) == {"text/plain", "text/html", CLAIM}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"id": "Lines Are High"}, "id: found 'Lines Are High'"),
        ({"statement": "  "}, "statement: found '  '"),
        ({"source": "Doe et al., 2020"}, "source: found"),
        ({"reported": ""}, "reported: found"),
        ({"tests": []}, "tests: found"),
        ({"tests": ["supported"]}, "tests: found"),
    ],
)
def test_a_claim_with_a_gap_is_refused(changed, told):
    with pytest.raises(ArgumentError, match=told):
        claim(**changed)
