"""A book of one small chapter, as its author wrote it and as it is after execution."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from sokmerge.reader import chapters, execution

FIGURE = """\
fig, ax = plt.subplots()
ax.plot(alpha, loss)
show_figure(fig, id='loss-line', alt='A parabola: 0 at both ends & 0.25 between.', seed=0,
            caption=r'The loss $L(\\theta_\\alpha)$, after {cite:t}`doe2020line`.',
            data={'alpha': alpha, 'loss': loss})"""

CLAIM = """\
barrier = Estimate.of([0.24, 0.25, 0.26, 0.25, 0.25], label='barrier', unit='nats')
show_claim(Claim(id='line-has-a-barrier', statement='There is a barrier.', source='doe2020line',
                 reported='a barrier of 1 nat', prediction='more than 0', tests=[barrier > 0]))"""

CELLS = [
    "import numpy as np\nimport matplotlib.pyplot as plt\nfrom sokmerge.reader import *",
    "style()",
    "alpha = np.linspace(0, 1, 11)",
    "loss = alpha * (1 - alpha)\nprint(f'{loss.max():.3f}')\nprint('and so on')",
    "glue('barrier', loss.max())",
    FIGURE,
    CLAIM,
    "round(float(loss[3]), 3)",
]

PROSE = "(demo)=\n# A demo\n\nIt is {glue:text}`barrier` nats, see {numref}`fig-loss-line`."


def write_chapter(base: Path, name: str, cells: list[str], prose: str = PROSE) -> Path:
    """Write a notebook that was never executed."""
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(prose, id="prose")])
    for number, source in enumerate(cells):
        content.cells.append(nbformat.v4.new_code_cell(source, id=f"cell-{number}"))
    path = base / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(content, path)
    return path


def make_book(base: Path) -> Path:
    """Write a book of one chapter, never executed."""
    (base / "book").mkdir(parents=True)
    (base / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nchapters:\n- file: notebooks/part/demo\n"
    )
    (base / "_config.yml").write_text(
        "title: A small book\nauthor: A. Author\ncopyright: '2026'\n"
        "html: {baseurl: https://example.org/}\n"
    )
    (base / "book" / "references.bib").write_text(
        "@article{doe2020line, author={Doe, Jane}, title={Lines}, journal={J}, year={2020}}\n"
    )
    write_chapter(base, "part/demo", CELLS)
    return base


@pytest.fixture
def small_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root of a book that was never executed; the working folder is its root."""
    monkeypatch.delenv("SOKMERGE_FIGURES", raising=False)
    base = make_book(tmp_path / "small")
    monkeypatch.chdir(base)
    return base


@pytest.fixture(scope="session")
def _executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = make_book(tmp_path_factory.mktemp("executed") / "book")
    assert execution.execute(chapters.chapters(base)) == []
    return base


@pytest.fixture
def executed_book(_executed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root of a book whose chapter is executed; the working folder is its root."""
    monkeypatch.delenv("SOKMERGE_FIGURES", raising=False)
    base = Path(shutil.copytree(_executed, tmp_path / "executed"))
    monkeypatch.chdir(base)
    return base


@pytest.fixture
def add_chapter() -> Callable[..., Path]:
    """Function of base, name and cells that writes another chapter."""
    return write_chapter
