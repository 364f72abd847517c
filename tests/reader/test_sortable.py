"""A table is the same in text and on the page, and says what is missing."""

from __future__ import annotations

import pytest
from bs4 import BeautifulSoup

from sokmerge.errors import ArgumentError
from sokmerge.reader import records, show_table

COLUMNS = {"method": ["a & b", "ties"], "accuracy": [81.236, None], "passes": [2, 1]}


@pytest.fixture
def shown(monkeypatch):
    bundles = []
    monkeypatch.setattr(records, "show", bundles.append)
    show_table(COLUMNS, caption="All  merges.", links={"ties": "x.html#ties"})
    return bundles[0]


def test_the_text_is_aligned(shown):
    assert shown["text/plain"].splitlines() == [
        "All merges.",
        "method  accuracy  passes",
        "a & b       81.2       2",
        "ties           –       1",
    ]


def test_the_page_has_headings_links_and_a_caption(shown):
    table = BeautifulSoup(shown["text/html"], "html.parser").table
    assert table["class"] == ["sm-sortable"] and table.caption.text == "All merges."
    assert [head.text for head in table.thead("th")] == list(COLUMNS)
    assert [[c.text for c in row(["th", "td"])] for row in table.tbody("tr")] == [
        ["a & b", "81.2", "2"],
        ["ties", "–", "1"],
    ]
    assert [a["href"] for a in table("a")] == ["x.html#ties"]
    assert all(row.th["scope"] == "row" for row in table.tbody("tr"))


@pytest.mark.parametrize("columns", [{}, {"a": [1], "b": [1, 2]}, {"a": []}])
def test_columns_that_make_no_table_are_named(columns):
    with pytest.raises(ArgumentError, match="^columns: found columns of lengths"):
        show_table(columns, caption="Nothing.")
