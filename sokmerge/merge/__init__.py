"""Merge networks: the branches of the taxonomy, one folder each."""

from sokmerge.merge.aggregation import average
from sokmerge.merge.alignment import Matching, activation_matching, weight_matching
from sokmerge.merge.taxonomy import Declaration, declaration, methods

__all__ = [
    "Declaration",
    "Matching",
    "activation_matching",
    "average",
    "declaration",
    "methods",
    "weight_matching",
]
