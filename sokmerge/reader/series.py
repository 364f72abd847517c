"""Numbers of a long table, one for each seed, and pictures of several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sokmerge.errors import ArgumentError
from sokmerge.reader.estimates import Estimate
from sokmerge.reader.plots import replicates

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["chosen", "series"]

_LOOKS = ("C0o-", "C1s--", "C2^-.", "C3D:", "C4v-", "C5P--")


def chosen(table: pd.DataFrame, **asked: Any) -> np.ndarray:
    """Return a number for each seed, in their order: the mean of ``value`` over what is asked for.

    Args:
        table: the results of a study, with the columns ``seed`` and ``value``.
        **asked: column to the value that it must have; other columns may hold anything.

    Raises:
        ArgumentError: a column that the table does not have, or nothing is found.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"seed": [0, 0, 1], "part": ["a", "b", "a"], "value": [1.0, 2.0, 3.0]})
    >>> chosen(table, part="a")
    array([1., 3.])
    """
    rows = table
    for column, value in asked.items():
        if column not in table:
            raise ArgumentError(
                "asked", found=f"{column!r}", expected=f"one of the columns {[*table.columns]}"
            )
        rows = rows[rows[column] == value]
    if rows.empty:
        raise ArgumentError("asked", found=f"{asked}, which no row has", expected="some rows")
    return rows.groupby("seed").value.mean().to_numpy()


def series(
    ax: Axes,
    at: Sequence[Any],
    named: Mapping[str, Sequence[Sequence[float]]],
    *,
    line: bool = True,
    **axes: Any,
) -> None:
    """Draw several series of replicates over the same places, each with a look of its own.

    Args:
        ax: where to draw.
        at: the places, numbers or words.
        named: what stands in the legend to the replicates at each place.
        line: whether means are joined.
        **axes: passed to ``ax.set``, such as ``xlabel`` and ``yscale``.

    Raises:
        ArgumentError: more series than there are looks.

    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> series(ax, [1, 2], {"loss": [[1.0, 1.2], [0.5, 0.6]]}, xlabel="step")
    """
    if len(named) > len(_LOOKS):
        raise ArgumentError(
            "named", found=f"{len(named)} series", expected=f"{len(_LOOKS)} at most"
        )
    for (label, values), look in zip(named.items(), _LOOKS, strict=False):
        estimates = [Estimate.of(sample) for sample in values]
        replicates(ax, at, values, estimates, label, fmt=look if line else look[:3])
    ax.set(**axes)
    ax.legend()
