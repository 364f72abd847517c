"""The data behind a figure: checked, written as CSV, and compared with what was written before."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from sokmerge.errors import ArgumentError

__all__ = ["Table", "difference", "stacked"]

DIGITS = 6


@dataclass(frozen=True, slots=True)
class Table:
    """Named columns of equal length; a cell is a text, as it stands in the CSV file.

    >>> print(Table.of({"width": [16, 32], "barrier": [0.123456789, 0.05]}).csv(), end="")
    width,barrier
    16,0.123457
    32,0.05
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Table:
        """Take columns from a mapping of name to values, or from a pandas DataFrame.

        Raises:
            ArgumentError: no column, columns of different lengths, or a cell that is neither a
                text nor a finite number.
        """
        columns = {str(name): _cells(str(name), data[name]) for name in data}
        lengths = {name: len(cells) for name, cells in columns.items()}
        if not columns or len(set(lengths.values())) != 1 or not min(lengths.values()):
            raise ArgumentError(
                "data",
                found=f"columns of lengths {lengths}",
                expected="one or more columns of one length",
                do="Put curves of different lengths below one another, with a column naming them.",
            )
        return cls(tuple(columns), tuple(zip(*columns.values(), strict=True)))

    @classmethod
    def read(cls, text: str) -> Table:
        """Read back what :meth:`csv` wrote."""
        lines = [tuple(line) for line in csv.reader(io.StringIO(text))]
        return cls(lines[0] if lines else (), tuple(lines[1:]))

    def csv(self) -> str:
        """Write the table as CSV, the same bytes for the same content on every machine."""
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([self.columns, *self.rows])
        return stream.getvalue()


def stacked(**parts: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Put the data of several parts of a figure below one another.

    The first column, ``part``, names the part. A part has the columns of its own arrays, which
    are broadcast to one shape and read row by row, so that positions of shape (A, 1) and (B,)
    go with the values on their grid, shape (A, B). Where a part lacks a column, the cell is empty.

    Raises:
        ArgumentError: the arrays of a part cannot be broadcast to one shape.

    >>> surface = {"x": np.array([[0], [1]]), "y": np.array([5, 6]), "loss": np.eye(2)}
    >>> print(Table.of(stacked(plane=surface, line={"x": [0, 1], "loss": [2, 3]})).csv(), end="")
    part,x,y,loss
    plane,0,5,1
    plane,0,6,0
    plane,1,5,0
    plane,1,6,1
    line,0,,2
    line,1,,3
    """
    names = ["part", *dict.fromkeys(name for columns in parts.values() for name in columns)]
    out: dict[str, list[Any]] = {name: [] for name in names}
    for part, columns in parts.items():
        arrays = [np.asarray(values) for values in columns.values()]
        try:
            flat = [array.ravel().tolist() for array in np.broadcast_arrays(*arrays)]
        except ValueError as error:
            shapes = {name: array.shape for name, array in zip(columns, arrays, strict=True)}
            raise ArgumentError(
                part, found=f"shapes {shapes}", expected="arrays that broadcast to one shape"
            ) from error
        rows = max(map(len, flat), default=0)
        given = {"part": [part] * rows, **dict(zip(columns, flat, strict=True))}
        for name in names:
            out[name] += given.get(name, [""] * rows)
    return out


def difference(old: Table, new: Table, *, rtol: float, atol: float) -> str | None:
    r"""Say where two tables differ by more than rounding, or return None.

    Two numbers agree if :math:`|x - y| \le a + r\,|x|`, with :math:`x` the old one; anything else
    agrees if it is equal.

    >>> a, b = Table.of({"x": [1.0, 2.0]}), Table.of({"x": [1.0, 2.1]})
    >>> difference(a, a, rtol=1e-3, atol=0), difference(a, b, rtol=1e-3, atol=0)
    (None, "row 2, column 'x': 2 there, 2.1 now")
    """
    if old.columns != new.columns:
        return f"columns {list(old.columns)} there, {list(new.columns)} now"
    if len(old.rows) != len(new.rows):
        return f"{len(old.rows)} rows there, {len(new.rows)} now"
    for number, (before, now) in enumerate(zip(old.rows, new.rows, strict=True), start=1):
        if len(before) != len(now):
            return f"row {number}: {len(before)} cells there, {len(now)} now"
        for column, x, y in zip(old.columns, before, now, strict=True):
            if not _agree(x, y, rtol, atol):
                return f"row {number}, column {column!r}: {x} there, {y} now"
    return None


def _agree(x: str, y: str, rtol: float, atol: float) -> bool:
    if x == y:
        return True
    try:
        a, b = float(x), float(y)
    except ValueError:
        return False
    return abs(a - b) <= atol + rtol * abs(a)


def _cells(name: str, values: Any) -> list[str]:
    try:
        items = values.tolist() if hasattr(values, "tolist") else list(values)
    except TypeError:
        items = [values]
    return [_cell(name, index, item) for index, item in enumerate(items)]


def _cell(name: str, index: int, item: Any) -> str:
    item = item.item() if hasattr(item, "item") else item  # scalars of numpy and torch
    if isinstance(item, str | bool):
        return str(item)
    if isinstance(item, Integral):
        return str(int(item))
    if isinstance(item, Real) and math.isfinite(item):
        return f"{float(item) + 0.0:.{DIGITS}g}"
    raise ArgumentError(
        f"data[{name!r}][{index}]", found=repr(item), expected="a text or a finite number"
    )
