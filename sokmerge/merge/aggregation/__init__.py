"""Weight aggregation: one network by arithmetic on corresponding weights."""

from sokmerge.merge.aggregation.adamerging import adamerging
from sokmerge.merge.aggregation.average import average
from sokmerge.merge.aggregation.communication import bytes_communicated
from sokmerge.merge.aggregation.evolutionary import evolutionary
from sokmerge.merge.aggregation.federated import Client, cold_fusion, fedavg
from sokmerge.merge.aggregation.fisher import fisher, fisher_diagonal
from sokmerge.merge.aggregation.model_stock import model_stock
from sokmerge.merge.aggregation.outer import outer_step
from sokmerge.merge.aggregation.papa import papa
from sokmerge.merge.aggregation.regmean import gram_matrices, regmean
from sokmerge.merge.aggregation.slerp import slerp
from sokmerge.merge.aggregation.soups import greedy_soup, learned_soup
from sokmerge.merge.aggregation.surgery import Operated, representation_surgery
from sokmerge.merge.aggregation.trajectory import ema, lawa, swa
from sokmerge.merge.aggregation.wise_ft import wise_ft

__all__ = [
    "Client",
    "Operated",
    "adamerging",
    "average",
    "bytes_communicated",
    "cold_fusion",
    "ema",
    "evolutionary",
    "fedavg",
    "fisher",
    "fisher_diagonal",
    "gram_matrices",
    "greedy_soup",
    "lawa",
    "learned_soup",
    "model_stock",
    "outer_step",
    "papa",
    "regmean",
    "representation_surgery",
    "slerp",
    "swa",
    "wise_ft",
]
