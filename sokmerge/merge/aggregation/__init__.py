"""Weight aggregation: one network by arithmetic on corresponding weights."""

from sokmerge.merge.aggregation.average import average
from sokmerge.merge.aggregation.fisher import fisher, fisher_diagonal
from sokmerge.merge.aggregation.model_stock import model_stock
from sokmerge.merge.aggregation.regmean import gram_matrices, regmean
from sokmerge.merge.aggregation.slerp import slerp
from sokmerge.merge.aggregation.soups import greedy_soup

__all__ = [
    "average",
    "fisher",
    "fisher_diagonal",
    "gram_matrices",
    "greedy_soup",
    "model_stock",
    "regmean",
    "slerp",
]
