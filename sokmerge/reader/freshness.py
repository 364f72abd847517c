"""Is what a chapter shows what its code, run now, would show?

Executing a chapter stamps it with a hash of its code cells, of the modules of this package it
imported, of the data and checkpoints it read, and of the outputs it made. A chapter is stale as
soon as one of these is no longer what it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from sokmerge import inputs
from sokmerge.files import sha256
from sokmerge.reader.chapters import Chapter, code_cells
from sokmerge.reader.repository import PUBLIC

__all__ = ["KEY", "stamp", "stale", "hash_of_cells", "hash_of_outputs"]

KEY = "sokmerge"
"""Where the stamp stands in a notebook's metadata."""


def hash_of_cells(content: NotebookNode) -> str:
    """Return the SHA-256 of a notebook's code: prose may change without a new execution."""
    cells = [[cell.source, sorted(cell.metadata.get("tags", []))] for cell in code_cells(content)]
    return _hash(cells)


def hash_of_outputs(content: NotebookNode) -> str:
    """Return the SHA-256 of all outputs, pictures included, which nbval does not compare."""
    return _hash([[cell.execution_count, cell.outputs] for cell in code_cells(content)])


def stamp(content: NotebookNode, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stamp of a notebook just executed.

    Args:
        content: the notebook with its new outputs.
        facts: ``modules``, ``inputs``, ``versions``, ``device`` and the CPU ``seconds`` that it
            took, told by its process.
    """
    return {
        "cells": hash_of_cells(content),
        "outputs": hash_of_outputs(content),
        **{name: facts[name] for name in ("modules", "inputs", "versions", "device", "seconds")},
    }


def stale(chapter: Chapter) -> list[str]:
    """Return why a chapter must be executed again, in words; nothing if it is fresh."""
    stamped = chapter.content.metadata.get(KEY)
    if not stamped:
        return ["it was never executed by `sokmerge chapters execute`"]
    return [
        *_cells(chapter.content, stamped),
        *_files("module", stamped.get("modules", {}), _module_file),
        *_files("input", stamped.get("inputs", {}), _input_file),
        *_figures(chapter),
    ]


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _cells(content: NotebookNode, stamped: Mapping[str, Any]) -> Iterable[str]:
    if hash_of_cells(content) != stamped.get("cells"):
        yield "its code cells have changed"
    elif hash_of_outputs(content) != stamped.get("outputs"):
        yield "its outputs are not those of its last execution"


def _files(kind: str, digests: Mapping[str, str], file_of: Any) -> Iterable[str]:
    for name, digest in digests.items():
        path = file_of(name)
        if path is None:
            continue
        if not path.is_file():
            yield f"{kind} {name} is gone"
        elif sha256(path) != digest:
            yield f"{kind} {name} has changed"


def _module_file(name: str) -> Path:
    stem = inputs.PACKAGE.joinpath(*name.split(".")[1:])
    module = stem.with_name(f"{stem.name}.py")
    return module if name != "sokmerge" and module.is_file() else stem / "__init__.py"


def _input_file(name: str) -> Path | None:
    # A name without a folder is a file outside of the package, such as the full data set. It is
    # not part of the book, so that it cannot go stale here.
    return inputs.PACKAGE / name if "/" in name else None


def _figures(chapter: Chapter) -> Iterable[str]:
    for figure in chapter.figures:
        name = figure.record["id"]
        folder = chapter.base / PUBLIC / name
        table, told = folder / f"{name}.csv", folder / f"{name}.json"
        if not table.is_file() or not told.is_file():
            yield f"figure {name} has no {'CSV' if told.is_file() else 'JSON'} file"
            continue
        if sha256(table) != figure.output.metadata.get(KEY, {}).get("csv"):
            yield f"the CSV of figure {name} was not made by its last execution"
        try:
            files = json.loads(told.read_text(encoding="utf-8"))["files"]
        except (ValueError, KeyError):
            yield f"the JSON of figure {name} cannot be read"
            continue
        for file, digest in files.items():
            if not (folder / file).is_file() or sha256(folder / file) != digest:
                yield f"{file} is not the file that the JSON of figure {name} vouches for"
