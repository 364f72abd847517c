"""Execute chapters: each in a process of its own, and each wholly or not at all."""

from __future__ import annotations

import ast
import asyncio
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipykernel.kernelspec
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode
from tqdm import tqdm

from sokmerge.errors import ArgumentError, FileError, SokmergeError
from sokmerge.files import write_atomically
from sokmerge.reader import figures, freshness
from sokmerge.reader.chapters import Chapter, chapters, code_cells, shown
from sokmerge.reader.records import FIGURE
from sokmerge.reader.repository import PUBLIC

__all__ = ["ENVIRONMENT", "Failed", "execute"]

TIMEOUT = 600
"""Seconds that one cell may take."""

ENVIRONMENT = {
    # One thread, so that no digit depends on the number of cores.
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    # A drawing is shown by show_figure, or not at all.
    "MPLBACKEND": "agg",
}
"""Environment in which a chapter runs, here and under nbval."""

_KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
_FACTS = "__import__('sokmerge.reader.provenance', fromlist=['facts']).facts()"


class Failed(FileError):
    """A chapter whose execution failed; ``trace`` is what its process told."""

    trace: str = ""


def execute(
    selected: Iterable[Chapter],
    *,
    jobs: int = 2,
    done: Callable[[Chapter], None] | None = None,
    write: bool = True,
) -> list[SokmergeError]:
    """Execute chapters and write their outputs, stamps and figures.

    Every chapter runs in a new process with one thread. It is written when all of its cells have
    run, and its figures with it; when one fails, its old files stay as they are and the others
    go on. A chapter whose outputs are the same as before keeps its file to the byte.

    Args:
        selected: the chapters.
        jobs: how many run at the same time.
        done: called with each chapter that has been written, or would have been.
        write: if false, all files stay as they are.

    Returns:
        One error for each chapter that failed, naming its cell.
    """
    if jobs < 1:
        raise ArgumentError("jobs", found=str(jobs), expected="1 or more")
    selected = list(selected)
    cells = sum(len(code_cells(chapter.content)) for chapter in selected)
    with tqdm(total=cells, unit="cell", disable=None, leave=False) as bar:
        return asyncio.run(_all(selected, jobs, bar, done, write))


async def _all(
    selected: list[Chapter],
    jobs: int,
    bar: tqdm,
    done: Callable[[Chapter], None] | None,
    write: bool,
) -> list[SokmergeError]:
    free, running, failed = asyncio.Semaphore(jobs), [], []

    async def one(chapter: Chapter) -> None:
        async with free:
            running.append(chapter.name)
            bar.set_description(", ".join(running))
            try:
                made = await _execute(chapter, lambda: bar.update(), write)
            except SokmergeError as error:
                failed.append(error)
            else:
                if done:
                    done(made)
            running.remove(chapter.name)
            bar.set_description(", ".join(running))

    await asyncio.gather(*map(one, selected))
    return failed


async def _execute(chapter: Chapter, tick: Callable[[], object], write: bool) -> Chapter:
    content = copy.deepcopy(chapter.content)
    for cell in code_cells(content):
        cell.outputs, cell.execution_count = [], None
    with tempfile.TemporaryDirectory(prefix="sokmerge-figures-") as stage:
        facts = await _run(chapter.path, content, Path(stage), tick)
        made = Chapter(chapter.path, chapter.base, content)
        _normalise(content)
        _number_figures(made)
        content.metadata[freshness.KEY] = freshness.stamp(content, facts)
        _keep_seconds(chapter.content, content)
        if write:
            _publish(made, Path(stage))
    if write and content != chapter.content:
        made.write()
    return made


async def _run(
    path: Path, content: NotebookNode, stage: Path, tick: Callable[[], object]
) -> dict[str, Any]:
    """Run the cells in a new process and return what it says of itself."""
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=_ThisInterpreter())
    client = NotebookClient(
        content, km=manager, timeout=TIMEOUT, record_timing=False, coalesce_streams=True
    )
    environment = os.environ | {
        **ENVIRONMENT,
        figures.MODE: "write",
        figures.STAGE: str(stage),
    }
    words = stage / "process.log"
    with _naming_the_cell(path, words) as at, open(words, "w") as log:
        try:
            # What a cell writes to stderr is its output; what goes to the log is the process's own.
            await client.async_start_new_kernel(
                cwd=str(path.parent), env=environment, stdout=log, stderr=log
            )
            await client.async_start_new_kernel_client()
            client.reset_execution_trackers()
            count = 0
            for index, cell in enumerate(content.cells):
                if cell.cell_type == "code":
                    at["cell"] = count = count + 1
                    await client.async_execute_cell(cell, index, execution_count=count)
                    tick()
            reply = await client.kc.execute_interactive(
                "", silent=True, user_expressions={"facts": _FACTS}, output_hook=lambda _: None
            )
        finally:
            if client.kc is not None:
                client.kc.stop_channels()
            if manager.has_kernel:
                await manager.shutdown_kernel(now=True)
    told = reply["content"]["user_expressions"]["facts"]
    if told["status"] != "ok":
        raise FileError(
            str(path), found=told["evalue"], expected="a notebook that imports sokmerge.reader"
        )
    return json.loads(ast.literal_eval(told["data"]["text/plain"]))


class _ThisInterpreter(KernelSpecManager):
    """Runs notebooks by the interpreter that runs this, whatever kernels the user has."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        resources = ipykernel.kernelspec.RESOURCES
        return KernelSpec(resource_dir=resources, **ipykernel.kernelspec.get_kernel_dict())


@contextmanager
def _naming_the_cell(path: Path, words: Path) -> Iterator[dict[str, int]]:
    """Turn what goes wrong in a process into an error that names notebook and cell.

    Of a process that died the trace is what it wrote last, to ``words``.
    """
    at = {"cell": 0}
    try:
        yield at
    except (CellExecutionError, CellTimeoutError, RuntimeError) as error:  # died, or not begun
        found = (
            f"{error.ename}: {error.evalue}"
            if isinstance(error, CellExecutionError)
            else str(error).strip().splitlines()[0]
        )
        failed = Failed(
            f"{path}, code cell {at['cell']}" if at["cell"] else str(path),
            found=found,
            expected="a cell that runs",
            do="The notebook and its figures are as they were before.",
        )
        failed.trace = getattr(error, "traceback", "") or words.read_text(errors="replace")
        raise failed from error


def _normalise(content: NotebookNode) -> None:
    """Take out what differs between two runs of the same code."""
    content.metadata["kernelspec"] = dict(_KERNELSPEC)
    content.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    for cell in code_cells(content):
        cell.metadata.pop("execution", None)


def _number_figures(chapter: Chapter) -> None:
    """Give each cell with a figure the metadata by which the page numbers and captions it.

    Caption and alternative text thus stand once, in the code.
    """
    cells = code_cells(chapter.content)
    for cell in cells:
        told = cell.metadata.get("mystnb", {})
        told.pop("figure", None)
        told.pop("image", None)
        if not told:
            cell.metadata.pop("mystnb", None)
    for figure in shown(chapter.content, FIGURE):
        name, record = figure.record["id"], figure.record
        more = f"{{ref}}`Files and citation <files-of-{name}>`."
        told = cells[figure.cell - 1].metadata.setdefault("mystnb", {})
        if "figure" in told:
            raise FileError(
                f"{chapter.path}, code cell {figure.cell}",
                found="two figures",
                expected="one, so that it can be numbered and has its own address",
                do="Show the second one in a cell of its own.",
            )
        told["figure"] = {"name": f"fig-{name}", "caption": f"{record['caption']} {more}"}
        told["image"] = {"alt": record["alt"]}


def _keep_seconds(old: NotebookNode, new: NotebookNode) -> None:
    """Keep the stamped time if nothing else is new, so that the file stays the same."""
    before, now = old.metadata.get(freshness.KEY, {}), new.metadata[freshness.KEY]
    if before and {**now, "seconds": 0} == {**before, "seconds": 0}:
        now["seconds"] = before["seconds"]


def _publish(chapter: Chapter, stage: Path) -> None:
    """Move the figures of a chapter that has run to where the site takes them from."""
    taken = {
        figure.record["id"]: other.name
        for other in chapters(chapter.base)
        if other.path != chapter.path
        for figure in other.figures
    }
    staged = sorted(folder for folder in stage.iterdir() if folder.is_dir())
    for folder in staged:
        if folder.name in taken:
            raise ArgumentError(
                f"figure id in {chapter.name}",
                found=f"{folder.name!r}, which is a figure of {taken[folder.name]}",
                expected="an id that no other figure of the book has",
            )
    for folder in staged:
        for file in sorted(folder.iterdir(), key=lambda file: file.suffix == ".json"):
            target = chapter.base / PUBLIC / folder.name / file.name
            if not target.is_file() or target.read_bytes() != file.read_bytes():
                write_atomically(target, lambda path, file=file: shutil.copyfile(file, path))
