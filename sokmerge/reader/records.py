"""Rich output of a notebook cell, with the record that tools read from it later."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from sokmerge.errors import ArgumentError

__all__ = ["CLAIM", "FIGURE", "GLUE", "check_id", "check_text", "show"]

CLAIM = "application/vnd.sokmerge.claim+json"
"""MIME type of a claim's record."""

FIGURE = "application/vnd.sokmerge.figure+json"
"""MIME type of a figure's record."""

GLUE = "application/papermill.record/"
"""Prefix of the MIME type of a value that the text of a page quotes (the scrapbook format)."""

_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def show(data: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
    """Display a bundle of representations, MIME type to content, in the richest form at hand.

    Outside of a notebook the ``text/plain`` representation is printed.

    >>> show({"text/plain": "four"})
    four
    """
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        if text := data.get("text/plain"):
            print(text)
        return
    ipython.display.display(dict(data), metadata=dict(metadata or {}), raw=True)


def check_id(name: str, value: str) -> str:
    """Return ``value`` if it can be an address: lower-case words and digits joined by hyphens.

    >>> check_id("id", "barrier-against-width")
    'barrier-against-width'
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ArgumentError(
            name,
            found=repr(value),
            expected="lower-case words and digits joined by hyphens, such as 'loss-plane'",
            do="It becomes a file name and a stable web address.",
        )
    return value


def check_text(name: str, value: str, do: str = "") -> str:
    """Return ``value`` without outer white space if any text remains.

    >>> check_text("caption", " A plane. ")
    'A plane.'
    """
    if not isinstance(value, str) or not value.strip():
        raise ArgumentError(name, found=repr(value), expected="a text that is not empty", do=do)
    return " ".join(value.split())
