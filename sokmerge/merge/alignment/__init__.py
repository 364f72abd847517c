"""Neuron alignment: re-index the units of one network to those of another."""

from sokmerge.merge.alignment.activation_matching import activation_matching
from sokmerge.merge.alignment.aligned import Aligned, aligned
from sokmerge.merge.alignment.annealing import annealed_matching
from sokmerge.merge.alignment.cca import cca_merge
from sokmerge.merge.alignment.cycle_consistent import Universe, cycle_consistent_matching
from sokmerge.merge.alignment.fedma import fedma
from sokmerge.merge.alignment.mapping import resized
from sokmerge.merge.alignment.matching import Matching
from sokmerge.merge.alignment.ot_fusion import ot_fusion, transport_plans
from sokmerge.merge.alignment.pfnm import pfnm
from sokmerge.merge.alignment.pleas import pleas
from sokmerge.merge.alignment.repair import repair
from sokmerge.merge.alignment.sinkhorn import sinkhorn_matching
from sokmerge.merge.alignment.straight_through import straight_through_matching
from sokmerge.merge.alignment.tact import tact
from sokmerge.merge.alignment.variance import VarianceRatio, variance_ratio
from sokmerge.merge.alignment.weight_matching import weight_matching
from sokmerge.merge.alignment.zipit import partial_zipit, zipit

__all__ = [
    "Aligned",
    "Matching",
    "Universe",
    "VarianceRatio",
    "activation_matching",
    "aligned",
    "annealed_matching",
    "cca_merge",
    "cycle_consistent_matching",
    "fedma",
    "ot_fusion",
    "partial_zipit",
    "pfnm",
    "pleas",
    "repair",
    "resized",
    "sinkhorn_matching",
    "straight_through_matching",
    "tact",
    "transport_plans",
    "variance_ratio",
    "weight_matching",
    "zipit",
]
