"""The map and the tables hold every method once, link what is there, and nothing overlaps."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import combinations

import pytest
from bs4 import BeautifulSoup

from sokmerge import merge
from sokmerge.reader import pages, taxonomy_map, taxonomy_table
from sokmerge.reader.methods import label_of


@dataclass
class Made:
    """A method, as the reader sees one."""

    name: str
    branch: str = "weight aggregation"
    chapter: str = "weight-aggregation"
    paper: str = "doe2020line"
    needs: tuple = ()
    returns: str = "params"
    scope: str = "entry"
    equation: str = r"\theta=f(a,\ b),\ b<c"
    ties: str | None = None
    signs: str | None = None
    defaults: dict = field(default_factory=dict)


METHODS = [
    Made("vote", "ensembling", "ensembling", returns="predictor", scope="output"),
    Made("average", defaults={"weights": None}),
    Made("weighted_by_all_there_is", needs=tuple(taxonomy_map.NEEDS)),
    Made("known", needs=("statistics",)),
    Made("add", chapter="task-vectors", needs=("base",), signs="may *cancel*", ties="all are kept"),
    Made("a_name_that_is_rather_long", "neuron alignment", "neuron-alignment", needs=("symmetry",)),
    Made("a<b", "neuron alignment", "neuron-alignment", needs=("symmetry", "inputs")),
]
LINKS = {"average": "../notebooks/merging/x.html#method-average"}
CHAPTERS = {"task-vectors": "../notebooks/merging/task-vectors.html", "ensembling": "../e.html"}


@pytest.fixture(scope="module")
def page():
    return BeautifulSoup(taxonomy_map.map_of(METHODS, LINKS, CHAPTERS), "html.parser")


def test_every_method_stands_once_in_the_drawing_and_once_in_the_list(page):
    names = sorted(m.name for m in METHODS)
    assert sorted(t.text for t in page.select("svg .sm-map-name")) == names
    assert sorted(t.text for t in page.select("li code")) == names


def test_those_that_need_least_come_first():
    found = taxonomy_map.branches(METHODS)
    assert list(found) == ["ensembling", "weight aggregation", "neuron alignment"]
    assert list(found["weight aggregation"]) == ["weight-aggregation", "task-vectors"]
    order = [m.name for m in found["weight aggregation"]["weight-aggregation"]]
    assert order == ["average", "known", "weighted_by_all_there_is"]


def test_what_is_there_is_linked_and_what_is_not_there_is_not(page):
    for kind in ("svg a.sm-map-method", ".sm-map-listing li a"):
        assert [a["href"] for a in page.select(kind)] == [LINKS["average"]]
    heads = [a["href"] for a in page.select("svg a.sm-map-head")]
    assert heads == [CHAPTERS["ensembling"], CHAPTERS["task-vectors"]]
    (link,) = page.select("svg a.sm-map-method")
    assert link["aria-label"] == link.title.text == "average: needs nothing but the models"


def test_each_need_has_a_mark_a_word_and_an_entry_in_the_legend(page):
    everything = [*taxonomy_map.NEEDS, "models only"]
    assert [li.text for li in page.select(".sm-map-legend li")] == everything
    marks = page.select(".sm-map-legend path")
    assert len({mark["d"] for mark in marks}) == len(everything), "each has a shape of its own"
    assert len({tuple(mark["class"]) for mark in marks}) == len(everything)
    for drawn in (page.select(".sm-map-drawing .sm-need"), page.select(".sm-map-listing .sm-need")):
        assert len(drawn) == sum(max(1, len(m.needs)) for m in METHODS)
    words = [text.text for text in page.select(".sm-map-need")]
    assert words.count("symmetry") == 3 and words.count("models only") == 2


def test_a_mark_that_no_method_has_is_not_in_the_legend():
    told = BeautifulSoup(taxonomy_map.map_of(METHODS[:2], {}, {}), "html.parser")
    assert [li.text for li in told.select(".sm-map-legend li")] == ["models only"]


def _boxes(page):
    for rect in page.select("svg rect"):
        x, y, w, h = (float(rect[key]) for key in ("x", "y", "width", "height"))
        yield rect, (x, y, x + w, y + h)


def test_no_box_overlaps_another_or_leaves_the_drawing(page):
    left, top, width, height = map(float, page.select_one(".sm-map-drawing")["viewbox"].split())
    boxes = [box for _, box in _boxes(page)]
    assert len(boxes) == len(METHODS) + 6
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for x0, y0, x1, y1 in boxes:
        assert left <= x0 and top <= y0 and x1 <= left + width and y1 <= top + height


def test_what_is_written_in_a_box_has_room_in_it(page):
    """At the widths that are reckoned with; the built page is measured in a browser."""
    for rect, (x0, y0, x1, y1) in _boxes(page):
        for text in rect.parent.select("text"):
            x, y = float(text["x"]), float(text["y"])
            width = len(text.text) * (5.7 if "sm-map-need" in text.get("class", []) else 7.3)
            start = x - width / 2 if text.get("text-anchor") == "middle" else x
            assert x0 <= start and start + width <= x1 and y0 < y < y1, text.text


def test_the_map_is_one_piece_of_html(page):
    told = taxonomy_map.map_of(METHODS, LINKS, CHAPTERS)
    assert "\n\n" not in told and "a&lt;b" in told and "<b" not in told.replace("<br", "")


# --- the tables -----------------------------------------------------------------------------------


def _cells(text):
    """Return the rows of a list table."""
    rows = re.split(r"^\* - ", text.split(":class: sm-sortable\n")[1], flags=re.MULTILINE)[1:]
    return [re.split(r"\n  - ", row.replace("````", "").rstrip()) for row in rows]


def test_the_first_table_says_what_is_declared():
    head, *rows = _cells(taxonomy_table.first_table(METHODS, {"add"}, {"doe2020line"}))
    assert head == ["Method", "Branch", "Paper", "Needs", "Scope", "Returns"]
    assert [row[0] for row in rows] == [
        *("`a<b`", "`a_name_that_is_rather_long`", "[`add`](#method-add)", "`average`"),
        *("`known`", "`vote`", "`weighted_by_all_there_is`"),
    ]
    assert rows[2][1:] == [
        *("weight aggregation: task vectors", "{cite:t}`doe2020line`", "base", "entry", "params"),
    ]
    assert rows[5][1:] == ["ensembling", "{cite:t}`doe2020line`", "–", "output", "predictor"]


def test_a_paper_that_is_not_in_the_bibliography_is_named_by_its_key():
    rows = _cells(taxonomy_table.first_table(METHODS, (), set()))[1:]
    assert {row[2] for row in rows} == {"`doe2020line`"}


def test_the_second_table_says_what_is_declared():
    head, *rows = _cells(taxonomy_table.second_table(METHODS, ()))
    assert head == ["Method", "Equation", "Defaults", "Ties", "Signs"]
    assert rows[2] == [
        "`add`",
        "$\\theta=f(a,\\ b)$\n\n    $b<c$",
        "–",
        "all are kept",
        r"may \*cancel\*",
    ]
    assert rows[3][2:] == ["`weights=None`", "–", "–"]


@pytest.mark.parametrize(
    ("equation", "parts"),
    [
        (r"a=b", ["a=b"]),
        (r"a=b,\qquad b=c,\quad c=d", ["a=b", "b=c", "c=d"]),
        (r"a=\min\bigl(1,\ e^{x,\ y}\bigr),\ b", [r"a=\min\bigl(1,\ e^{x,\ y}\bigr)", "b"]),
        (r"\{a,\ b\},\ c", [r"\{a,\ b\}", "c"]),
        (r"\langle a,\ b\rangle,\ c", [r"\langle a,\ b\rangle", "c"]),
        (r"a_{1,2},b", [r"a_{1,2},b"]),
        (r"a\,\ b", [r"a\,\ b"]),
    ],
)
def test_an_equation_is_split_outside_of_brackets(equation, parts):
    assert taxonomy_table.statements(equation) == parts


def test_the_equations_of_the_library_are_split_into_whole_pieces():
    for declaration in merge.methods():
        for part in taxonomy_table.statements(declaration.equation):
            assert part.strip() and part.count("{") == part.count("}"), declaration.name
            assert part.count(r"\bigl") == part.count(r"\bigr"), declaration.name
            assert part.count(r"\langle") == part.count(r"\rangle"), declaration.name


def test_a_default_that_holds_a_function_does_not_show_where_it_lies():
    def settings(x):
        return x

    made = Made("set", defaults={"by": settings, "how": [settings, 1]})
    table = taxonomy_table.second_table([made], ())
    assert "`by=settings`, `how=[..., 1]`" in table
    assert " at 0x" not in taxonomy_table.second_table(merge.methods(), ())


# --- the parts of the page ------------------------------------------------------------------------


def test_links_follow_the_labels_in_the_chapters(executed_book, add_chapter):
    text = f"({label_of('known')})=\n# Known\n\nBy {{cite:t}}`doe2020line`."
    add_chapter(executed_book, "merging/elsewhere", ["1"], text)
    parts = executed_book / "book" / "_taxonomy"
    assert {p.name for p in pages.write(executed_book, METHODS)} > {"map.html", "needs.md"}
    assert "#method-known" not in (parts / "map.html").read_text(), "it is no page of the book"
    with open(executed_book / "_toc.yml", "a") as toc:
        toc.write("- file: notebooks/merging/elsewhere\n")
    new = {"map.html", "needs.md", "equations.md"}
    assert {p.name for p in pages.write(executed_book, METHODS)} == new
    assert pages.write(executed_book, METHODS) == []
    told = (parts / "map.html").read_text()
    assert 'href="../notebooks/merging/elsewhere.html#method-known"' in told
    assert "#method-average" not in told
    table = (parts / "needs.md").read_text()
    assert "[`known`](#method-known)" in table and "* - `average`" in table


CONFIG = """
extensions = ["myst_nb", "sphinxcontrib.bibtex"]
bibtex_bibfiles = ["book/references.bib"]
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
suppress_warnings = ["mystnb.unknown_mime_type"]
exclude_patterns = ["_build", "book/_taxonomy", "notebooks/part"]
"""

PAGE = """
# Taxonomy

```{raw} html
:file: _taxonomy/map.html
```

```{include} _taxonomy/needs.md
```

```{include} _taxonomy/equations.md
```

```{bibliography}
```
"""


@pytest.mark.slow
def test_sphinx_builds_the_page_and_follows_the_labels(executed_book, add_chapter):
    add_chapter(executed_book, "merging/elsewhere", [], "# E\n\n(method-known)=\n## Known")
    with open(executed_book / "_toc.yml", "a") as toc:
        toc.write("- file: notebooks/merging/elsewhere\n")
    pages.write(executed_book, METHODS)
    (executed_book / "conf.py").write_text(CONFIG)
    (executed_book / "book/taxonomy.md").write_text(PAGE)
    (executed_book / "index.md").write_text(
        "# Start\n\n```{toctree}\nnotebooks/merging/elsewhere\nbook/taxonomy\n```\n"
    )
    for name in ("claims-ledger", "figure-index"):
        (executed_book / "book" / f"{name}.md").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", "html", ".", "_build"],
        cwd=executed_book,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    built = (executed_book / "_build/book/taxonomy.html").read_text()
    page = BeautifulSoup(built, "html.parser")
    target = "../notebooks/merging/elsewhere.html#method-known"
    found = [a for a in page.select("a[href]") if a["href"] == target]
    assert len(found) == 4, "on the map, in the list, in both tables"
    other = (executed_book / "_build/notebooks/merging/elsewhere.html").read_text()
    assert BeautifulSoup(other, "html.parser").select("#method-known")
    assert len(page.select("table.sm-sortable")) == 2
