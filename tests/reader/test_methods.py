"""The section that explains a method is found, with what it cites; what is missing is told."""

from __future__ import annotations

from types import SimpleNamespace

import nbformat
import pytest

from sokmerge.reader import guards
from sokmerge.reader.chapters import Chapter
from sokmerge.reader.methods import label_of, sections

TEXT = """\
# A chapter

By {cite:t}`zero2000`.

(method-one-two)=
## One

{cite:t}`one2001, two2002` and {cite:p}`three2003`.

### Below it

Still {cite}`four2004`.

## Another

No more {cite:t}`five2005`.
"""


@pytest.fixture
def chapter_of(tmp_path):
    def make(*texts, name="merging/demo"):
        cells = [
            nbformat.v4.new_code_cell(text[5:])
            if text.startswith("code:")
            else nbformat.v4.new_markdown_cell(text)
            for text in texts
        ]
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        return Chapter(path, tmp_path, nbformat.v4.new_notebook(cells=cells))

    return make


def cites(chapter, name):
    (section,) = sections([chapter])[label_of(name)]
    return section.cites


def test_a_section_reaches_to_the_next_heading_that_is_not_below_it(chapter_of):
    found = sections([chapter_of(TEXT)])
    assert list(found) == ["method-one-two"]
    (section,) = found["method-one-two"]
    assert section.cites == {"one2001", "two2002", "three2003", "four2004"}
    assert section.address == "notebooks/merging/demo.html#method-one-two"


def test_a_section_goes_on_behind_code(chapter_of):
    made = chapter_of("(method-a)=\n## A", "code:# {cite:t}`no`", "{cite:t}`a2001`", "# End")
    assert cites(made, "a") == {"a2001"}


def test_the_next_label_ends_a_section_and_two_may_share_a_cell(chapter_of):
    made = chapter_of("(method-a)=\n### A\n{cite:t}`a`\n\n(method-b)=\n#### B\n{cite:t}`b`")
    assert cites(made, "a") == {"a"} and cites(made, "b") == {"b"}


def test_what_is_quoted_as_code_is_no_label(chapter_of):
    made = chapter_of("```\n(method-a)=\n```\n\n```{note}\n(method-b)=\n```\n\n`(method-c)=`")
    assert list(sections([made])) == ["method-b"]


def test_a_label_that_stands_twice_is_found_twice(chapter_of):
    one, two = (chapter_of("(method-a)=\n## A", name=f"merging/{n}") for n in "xy")
    assert [s.chapter for s in sections([one, two])["method-a"]] == ["merging/x", "merging/y"]


# --- what is missing ----------------------------------------------------------------------------


@pytest.fixture
def book(tmp_path, chapter_of):
    """A book in which the method ``one_two`` lacks nothing."""
    made = chapter_of(TEXT)
    made.path.parent.mkdir(parents=True)
    made.write()
    (tmp_path / "_toc.yml").write_text("chapters:\n- file: notebooks/merging/demo\n")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "references.bib").write_text("@misc{one2001, title={One}}\n")
    return tmp_path


def method(name="one_two", paper="one2001"):
    return SimpleNamespace(name=name, paper=paper)


def check(book, *methods):
    return guards.check_methods(book, methods, compared=["one_two", "the best of two"])


def test_a_method_that_lacks_nothing_passes(book):
    assert check(book, method()) == []


def test_all_that_a_method_lacks_is_told(book):
    assert check(book, method(), method("three", "nobody1999")) == [
        "method three has no section: no chapter holds (method-three)=",
        "method three is from nobody1999, not in book/references.bib",
        "method three has no row in the bake-off",
    ]


def test_a_paper_must_be_cited_in_the_section_itself(book):
    (book / "book" / "references.bib").write_text("@misc{five2005, title={Five}}\n")
    assert check(book, method(paper="five2005")) == [
        "method one_two does not have five2005 cited in its section"
    ]


def test_a_second_section_and_one_elsewhere_are_told(book, chapter_of):
    (book / "notebooks" / "part").mkdir()
    other = chapter_of(TEXT, name="part/other")
    other.write()
    assert check(book, method()) == [
        "method one_two has 2 sections, in merging/demo and part/other"
    ]
    (book / "notebooks" / "merging" / "demo.ipynb").unlink()
    assert check(book, method()) == [
        "method one_two has its section in part/other, which is not on merging"
    ]


def test_a_section_on_no_method_is_told(book):
    assert check(
        book,
    ) == ["notebooks/merging/demo explains (method-one-two)=, which no method is called"]
