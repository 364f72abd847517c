"""Plain text and tables as MyST, for the pages that are made and not typed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["literal", "table"]


def literal(text: str) -> str:
    r"""Return plain text so that MyST shows it as it is.

    >>> literal("a_b < *c*")
    'a\\_b \\< \\*c\\*'
    """
    return re.sub(r"([\\`*_{}\[\]<>()#|$~^@])", r"\\\1", text)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], widths: str, kind: str) -> str:
    """Return a table as a ``list-table``: a cell may hold several paragraphs.

    Args:
        heads: the headings.
        rows: the cells, MyST.
        widths: relative widths of the columns, in ``list-table``'s form.
        kind: the class that the style sheets know it by.
    """
    lines = ["````{list-table}", ":header-rows: 1", f":widths: {widths}", f":class: {kind}", ""]
    for row in (heads, *rows):
        for mark, cell in zip(["* -", *["  -"] * (len(row) - 1)], row, strict=True):
            lines.append(f"{mark} {cell}".replace("\n", "\n    ").replace("    \n", "\n"))
    return "\n".join([*lines, "````", ""])
