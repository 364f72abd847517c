"""What leaves a network's function unchanged."""

from sokmerge.symmetry.chain import chain
from sokmerge.symmetry.derived import Symmetry, of
from sokmerge.symmetry.linear import Flips, Mixing, Rescaling
from sokmerge.symmetry.permutation import Axis, Block, Permutation, PermutationGroup, Site
from sokmerge.symmetry.solving import Pinned

__all__ = [
    "Axis",
    "Block",
    "Flips",
    "Mixing",
    "Permutation",
    "PermutationGroup",
    "Pinned",
    "Rescaling",
    "Site",
    "Symmetry",
    "chain",
    "of",
]
