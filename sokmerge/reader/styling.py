"""How the figures of the book look."""

from __future__ import annotations

from typing import Any

__all__ = ["PALETTE", "STYLE", "WIDTH", "style"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Colours that people with any colour vision tell apart.

Source: Okabe & Ito (2008), Color universal design; its yellow is left out, as it is too pale for
a line on white.
"""

WIDTH = 6.5
"""Width of a figure in inches: the column of the page, so that fonts keep their size in print."""

STYLE: dict[str, Any] = {
    "figure.figsize": (WIDTH, 3.3),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    # A white card also on a dark page: the data's colours were chosen against white.
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    # On a phone the figure is shown at two thirds of its size, and these are then still read.
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "legend.fontsize": 11,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
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
