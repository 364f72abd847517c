"""What stands between a computation and its reader: estimates, claims, figures, chapters.

Nothing in here knows a network. A notebook needs these names:

>>> from sokmerge.reader import Claim, Estimate, glue, show_claim, show_figure, stacked, style
"""

from sokmerge.reader.claims import Claim, show_claim
from sokmerge.reader.estimates import Estimate
from sokmerge.reader.figures import show_figure
from sokmerge.reader.gluing import glue
from sokmerge.reader.sortable import show_table
from sokmerge.reader.styling import style
from sokmerge.reader.tables import stacked

__all__ = [
    "Claim",
    "Estimate",
    "glue",
    "show_claim",
    "show_figure",
    "show_table",
    "stacked",
    "style",
]
