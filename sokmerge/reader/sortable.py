"""A table that a reader of the page can sort; elsewhere a plain one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from sokmerge.errors import ArgumentError
from sokmerge.reader import records
from sokmerge.reader.digits import significant

__all__ = ["show_table"]

NOTHING = "–"


def show_table(
    columns: Mapping[str, Sequence[object]],
    *,
    caption: str,
    links: Mapping[str, str] | None = None,
    digits: int = 3,
) -> None:
    """Show columns of equal length as a table whose headings sort the rows.

    Args:
        columns: heading to cells. A cell is a text, a number or None, which stands for a value
            that does not exist. The first column names the rows.
        caption: what the table holds and what to look at.
        links: address of the explanation of a row, by the text of its first cell.
        digits: significant digits of the numbers that are not whole.

    Raises:
        ArgumentError: no column, columns of different lengths, or a caption that is empty.

    >>> columns = {"method": ["average", "ties"], "accuracy [%]": [81.24, None]}
    >>> show_table(columns, caption="Merges.")
    Merges.
    method   accuracy [%]
    average          81.2
    ties                –
    """
    caption = records.check_text("caption", caption)
    lengths = {heading: len(cells) for heading, cells in columns.items()}
    if not lengths or len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise ArgumentError(
            "columns",
            found=f"columns of lengths {lengths}",
            expected="one or more columns of one length, not empty",
        )
    written = [[_cell(cell, digits) for cell in cells] for cells in columns.values()]
    rows = list(zip(*written, strict=True))
    numeric = [not any(isinstance(cell, str) for cell in cells) for cells in columns.values()]
    records.show(
        {
            "text/plain": _as_text(caption, list(columns), rows, numeric),
            "text/html": _as_html(caption, list(columns), rows, numeric, links or {}),
        }
    )


def _cell(cell: object, digits: int) -> str:
    if cell is None:
        return NOTHING
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return str(cell)
    return significant(float(cell), digits)


def _as_text(
    caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> str:
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [caption]
    for row in (headings, *rows):
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _as_html(
    caption: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Sequence[bool],
    links: Mapping[str, str],
) -> str:
    """Return the table as HTML; the page's script and style sheet make it sortable and narrow."""
    heads = "".join(f"<th scope='col'>{escape(heading)}</th>" for heading in headings)
    body = []
    for first, *others in rows:
        name = escape(first)
        if first in links:
            name = f"<a href='{escape(links[first])}'>{name}</a>"
        cells = "".join(
            f"<td{' class=number' if number else ''}>{escape(cell)}</td>"
            for cell, number in zip(others, numeric[1:], strict=True)
        )
        body.append(f"<tr><th scope='row'>{name}</th>{cells}</tr>")
    return (
        f"<table class='sm-sortable'><caption>{escape(caption)}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )
