"""Neuron alignment: re-index the units of one network to those of another."""

from sokmerge.merge.alignment.activation_matching import activation_matching
from sokmerge.merge.alignment.matching import Matching
from sokmerge.merge.alignment.weight_matching import weight_matching

__all__ = ["Matching", "activation_matching", "weight_matching"]
