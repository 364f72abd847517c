"""How the figures of the book look."""

from __future__ import annotations

from typing import Any

__all__ = ["PALETTE", "STYLE", "WIDTH", "style"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Colours that people with any colour vision tell apart.

Source: Okabe & Ito (2008), Color universal design; its yellow is left out, as it is too pale for
a line on white.
"""

WIDTH = 7.0
"""Width of a figure in inches: the column of the page, so that fonts keep their size in print."""

STYLE: dict[str, Any] = {
    "figure.figsize": (WIDTH, 3.4),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    # A white card also on a dark page: the data's colours were chosen against white.
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    # On a phone the figure is shown at half its size, and 11 points are then still read.
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "legend.fontsize": 10,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "image.cmap": "viridis",
}


def style() -> None:
    """Set matplotlib to the look of the book, for this process.

    It is called, not set on import, since a library must not change the figures of those who
    only use its functions.

    >>> import matplotlib
    >>> style()
    >>> matplotlib.rcParams["axes.grid"]
    True
    """
    import matplotlib
    from cycler import cycler

    matplotlib.rcParams.update(STYLE)
    matplotlib.rcParams["axes.prop_cycle"] = cycler(color=PALETTE)
