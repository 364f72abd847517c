"""The role `claim`: a link whose verdict is that of the card, and a warning where there is none."""

from __future__ import annotations

import importlib
import io
import os
import re
import sys
import time
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from sokmerge.reader import Claim, Estimate
from sokmerge.reader.claims import MARKS

ROOT = Path(__file__).resolve().parents[2]
HIGH = Estimate.of([0.9, 1.0, 1.1, 1.0, 1.0], label="height")
TESTS = {"yes": HIGH > 0, "no": HIGH < 0.5, "open": HIGH > 1.0}

PAGE = """\
# A page

One {claim}`yes-it-is`. Two, {claim}`some *words* & more <no-it-is>`. Three {claim}`open-it-is`.
"""


@pytest.fixture(scope="module")
def links():
    """The extension, as a module."""
    sys.path.insert(0, str(ROOT / "book" / "_ext"))
    try:
        yield importlib.import_module("claim_links")
    finally:
        sys.path.remove(str(ROOT / "book" / "_ext"))


def _claims():
    for word, test in TESTS.items():
        yield Claim(
            id=f"{word}-it-is", statement=f"It is {word}.", source="doe2020line", reported="1",
            prediction="1", tests=[test],
        ).record() | {"chapter": "part/demo"}  # fmt: skip


def _built(links, base: Path, page: str, claims, monkeypatch) -> tuple[BeautifulSoup, str, Sphinx]:
    """Build a site of that page and of a chapter; return the page and the warnings."""
    monkeypatch.setattr(links, "chapters", lambda _: [])
    monkeypatch.setattr(links.listing, "claims", lambda _: list(claims))
    (base / "notebooks" / "part").mkdir(parents=True, exist_ok=True)
    (base / "notebooks" / "part" / "demo.md").write_text("# A chapter\n")
    source = f"{page}\n```{{toctree}}\nnotebooks/part/demo\n```\n"
    if not (base / "index.md").exists():
        (base / "index.md").write_text(source)
    warnings = io.StringIO()
    configuration = {"extensions": ["myst_parser", "claim_links"], "html_theme": "basic"}
    with docutils_namespace():
        app = Sphinx(
            base, None, base / "_build", base / "_doctrees", "html", configuration,
            status=None, warning=warnings,
        )  # fmt: skip
        app.build()
    page = BeautifulSoup((base / "_build" / "index.html").read_text(), "html.parser")
    return page, warnings.getvalue(), app


def test_a_link_leads_to_the_card_and_says_its_verdict(links, tmp_path, monkeypatch):
    page, warnings, app = _built(links, tmp_path, PAGE, _claims(), monkeypatch)
    assert not warnings
    found = page.select("a.reference:has(.sm-verdict)")
    assert [a["href"] for a in found] == [
        f"notebooks/part/demo.html#claim-{word}-it-is" for word in ("yes", "no", "open")
    ]
    marks = ("✓\N{NO-BREAK SPACE}", "✗\N{NO-BREAK SPACE}", "◐\N{NO-BREAK SPACE}")
    assert [a.text for a in found] == [
        f"{marks[0]}supported",
        f"some *words* & more {marks[1]}not supported",
        f"{marks[2]}inconclusive at this scale",
    ]
    assert [a["title"] for a in found] == ["It is yes.", "It is no.", "It is open."]
    assert "notebooks/part/demo.ipynb" in app.env.dependencies["index"]


def test_a_page_is_read_again_when_the_chapter_has_changed(links, tmp_path, monkeypatch):
    text = "# A page\n\n{claim}`yes-it-is`\n"
    notebook = tmp_path / "notebooks" / "part" / "demo.ipynb"
    notebook.parent.mkdir(parents=True)
    for verdict, shown in (
        ("supported", "✓\N{NO-BREAK SPACE}supported"),
        ("not supported", "✗\N{NO-BREAK SPACE}not supported"),
    ):
        notebook.write_text(verdict)
        os.utime(notebook, ns=(time.time_ns() + 10**9,) * 2)
        claims = [claim | {"verdict": verdict} for claim in _claims()]
        page, _, _ = _built(links, tmp_path, text, claims, monkeypatch)
        assert [a.text for a in page.select("a:has(.sm-verdict)")] == [shown]


def test_a_claim_that_no_chapter_holds_is_a_warning(links, tmp_path, monkeypatch):
    text = "# A page\n\nIt {claim}`is so <yes-it-was>`.\n"
    page, warnings, _ = _built(links, tmp_path, text, _claims(), monkeypatch)
    assert re.search(r"index\.md:3.*no chapter holds the claim 'yes-it-was'", warnings)
    assert "close to it: yes-it-is" in warnings
    assert "It is so." in page.text and not page.select(".sm-verdict")


def test_the_page_of_a_claim_must_be_in_the_book(links, tmp_path, monkeypatch):
    elsewhere = [claim | {"chapter": "part/other"} for claim in _claims()]
    text = "# A page\n\n{claim}`yes-it-is`\n"
    _, warnings, _ = _built(links, tmp_path, text, elsewhere, monkeypatch)
    assert "reference target not found: yes-it-is" in warnings


def test_marks_have_the_colours_of_the_cards(links):
    css = (ROOT / "book" / "_static" / "claims.css").read_text()
    for verdict, (_, colour) in MARKS.items():
        assert f".sm-verdict.sm-{links.KINDS[verdict]} {{ background: {colour}; }}" in css
