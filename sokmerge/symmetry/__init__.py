"""What leaves a network's function unchanged."""

from sokmerge.symmetry.chain import chain
from sokmerge.symmetry.permutation import Axis, Block, Permutation, PermutationGroup, Site

__all__ = ["Axis", "Block", "Permutation", "PermutationGroup", "Site", "chain"]
