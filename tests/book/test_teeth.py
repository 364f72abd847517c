"""The proof has teeth: what is broken on purpose fails.

A small chapter is executed as every chapter is, then harmed in one place. Re-running it, its
figures' verification or its guards must notice.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from sokmerge.reader import execution, guards
from sokmerge.reader.chapters import Chapter, chapter, chapters, code_cells
from sokmerge.reader.freshness import stale

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = chapters(ROOT)

CODE = [
    "from matplotlib.figure import Figure\nfrom sokmerge.reader import *",
    "x = [n / 8 for n in range(9)]\ny = [t * (1 - t) for t in x]\nprint(f'highest {max(y):.2f}')",
    "glue('highest', max(y))",
    "fig = Figure(figsize=(2, 1))\nfig.subplots().plot(x, y)\n"
    "show_figure(fig, id='arc', caption='An arc.', alt='It rises and falls.',"
    " data={'x': x, 'y': y})",
    "arc = Estimate.of([0.24, 0.25, 0.26, 0.25, 0.25], label='height')\n"
    "show_claim(Claim(id='arcs-are-high', statement='Arcs are high.', source='doe2020arc',"
    " reported='1', prediction='above 0', tests=[arc > 0]))",
    "round(y[2], 4)",
]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a book of one chapter, executed."""
    base = tmp_path_factory.mktemp("teeth") / "book"
    (base / "notebooks" / "part").mkdir(parents=True)
    (base / "book").mkdir()
    (base / "_toc.yml").write_text("chapters:\n- file: notebooks/part/arc\n")
    (base / "_config.yml").write_text("title: T\n")
    (base / "book" / "references.bib").write_text("@misc{doe2020arc, title={Arcs}}\n")
    shutil.copy(ROOT / "notebooks" / "conftest.py", base / "notebooks")
    cells = [nbformat.v4.new_code_cell(source) for source in CODE]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), base / "notebooks/part/arc.ipynb")
    assert execution.execute(chapters(base)) == []
    return base


def rerun(base: Path) -> dict[str, bool]:
    """Re-run all notebooks by strict nbval: ``notebook::cell`` to whether it passed."""
    environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    environment.pop("SOKMERGE_FIGURES", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-rA", "notebooks"]
        + ["-p", "no:cacheprovider", "-p", "no:xdist", "--color=no", f"--rootdir={base}"],
        cwd=base,
        env=environment,
        capture_output=True,
        text=True,
    )
    lines = re.findall(r"^(PASSED|FAILED) notebooks/(\S+::Cell \d+)", done.stdout, re.MULTILINE)
    assert lines, done.stdout + done.stderr
    return {name: word == "PASSED" for word, name in lines}


def print_another_number(cells: list) -> None:
    cells[1].outputs[0].text = cells[1].outputs[0].text.replace("0.25", "0.26")


def quote_another_number(cells: list) -> None:
    cells[2].outputs[0].data["application/papermill.record/text/plain"] = "'0.26'"


def turn_a_verdict(cells: list) -> None:
    data = cells[4].outputs[0].data
    data["text/html"] = data["text/html"].replace("Claim supported", "Claim not supported")


def turn_a_record(cells: list) -> None:
    mime = "application/vnd.sokmerge.claim+json"
    cells[4].outputs[0].data[mime]["verdict"] = "not supported"


def return_another_number(cells: list) -> None:
    cells[5].outputs[0].data["text/plain"] = "0.1876"


def describe_otherwise(cells: list) -> None:
    mime = "application/vnd.sokmerge.figure+json"
    cells[3].outputs[0].data[mime]["caption"] = "Another."


def never_run(cells: list) -> None:
    cells[1].execution_count, cells[1].outputs = None, []


# Notebooks that are harmed: what is done to each, and the cell that must fail for it.
HARMED: dict[str, dict[Callable[[list], None], int | None]] = {
    "once-each": {
        print_another_number: 1,
        quote_another_number: 2,
        describe_otherwise: 3,
        turn_a_verdict: 4,
        return_another_number: 5,
    },
    "once-more": {never_run: None, turn_a_record: 4},
}


@pytest.mark.slow
def test_an_altered_output_fails_the_cell_that_made_it(executed: Path, tmp_path: Path) -> None:
    """And a cell that was never run passes nbval; that is for the guard to see."""
    base = Path(shutil.copytree(executed, tmp_path / "book"))
    arc = chapter("arc", base)
    made, expected = {}, set()
    for name, harms in HARMED.items():
        content = copy.deepcopy(arc.content)
        for harm, cell in harms.items():
            harm(code_cells(content))
            expected |= set() if cell is None else {f"part/{name}.ipynb::Cell {cell}"}
        made[name] = Chapter(arc.path.with_name(f"{name}.ipynb"), base, content)
        made[name].write()
    passed = rerun(base)
    assert len(passed) == len(CODE) * (1 + len(HARMED))
    assert {name for name, well in passed.items() if not well} == expected
    assert "code cell 2 has the execution count None" in guards.check(made["once-more"])


@pytest.mark.slow
def test_an_altered_csv_value_fails_the_figure(executed: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(executed, tmp_path / "book"))
    table = base / "book/public/figures/arc/arc.csv"
    before = table.read_text()
    table.write_text(before.replace("0.1875", "0.1885", 1))
    assert table.read_text() != before
    assert [name for name, well in rerun(base).items() if not well] == ["part/arc.ipynb::Cell 3"]
    assert any("CSV of figure arc" in reason for reason in stale(chapter("arc", base)))


@pytest.mark.parametrize("real", CHAPTERS, ids=lambda chapter: chapter.name)
class TestRealChapters:
    """The same harm done to copies of the chapters of this book."""

    def harmed(self, real: Chapter) -> Chapter:
        return Chapter(real.path, real.base, copy.deepcopy(real.content))

    def test_a_null_count_is_noticed(self, real: Chapter) -> None:
        for number in range(len(code_cells(real.content))):
            made = self.harmed(real)
            code_cells(made.content)[number].execution_count = None
            assert list(guards.counts(made)) and list(guards.fresh(made))

    def test_any_altered_output_is_noticed(self, real: Chapter) -> None:
        for number, cell in enumerate(code_cells(real.content)):
            if cell.outputs:
                made = self.harmed(real)
                del code_cells(made.content)[number].outputs[0]
                assert "its outputs are not those of its last execution" in stale(made)

    def test_one_altered_value_of_any_csv_is_noticed(self, real: Chapter, tmp_path: Path) -> None:
        shutil.copytree(ROOT / "book" / "public", tmp_path / "book" / "public")
        made = Chapter(real.path, tmp_path, real.content)
        assert stale(made) == stale(real)
        for figure in real.figures:
            name = figure.record["id"]
            table = tmp_path / "book" / "public" / "figures" / name / f"{name}.csv"
            head, row, rest = table.read_text().split("\n", 2)
            altered = re.sub(r"\d(?=\D*$)", lambda digit: str(9 - int(digit[0])), row)
            table.write_text("\n".join([head, altered, rest]))
            told = f"the CSV of figure {name} was not made by its last execution"
            assert told in stale(made)


FLIPS = {
    "none": ("weight_matching.py", "", ""),
    "of the similarity": ("weight_matching.py", "assign(similarity)", "assign(-similarity)"),
    "of the objective": ("matching.py", "maximize=True", "maximize=False"),
    "of the improvement": ("weight_matching.py", "more - less >", "less - more >"),
}


# Runs the tests of each tree in turn, in one process: what the trees share is imported once.
RUN_IN_EACH = """
import contextlib, io, json, os, sys
import pytest

told = {}
for tree in sys.argv[1:]:
    for name in list(sys.modules):
        if name.partition(".")[0] in ("sokmerge", "tests", "conftest"):
            del sys.modules[name]
    os.chdir(tree)
    sys.path[0] = tree
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = pytest.main([
            "-q", "-x", "-k", "planted", "--color=no", "--rootdir=.",
            "-p", "no:cacheprovider", "-p", "no:xdist",
            "tests/merge/alignment/test_weight_matching.py",
        ])
    assert sys.modules["sokmerge"].__file__.startswith(tree)
    told[tree] = [int(code), out.getvalue()]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def with_flips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """For each flip what the tests of the matching end in, and what they print."""
    base, trees = tmp_path_factory.mktemp("flips"), {}
    large = shutil.ignore_patterns("*.safetensors", "*.npz", "__pycache__")
    for number, (flip, (name, right, wrong)) in enumerate(FLIPS.items()):
        tree = trees[flip] = base / str(number)
        shutil.copytree(ROOT / "sokmerge", tree / "sokmerge", ignore=large)
        shutil.copytree(ROOT / "tests" / "merge", tree / "tests" / "merge", ignore=large)
        for path in ("tests/conftest.py", "pyproject.toml"):
            shutil.copy(ROOT / path, tree / path)
        path = tree / "sokmerge" / "merge" / "alignment" / name
        assert right in path.read_text()
        if right:
            path.write_text(path.read_text().replace(right, wrong, 1))
    done = subprocess.run(
        [sys.executable, "-c", RUN_IN_EACH, *map(str, trees.values())],
        cwd=base,
        env={key: value for key, value in os.environ.items() if "PYTEST" not in key},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    return {flip: tuple(told[str(tree)]) for flip, tree in trees.items()}


@pytest.mark.slow
@pytest.mark.parametrize("flip", FLIPS)
def test_a_flipped_sign_in_the_matching_does_not_recover_a_planted_permutation(
    flip: str, with_flips: dict[str, tuple[int, str]]
) -> None:
    code, told = with_flips[flip]
    if flip == "none":
        assert code == 0 and " passed" in told, told
    else:
        assert code == 1 and " failed" in told, told
