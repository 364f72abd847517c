"""Chapters are executed wholly or not at all, and the same code gives the same file."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from sokmerge.errors import ArgumentError, FileError, UnknownNameError
from sokmerge.reader import execution
from sokmerge.reader.chapters import Chapter, chapter, chapters, code_cells
from sokmerge.reader.freshness import stale
from sokmerge.reader.guards import check

FIGURES = "book/public/figures"
READER = "from sokmerge.reader import *\nimport matplotlib.pyplot as plt"
LINE = "show_figure(plt.figure(), id='{}', caption='c', alt='a', data={{'x': [{}]}})"


def bytes_of(base):
    return {path: path.read_bytes() for path in sorted(base.rglob("*")) if path.is_file()}


def test_an_executed_chapter_holds_all_that_the_page_needs(executed_book):
    made = chapter("demo")
    cells = code_cells(made.content)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    [figure], [claim] = made.figures, made.claims
    assert (figure.cell, claim.cell) == (6, 7)
    told = cells[5].metadata.mystnb
    assert told.figure.name == "fig-loss-line"
    assert told.figure.caption.startswith(figure.record["caption"])
    assert "{ref}`Files and citation <files-of-loss-line>`" in told.figure.caption
    assert told.image.alt == figure.record["alt"]
    stamped = made.content.metadata.sokmerge
    assert "sokmerge.reader.estimates" in stamped.modules
    assert "sokmerge.reader.execution" not in stamped.modules
    assert stamped.seconds > 0 and stamped.versions.python and stamped.device == "cpu"
    assert "execution" not in cells[0].metadata
    assert "version" not in made.content.metadata.language_info
    assert stale(made) == check(made) == []


def test_streams_are_joined(executed_book):
    outputs = code_cells(chapter("demo").content)[3].outputs
    assert [output.text for output in outputs] == ["0.250\nand so on\n"]


def test_the_same_code_gives_the_same_files(executed_book):
    before = bytes_of(executed_book)
    assert execution.execute(chapters()) == []
    assert bytes_of(executed_book) == before


def test_a_failing_chapter_changes_nothing_and_the_others_go_on(executed_book, add_chapter):
    base = executed_book
    path = chapter("demo").path
    broken = Chapter.read(path, base)
    code_cells(broken.content)[3].source = "loss = 2 * alpha * (1 - alpha)"
    code_cells(broken.content)[6].source = "1 / 0"
    broken.write()
    add_chapter(base, "part/second", [READER, "1 + 1"])
    before = bytes_of(base)
    [error] = execution.execute(chapters())
    after = bytes_of(base)
    changed = {path.name for path in after if after[path] != before[path]}
    assert isinstance(error, FileError)
    told = str(error)
    assert str(path) in told and "code cell 7" in told and "ZeroDivisionError" in told
    assert "1 / 0" in error.trace
    assert changed == {"second.ipynb"}


def test_a_chapter_that_knows_no_reader_is_told(small_book, add_chapter):
    add_chapter(small_book, "part/plain", ["import os", "os._exit(3)"])
    [error] = execution.execute([chapter("plain")])
    assert "Kernel died" in str(error)
    assert "plain.ipynb, code cell 2: found" in str(error)


def test_a_figure_id_stands_once_in_the_book(executed_book, add_chapter):
    add_chapter(executed_book, "part/thief", [READER, LINE.format("loss-line", 1)])
    add_chapter(executed_book, "part/twice", [READER, LINE.format("a", 1), LINE.format("a", 2)])
    both = LINE.format("a", 1) + "\n" + LINE.format("b", 2)
    add_chapter(executed_book, "part/both", [READER, both])
    before = bytes_of(executed_book)
    told = [str(execution.execute([chapter(name)])[0]) for name in ("thief", "twice", "both")]
    assert "figure id in part/thief: found 'loss-line', which is a figure of part/demo" in told[0]
    assert "code cell 3: found ArgumentError: id: found 'a', a second time" in told[1]
    assert "code cell 2: found two figures" in told[2]
    assert bytes_of(executed_book) == before


def test_names_of_chapters(small_book, add_chapter):
    for name in ("demo", "part/demo", "notebooks/part/demo.ipynb", "./notebooks/part/demo.ipynb"):
        assert chapter(name).name == "part/demo"
    with pytest.raises(UnknownNameError, match="'dem'; expected one of part/demo"):
        chapter("dem")
    with pytest.raises(UnknownNameError, match="chapters list"):
        chapter("something else")
    add_chapter(small_book, "other/demo", ["1"])
    with pytest.raises(UnknownNameError, match="part/demo, other/demo"):
        chapter("demo")


def test_what_is_no_notebook_and_no_number_of_jobs_is_told(small_book):
    path = small_book / "notebooks" / "part" / "broken.ipynb"
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(FileError, match=r"broken.ipynb: found"):
            chapters()
    path.unlink()
    with pytest.raises(ArgumentError, match="jobs: found 0"):
        execution.execute(chapters(), jobs=0)


def test_outside_of_a_clone_the_book_is_missed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match="a clone of the book"):
        chapters()


def test_ctrl_c_leaves_files_and_no_process(small_book, add_chapter):
    slow = "import time, pathlib\npathlib.Path('begun').touch()\ntime.sleep(300)"
    path = add_chapter(small_book, "part/slow", [slow])
    before = path.read_bytes()
    code = (
        "from sokmerge.reader import chapters, execution\n"
        "execution.execute([chapters.chapter('slow')])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=small_book, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not path.with_name("begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    kernels = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in told
    assert kernels and not any(kernel.is_running() for kernel in kernels)
    assert path.read_bytes() == before


def test_a_notebook_reads_back_as_it_was_written(executed_book):
    path = chapter("demo").path
    assert nbformat.writes(nbformat.read(path, as_version=4)) + "\n" == path.read_text()
