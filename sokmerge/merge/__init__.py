"""Merge networks: the branches of the taxonomy, one folder each."""

from sokmerge.merge.aggregation import average
from sokmerge.merge.alignment import Matching, activation_matching, weight_matching
from sokmerge.merge.task_vectors import breadcrumbs, consensus, dare, task_arithmetic, ties
from sokmerge.merge.taxonomy import Declaration, declaration, methods

__all__ = [
    "Declaration",
    "Matching",
    "activation_matching",
    "average",
    "breadcrumbs",
    "consensus",
    "dare",
    "declaration",
    "methods",
    "task_arithmetic",
    "ties",
    "weight_matching",
]
