"""Merge networks: the branches of the taxonomy, one folder each."""

from sokmerge.merge.aggregation import (
    average,
    fisher,
    fisher_diagonal,
    gram_matrices,
    greedy_soup,
    model_stock,
    regmean,
    slerp,
)
from sokmerge.merge.alignment import Matching, activation_matching, weight_matching
from sokmerge.merge.reconcile import Note, Reconciled, reconcile
from sokmerge.merge.report import Conflict, Move, Report, report
from sokmerge.merge.task_vectors import breadcrumbs, consensus, dare, task_arithmetic, ties
from sokmerge.merge.taxonomy import Declaration, declaration, methods

__all__ = [
    "Conflict",
    "Declaration",
    "Matching",
    "Move",
    "Note",
    "Reconciled",
    "Report",
    "activation_matching",
    "average",
    "breadcrumbs",
    "consensus",
    "dare",
    "declaration",
    "fisher",
    "fisher_diagonal",
    "gram_matrices",
    "greedy_soup",
    "methods",
    "model_stock",
    "reconcile",
    "regmean",
    "report",
    "slerp",
    "task_arithmetic",
    "ties",
    "weight_matching",
]
