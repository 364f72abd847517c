"""The kinds of picture that the chapters draw again and again, from plain arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sokmerge.reader.estimates import Estimate
from sokmerge.reader.styling import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["contours", "curve", "curves", "heat_table", "places", "replicates", "rise"]

_NORMAL_95 = 1.96
_DASHES = ("-", "--", "-.", ":")  # so that curves are told apart without colour as well


def contours(
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    values: np.ndarray,
    *,
    label: str,
    levels: Sequence[float],
    **axes: Any,
) -> None:
    """Draw filled contours, each level with a colour of its own, and their colour bar.

    Args:
        ax: where to draw.
        x: positions along the first axis, shape (A,).
        y: positions along the second axis, shape (B,).
        values: the value at ``(x[i], y[j])``, shape (A, B).
        label: what the values are, with their unit.
        levels: ascending; values beyond them keep the outermost colours.
        **axes: passed to ``ax.set``, such as ``xlabel`` and ``aspect``.

    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> contours(ax, [0, 1], [0, 1, 2], np.eye(2, 3), label="loss", levels=[0, 0.5, 1])
    """
    from matplotlib.colors import BoundaryNorm

    colours = ax.figure.colorbar(
        ax.contourf(
            x,
            y,
            np.asarray(values).T,
            levels=levels,
            norm=BoundaryNorm(levels, 256, extend="both"),
            extend="both",
        ),
        ax=ax,
        location="bottom",
        label=label,
        ticks=list(levels)[:: max(1, len(levels) // 5)],
        format="%.3g",
    )
    colours.ax.minorticks_off()
    ax.contour(x, y, np.asarray(values).T, levels=levels, colors="white", linewidths=0.4)
    ax.grid(False)
    ax.set(**axes)


def places(ax: Axes, named: Mapping[str, Sequence[float]], *, path: Sequence[str] = ()) -> None:
    """Mark named points of a map, and draw the straight lines from each of ``path`` to the next.

    Args:
        ax: a map, for instance from :func:`contours`.
        named: name to coordinates (x, y).
        path: names of points.

    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> places(ax, {"A": (0, 0), "B": (1, 0)}, path=["A", "B"])
    """
    along = np.array([named[name] for name in path]).reshape(-1, 2)
    ax.plot(*along.T, "--", color="white", linewidth=1.6)
    for name, (x, y) in named.items():
        ax.plot(x, y, "o", color="white", markeredgecolor="black", markersize=8, zorder=3)
        ax.annotate(
            name,
            (x, y),
            xytext=(7, 7),
            textcoords="offset points",
            fontweight="bold",
            zorder=4,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"},
        )


def curve(
    ax: Axes, x: np.ndarray, y: np.ndarray, stderr: np.ndarray, label: str, **style: Any
) -> None:
    """Draw a curve with a band of 1.96 standard errors, a 95 % interval, on either side.

    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> curve(ax, np.arange(3), np.arange(3), np.full(3, 0.1), "loss")
    """
    x, y, stderr = np.asarray(x), np.asarray(y), np.asarray(stderr)
    (drawn,) = ax.plot(x, y, label=label, **style)
    half = _NORMAL_95 * stderr
    ax.fill_between(x, y - half, y + half, color=drawn.get_color(), alpha=0.2, linewidth=0)


def curves(ax: Axes, x: np.ndarray, named: Mapping[str, Any], **axes: Any) -> None:
    """Draw curves over the same positions, each with a dash pattern of its own, and their legend.

    Args:
        ax: where to draw.
        x: positions, shape (A,).
        named: what stands in the legend to the values, shape (A,), or to a pair of values and
            standard errors, which are drawn as in :func:`curve`.
        **axes: passed to ``ax.set``, such as ``xlabel`` and ``yscale``.

    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> curves(ax, np.arange(3), {"train": [1, 2, 3], "test": ([2, 3, 4], [0.1, 0.1, 0.1])})
    """
    for index, (label, values) in enumerate(named.items()):
        y, stderr = values if isinstance(values, tuple) else (values, np.zeros(len(x)))
        curve(ax, x, y, stderr, label, linestyle=_DASHES[index % len(_DASHES)])
    ax.set(**axes)
    ax.legend()


def heat_table(
    ax: Axes,
    groups: Mapping[str, Mapping[str, Sequence[float | None]]],
    columns: Sequence[str],
    *,
    shade: Callable[[int, float], float],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Draw a table of whole numbers in coloured cells, in groups of rows under a heading each.

    Args:
        ax: where to draw; give the figure a height of about a quarter of an inch for each row.
        groups: heading to rows; a row is its name and one number for each column, which is
            rounded, or None where there is none.
        columns: the headings of the columns.
        shade: from the place of a column and a number to a colour: from -1, orange, through 0,
            white, to 1, blue; beyond that the outermost colours.
        notes: words that stand right of a row, by its name.

    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> heat_table(ax, {"means": {"average": [84.1, 51.2]}}, ["same", "different"],
    ...            shade=lambda column, value: (value - 70) / 30)
    """
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("", (PALETTE[1], "white", PALETTE[0]))
    place, ticks = 0.0, []
    for heading, rows in groups.items():
        place += 1.0
        ax.text(-0.5, place, heading, fontweight="bold", verticalalignment="center")
        faces = np.ones((len(rows), len(columns), 4))
        for row, (name, values) in enumerate(rows.items()):
            at = place + 1 + row
            ticks.append((at, name))
            for column, value in enumerate(values):
                ink, text = "#595959", "–"
                if value is not None:
                    shaded = min(1.0, max(-1.0, shade(column, value)))
                    faces[row, column] = colours((shaded + 1) / 2)
                    # The darker the cell, the lighter its number.
                    light = faces[row, column, :3] @ (0.3, 0.6, 0.1)
                    ink, text = "white" if light < 0.5 else "black", f"{value:.0f}"
                ax.text(column, at, text, ha="center", va="center", color=ink)
            if notes and name in notes:
                ax.text(len(columns) - 0.4, at, notes[name], va="center", color="#404040")
        first, place = place, place + len(rows)
        # One small image for each group, not a path for each cell: the file stays small.
        extent = (-0.5, len(columns) - 0.5, place + 0.5, first + 0.5)
        ax.imshow(faces, extent=extent, aspect="auto", interpolation="nearest", zorder=0)
        lines = np.arange(first + 0.5, place + 1)
        ax.hlines(lines, -0.5, len(columns) - 0.5, color="white", linewidth=2, zorder=0.5)
        between = np.arange(0.5, len(columns) - 1)
        ax.vlines(between, first + 0.5, place + 0.5, color="white", linewidth=2, zorder=0.5)
    longest = max((len(note) for note in (notes or {}).values()), default=0)
    ax.set(xlim=(-0.55, len(columns) - 0.4 + 0.1 * longest), ylim=(place + 0.6, 0.4))
    ax.set_xticks(range(len(columns)), columns, fontsize="x-small")
    ax.set_yticks([y for y, _ in ticks], [name for _, name in ticks])
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


def replicates(
    ax: Axes,
    positions: Sequence[float],
    values: Sequence[Sequence[float]],
    estimates: Sequence[Estimate],
    label: str,
    **style: Any,
) -> None:
    """Draw the replicates at each position as dots, their means joined, and the 95 % intervals.

    Args:
        ax: where to draw.
        positions: one for each estimate.
        values: the replicates at each position.
        estimates: what was made of them.
        label: for the legend.
        **style: passed to ``ax.errorbar``, such as ``color`` and ``marker``.

    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> samples = [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]
    >>> replicates(ax, [16, 32], samples, [Estimate.of(s) for s in samples], "barrier")
    """
    means = np.array([e.mean for e in estimates])
    reach = np.array([[e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]])
    drawn = ax.errorbar(positions, means, yerr=reach, label=label, capsize=3, **style)
    for position, sample in zip(positions, values, strict=True):
        ax.plot(
            [position] * len(sample),
            sample,
            ".",
            color=drawn.lines[0].get_color(),
            alpha=0.35,
            markersize=5,
        )


def rise(ax: Axes, x: float, low: float, high: float, label: str) -> None:
    """Mark the height from ``low`` to ``high`` at ``x`` by an arrow with two heads.

    The label stands beside its foot, where a hump leaves it room.

    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> rise(ax, 0.5, 0.2, 1.0, "barrier")
    """
    arrow = {"arrowstyle": "<->", "color": "black", "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (x, high), xytext=(x, low), arrowprops=arrow)
    ax.annotate(
        label,
        (x, low + (high - low) / 8),
        xytext=(5, 0),
        textcoords="offset points",
        verticalalignment="center",
    )
