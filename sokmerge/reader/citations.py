"""How the book and its figures are cited: title, authors, year and address, from its own files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Book", "book", "keys_of"]


@dataclass(frozen=True, slots=True)
class Book:
    """What a citation of the book says.

    >>> it = Book("A book", "A. Author", "2026", "https://example.org/book/")
    >>> it.citation("loss-plane").removeprefix('A. Author (2026). Figure loss-plane of "A book". ')
    'CC BY 4.0. https://example.org/book/book/figure-index.html#files-of-loss-plane'
    >>> print(it.bibtex("loss-plane", "notebooks/landscape/modes.html"))
    @misc{figure-loss-plane,
      author = {A. Author},
      title  = {Figure loss-plane of ``A book''},
      year   = {2026},
      url    = {https://example.org/book/notebooks/landscape/modes.html#fig-loss-plane},
      note   = {CC BY 4.0},
    }
    """

    title: str
    author: str
    year: str
    address: str

    def citation(self, figure: str) -> str:
        """Cite a figure in one line, with the address of its entry in the figure index."""
        text = f'{self.author} ({self.year}). Figure {figure} of "{self.title}". CC BY 4.0.'
        return f"{text} {self.address}book/figure-index.html#files-of-{figure}"

    def bibtex(self, figure: str, page: str) -> str:
        """Cite a figure on a page, given by its path on the site, as a BibTeX entry."""
        fields = {
            "author": self.author,
            "title": f"Figure {figure} of ``{self.title}''",
            "year": self.year,
            "url": f"{self.address}{page}#fig-{figure}",
            "note": "CC BY 4.0",
        }
        lines = [f"  {name:6} = {{{value}}}," for name, value in fields.items() if value]
        return "\n".join([f"@misc{{figure-{figure},", *lines, "}"])


def book(base: Path) -> Book:
    """Read title, author, year and address of the book from its ``_config.yml``.

    The year is the one in ``copyright``. A book without an address gives addresses relative to
    its root.
    """
    import yaml

    try:
        config = yaml.safe_load((base / "_config.yml").read_text(encoding="utf-8")) or {}
    except OSError:
        config = {}
    year = re.search(r"\d{4}", str(config.get("copyright", "")))
    address = str(_under(config, "html", "baseurl") or "")
    return Book(
        title=str(config.get("title") or "An untitled book"),
        author=str(config.get("author") or "its authors"),
        year=year[0] if year else "n.d.",
        address=f"{address.rstrip('/')}/" if address else "",
    )


def keys_of(base: Path) -> set[str]:
    """Return the keys of the book's bibliography."""
    text = (base / "book" / "references.bib").read_text(encoding="utf-8")
    return set(re.findall(r"^\s*@\w+\s*\{\s*([^,\s]+)\s*,", text, flags=re.MULTILINE))


def _under(config: Mapping[str, Any], *names: str) -> Any:
    found: Any = config
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
