"""Each guard says nothing of a sound chapter, and names what is broken in a broken one."""

import shutil

import nbformat
import pytest

from sokmerge.reader import guards, repeats
from sokmerge.reader.chapters import chapter, code_cells
from sokmerge.reader.records import CLAIM


@pytest.fixture
def made(executed_book):
    return chapter("demo")


def test_a_sound_chapter_passes_all(made, executed_book):
    assert guards.check(made) == [] and guards.check_book(executed_book) == []


def null_count(cells):
    cells[3].execution_count = None


def jumping_count(cells):
    cells[3].execution_count = 7


def nothing_compared(cells):
    for cell in cells:
        cell.metadata["tags"] = ["nbval-ignore-output"]


def an_error(cells):
    cells[3].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]


def a_warning(cells):
    cells[3].outputs = [nbformat.v4.new_output("stream", name="stderr", text="Slow down")]


def long_cell(cells):
    cells[3].source = "x = 1\n" * 13


def many_digits(cells):
    cells[3].outputs[0].text = "loss 0.12345, of 12000 images, with torch 2.14.1 in 3.001 s"


def many_digits_in_science(cells):
    cells[3].outputs[0].text = "1.23456e-05"


def second_output_beside_a_figure(cells):
    cells[5].outputs.append(nbformat.v4.new_output("display_data", data={"text/plain": "x"}))


def other_caption(cells):
    cells[5].metadata.mystnb.figure.caption = "Typed by hand."


def other_alt(cells):
    cells[5].metadata.mystnb.image.alt = ""


def no_picture(cells):
    del cells[5].outputs[0].data["image/png"]


def glued_twice(cells):
    cells[4].outputs.append(cells[4].outputs[0])


def quoted_but_not_glued(cells):
    cells[4].outputs = []


def a_figure_of_another_chapter(cells):
    cells[6].outputs[0].data[CLAIM]["figure"] = "loss-plane"


@pytest.mark.parametrize(
    ("harm", "guard", "told"),
    [
        (null_count, guards.counts, ["code cell 4 has the execution count None"]),
        (jumping_count, guards.counts, ["code cell 4 has the execution count 7"]),
        (nothing_compared, guards.compared, ["no code cell has an output"]),
        (an_error, guards.clean, ["code cell 4 ends in E"]),
        (a_warning, guards.clean, ["code cell 4 writes to stderr: 'Slow down'"]),
        (long_cell, guards.shape, ["code cell 4 has 13 lines, more than 12"]),
        (many_digits, guards.digits, ["code cell 4 prints 0.12345, over 4 digits"]),
        (many_digits_in_science, guards.digits, ["code cell 4 prints 1.23456e-05"]),
        (second_output_beside_a_figure, guards.figures, ["code cell 6 shows more than"]),
        (other_caption, guards.figures, ["figure loss-line has another caption"]),
        (other_alt, guards.figures, ["figure loss-line has another caption or alternative"]),
        (no_picture, guards.figures, ["figure loss-line has no picture"]),
        (glued_twice, guards.glued, ["'barrier' is glued 2 times"]),
        (quoted_but_not_glued, guards.glued, ["the text quotes 'barrier'"]),
        (
            a_figure_of_another_chapter,
            guards.pointed,
            ["claim line-has-a-barrier names the figure"],
        ),
    ],
)
def test_each_guard_names_what_is_broken(made, harm, guard, told):
    assert list(guard(made)) == []
    harm(code_cells(made.content))
    found = list(guard(made))
    assert len(found) == len(told)
    assert all(text.startswith(start) for text, start in zip(found, told, strict=True))
    assert found[0] in guards.check(made)


def test_a_claim_may_name_a_figure_of_its_chapter(made):
    code_cells(made.content)[6].outputs[0].data[CLAIM]["figure"] = "loss-line"
    assert list(guards.pointed(made)) == []


def test_solutions_are_not_counted(made):
    cells = made.content.cells
    solution = nbformat.v4.new_code_cell("x = 1\n" * 20, metadata={"tags": ["solution"]})
    gated = [
        nbformat.v4.new_markdown_cell("```{solution-start} one\n```"),
        nbformat.v4.new_code_cell("x = 1\n" * 20),
        nbformat.v4.new_markdown_cell("```{solution-end}\n```"),
    ]
    cells.extend([solution, *gated])
    assert list(guards.shape(made)) == []
    cells.append(nbformat.v4.new_code_cell("x = 1\n" * 20))
    assert len(list(guards.shape(made))) == 1


def test_a_chapter_too_short_or_too_large_is_told(made):
    made.content.cells = made.content.cells[:4]
    assert list(guards.shape(made)) == ["3 code cells besides solutions, not 8 to 14"]
    with open(made.path, "a") as file:
        file.write(" " * guards.MOST_BYTES)
    assert "bytes, 300000 or more" in next(guards.size(made))


def test_an_ignored_cell_may_print_what_differs(made):
    cell = code_cells(made.content)[3]
    cell.outputs[0].text = "0.123456 s"
    cell.metadata["tags"] = ["nbval-ignore-output"]
    assert list(guards.digits(made)) == []


def test_a_slow_chapter_is_told(made):
    assert list(guards.quick(made)) == []
    made.content.metadata.sokmerge.seconds = 60.0
    assert list(guards.quick(made)) == ["it took 60 CPU seconds, 60 or more"]


def test_a_stale_chapter_is_told(made):
    code_cells(made.content)[0].source += "\n"
    assert "stale: its code cells have changed" in guards.check(made)


def test_the_book_is_checked_as_a_whole(made, executed_book):
    shutil.copy(made.path, made.path.with_name("copy.ipynb"))
    (executed_book / "book/public/figures/of-nobody").mkdir()
    (executed_book / "book/references.bib").write_text("@book{other, title={O}}\n")
    (executed_book / "book/page.md").write_text(
        "{claim}`line-has-a-barrier`, {claim}`a\nline <line-has-a-barrier>`, {claim}`so <it-is>`."
    )
    repeats.keep(executed_book, [made], 1)
    known = (executed_book / repeats.FILE).read_text()
    (executed_book / repeats.FILE).write_text(known.replace('"threshold": 0', '"threshold": 9'))
    told = guards.check_book(executed_book)
    stale = [line for line in told if line.startswith(f"{repeats.FILE} holds a verdict on 'line-")]
    assert len(stale) == 1
    assert [line for line in told if line not in stale] == [
        "figure loss-line occurs 2 times",
        "claim line-has-a-barrier occurs 2 times",
        *["claim line-has-a-barrier cites doe2020line, which is not in book/references.bib"] * 2,
        "book/page.md links the claim 'it-is', which no chapter holds",
        "book/public/figures/of-nobody belongs to no chapter",
        "notebooks/part/copy is not in _toc.yml",
    ]
