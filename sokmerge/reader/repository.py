"""Where the book lies: its root folder, its chapters, its published files."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from sokmerge.errors import FileError, UnknownNameError

__all__ = ["PUBLIC", "find_root", "root", "notebooks", "notebook", "name_of", "toc"]

PUBLIC = Path("book", "public", "figures")
"""Folder of the figures' files, relative to the root; the site serves it as ``figures/``."""


def find_root(start: Path | None = None) -> Path | None:
    """Return the folder at or above ``start`` that holds the book, or None outside of it."""
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "_toc.yml").is_file() and (folder / "book").is_dir():
            return folder
    return None


def root(start: Path | None = None) -> Path:
    """Return the folder of the book.

    Raises:
        FileError: there is none at or above ``start``, the working folder if None.
    """
    found = find_root(start)
    if found is None:
        raise FileError(
            str(start or Path.cwd()),
            found="no _toc.yml with a book folder here or above",
            expected="a clone of the book",
            do="Change into the clone and call again.",
        )
    return found


def notebooks(base: Path) -> list[Path]:
    """Return the notebooks of the book at ``base`` as ``_toc.yml`` orders them, others last."""
    found = sorted(
        path
        for path in (base / "notebooks").rglob("*.ipynb")
        if not any(part.startswith((".", "_")) for part in path.relative_to(base).parts)
    )
    order = toc(base)
    return sorted(found, key=lambda path: order.get(name_of(path, base), len(order)))


def toc(base: Path) -> dict[str, int]:
    """Return the names of the chapters that ``_toc.yml`` lists, each with its place."""
    text = (base / "_toc.yml").read_text(encoding="utf-8")
    names = re.findall(r"\bnotebooks/([\w./-]+?)(?:\.ipynb)?\s*$", text, flags=re.MULTILINE)
    return {name: place for place, name in enumerate(names)}


def name_of(path: Path, base: Path) -> str:
    """Return a chapter's name: its path below ``notebooks`` without the suffix."""
    return path.relative_to(base / "notebooks").with_suffix("").as_posix()


def notebook(name: str, base: Path) -> Path:
    """Return the notebook of a chapter, given as ``part/chapter``, ``chapter`` or a path.

    Raises:
        UnknownNameError: there is no such chapter, or several; close matches are named.
    """
    known = {name_of(path, base): path for path in notebooks(base)}
    wanted = name.removesuffix(".ipynb").removeprefix("./").removeprefix("notebooks/")
    hits = [key for key in known if wanted in (key, key.rsplit("/", 1)[-1])]
    if len(hits) == 1:
        return known[hits[0]]
    short = {key.rsplit("/", 1)[-1]: key for key in known}
    close = (
        hits
        or difflib.get_close_matches(wanted, known, 3, 0.5)
        or [short[key] for key in difflib.get_close_matches(wanted, short, 3, 0.5)]
    )
    raise UnknownNameError(
        "chapter",
        found=repr(name),
        expected=f"one of {', '.join(close or known) or 'the notebooks (there are none yet)'}",
        do="`sokmerge chapters list` names them all.",
    )
