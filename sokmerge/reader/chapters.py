"""Chapters: notebooks, what they are called, and the claims and figures they hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from sokmerge.errors import FileError
from sokmerge.files import write_atomically
from sokmerge.reader import records, repository

__all__ = ["Chapter", "Shown", "chapters", "chapter", "code_cells", "displays", "shown"]


@dataclass(frozen=True)
class Shown:
    """A record that a code cell of a chapter displays, with the output that holds it.

    Attributes:
        cell: number of the code cell, counted from 1.
        record: the content of the record.
        output: the whole output: its ``data`` (MIME type to content) and ``metadata``.
    """

    cell: int
    record: dict[str, Any]
    output: NotebookNode


@dataclass(frozen=True)
class Chapter:
    """A notebook of the book.

    Attributes:
        path: the file.
        base: root folder of the book.
        content: the notebook as it was read.
    """

    path: Path
    base: Path
    content: NotebookNode

    @property
    def name(self) -> str:
        """Its path below ``notebooks`` without the suffix, such as ``merging/bake-off``."""
        return repository.name_of(self.path, self.base)

    @property
    def page(self) -> str:
        """Its page, as a path on the site."""
        return f"notebooks/{self.name}.html"

    @property
    def title(self) -> str:
        """Its first heading, or its name if there is none."""
        for cell in self.content.cells:
            if cell.cell_type == "markdown" and (
                match := re.search(r"^#\s+(.+?)\s*$", cell.source, flags=re.MULTILINE)
            ):
                return match[1]
        return self.name

    @property
    def claims(self) -> list[Shown]:
        """The claim cards, in order."""
        return list(shown(self.content, records.CLAIM))

    @property
    def figures(self) -> list[Shown]:
        """The figures, in order."""
        return list(shown(self.content, records.FIGURE))

    @classmethod
    def read(cls, path: Path, base: Path) -> Chapter:
        """Read a chapter.

        Raises:
            FileError: the file is no notebook.
        """
        try:
            content = nbformat.read(path, as_version=4)
        except (OSError, ValueError, nbformat.reader.NotJSONError, AttributeError) as error:
            raise FileError(
                str(path), found=str(error).splitlines()[0], expected="a notebook of version 4"
            ) from error
        return cls(path, base, content)

    def write(self) -> None:
        """Write the chapter, keys in order, so that equal content gives equal bytes."""
        write_atomically(self.path, nbformat.writes(self.content) + "\n")


def chapters(base: Path | None = None) -> list[Chapter]:
    """Read all chapters of the book at ``base``, of the one around the working folder if None."""
    base = base or repository.root()
    return [Chapter.read(path, base) for path in repository.notebooks(base)]


def chapter(name: str, base: Path | None = None) -> Chapter:
    """Read one chapter, by ``part/chapter``, ``chapter`` or path.

    Raises:
        UnknownNameError: there is none of that name; close matches are named.
    """
    base = base or repository.root()
    return Chapter.read(repository.notebook(name, base), base)


def code_cells(content: NotebookNode) -> list[NotebookNode]:
    """Return the code cells of a notebook, in order."""
    return [cell for cell in content.cells if cell.cell_type == "code"]


def displays(cell: NotebookNode) -> list[NotebookNode]:
    """Return the outputs of a cell that a reader sees as one thing each, without glued values."""
    return [
        output
        for output in cell.get("outputs", [])
        if output.output_type in ("display_data", "execute_result")
        and "scrapbook" not in output.get("metadata", {})
    ]


def shown(content: NotebookNode, mime: str) -> Iterator[Shown]:
    """Yield the records of one MIME type that a notebook displays."""
    for number, cell in enumerate(code_cells(content), start=1):
        for output in displays(cell):
            if mime in output.get("data", {}):
                yield Shown(number, output.data[mime], output)
