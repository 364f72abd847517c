"""The claims and figures of all chapters as plain data, for tools and for the pages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from sokmerge.errors import UnknownNameError
from sokmerge.reader.chapters import Chapter
from sokmerge.reader.citations import book
from sokmerge.reader.pictures import LICENCE

__all__ = ["claims", "figures", "linked", "select"]


def claims(chapters: Iterable[Chapter]) -> list[dict[str, Any]]:
    """Return every claim with its chapter and address, in the order of the chapters.

    Each has ``id``, ``chapter``, ``title`` (of the chapter), ``address`` (on the site),
    ``statement``, ``source``, ``reported``, ``prediction``, ``verdict`` and ``tests``, each of
    these with ``label``, ``relation``, ``threshold``, ``mean``, ``low``, ``high``, ``n``,
    ``unit``, ``method``, ``measured``, ``verdict`` and ``reason``. A claim that names a figure
    has its id as ``figure``.
    """
    return [
        {
            "chapter": chapter.name,
            "title": chapter.title,
            "address": f"{chapter.page}#claim-{claim.record['id']}",
            **claim.record,
        }
        for chapter in chapters
        for claim in chapter.claims
    ]


def figures(chapters: Iterable[Chapter]) -> list[dict[str, Any]]:
    """Return every figure with its chapter, address, files and citation, in that order.

    Each has ``id``, ``chapter``, ``title`` (of the chapter), ``address`` and ``files`` (on the
    site), ``caption``, ``alt``, ``columns``, ``rows``, ``seeds``, ``recipes``, ``tolerance``,
    ``licence`` and ``bibtex``.
    """
    found = []
    for chapter in chapters:
        it = book(chapter.base)
        for figure in chapter.figures:
            name = figure.record["id"]
            found.append(
                {
                    "chapter": chapter.name,
                    "title": chapter.title,
                    "address": f"{chapter.page}#fig-{name}",
                    "files": {
                        suffix: f"figures/{name}/{name}.{suffix}"
                        for suffix in ("svg", "pdf", "png", "csv", "json")
                    },
                    "licence": LICENCE,
                    "bibtex": it.bibtex(name, chapter.page),
                    **figure.record,
                }
            )
    return found


def linked(text: str) -> list[str]:
    """Return the ids of the claims that a page links by the role ``claim``, in order.

    >>> linked("It is low {claim}`so-it-is`, and {claim}`in most words <so-it-seems>`.")
    ['so-it-is', 'so-it-seems']
    """
    roles = re.findall(r"\{claim\}`([^`]+)`", text)
    return [" ".join(re.sub(r"^.*<([^<>]*)>$", r"\1", role, flags=re.S).split()) for role in roles]


def select(kind: str, items: list[dict[str, Any]], ids: Iterable[str]) -> list[dict[str, Any]]:
    """Return the items of these ids, all of them if there are none.

    Raises:
        UnknownNameError: no item has that id; close matches are named.

    >>> select("figure", [{"id": "a"}, {"id": "b"}], ["b"])
    [{'id': 'b'}]
    """
    by_id = {item["id"]: item for item in items}
    ids = list(ids)
    for wanted in ids:
        if wanted not in by_id:
            close = difflib.get_close_matches(wanted, by_id, 3, 0.5) or list(by_id)
            raise UnknownNameError(
                f"{kind} id",
                found=repr(wanted),
                expected=f"one of {', '.join(close) or 'those of the chapters (there are none)'}",
                do=f"`sokmerge {kind}s` names them all.",
            )
    return [by_id[wanted] for wanted in ids] if ids else items
