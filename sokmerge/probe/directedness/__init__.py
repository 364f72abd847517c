"""Measure direction: in which subspaces gradients lie, and what single directions do."""

from sokmerge.probe.directedness.descent import Descent, projected_descent
from sokmerge.probe.directedness.disentanglement import Disentanglement, disentanglement
from sokmerge.probe.directedness.entries import Gains, flip_signs, gains
from sokmerge.probe.directedness.intrinsic import (
    IntrinsicDimension,
    RandomSubspace,
    intrinsic_dimension,
    random_subspace,
)
from sokmerge.probe.directedness.subspace import Share, overlap, share, split

__all__ = [
    "Descent",
    "Disentanglement",
    "Gains",
    "IntrinsicDimension",
    "RandomSubspace",
    "Share",
    "disentanglement",
    "flip_signs",
    "gains",
    "intrinsic_dimension",
    "overlap",
    "projected_descent",
    "random_subspace",
    "share",
    "split",
]
