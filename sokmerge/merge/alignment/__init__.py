"""Neuron alignment: re-index the units of one network to those of another."""

from sokmerge.merge.alignment.activation_matching import activation_matching
from sokmerge.merge.alignment.annealing import annealed_matching
from sokmerge.merge.alignment.cca import cca_merge
from sokmerge.merge.alignment.cycle_consistent import Universe, cycle_consistent_matching
from sokmerge.merge.alignment.matching import Matching
from sokmerge.merge.alignment.repair import repair
from sokmerge.merge.alignment.sinkhorn import sinkhorn_matching
from sokmerge.merge.alignment.straight_through import straight_through_matching
from sokmerge.merge.alignment.tact import tact
from sokmerge.merge.alignment.variance import VarianceRatio, variance_ratio
from sokmerge.merge.alignment.weight_matching import weight_matching

__all__ = [
    "Matching",
    "Universe",
    "VarianceRatio",
    "activation_matching",
    "annealed_matching",
    "cca_merge",
    "cycle_consistent_matching",
    "repair",
    "sinkhorn_matching",
    "straight_through_matching",
    "tact",
    "variance_ratio",
    "weight_matching",
]
