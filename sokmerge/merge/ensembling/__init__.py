"""Ensembling: networks that are all kept, and merged in what they say or anew for each input."""

from sokmerge.merge.ensembling.branch_train_merge import (
    Domains,
    branch_train_merge,
    discover_domains,
    domains,
    posterior_average,
)
from sokmerge.merge.ensembling.deep_ensemble import logit_ensemble, probability_ensemble
from sokmerge.merge.ensembling.fge import fge, triangular_cycle
from sokmerge.merge.ensembling.predictor import Predictor
from sokmerge.merge.ensembling.routing import Features, Router, embedding, task_router
from sokmerge.merge.ensembling.smear import smear
from sokmerge.merge.ensembling.snapshot import cosine_cycle, snapshot_ensemble
from sokmerge.merge.ensembling.subspaces import (
    Simplexes,
    learned_line,
    simplex,
    simplex_volume,
)
from sokmerge.merge.ensembling.twin_merging import twin_merging
from sokmerge.merge.ensembling.wemoe import wemoe

__all__ = [
    "Domains",
    "Features",
    "Predictor",
    "Router",
    "Simplexes",
    "branch_train_merge",
    "cosine_cycle",
    "discover_domains",
    "domains",
    "embedding",
    "fge",
    "learned_line",
    "logit_ensemble",
    "posterior_average",
    "probability_ensemble",
    "simplex",
    "simplex_volume",
    "smear",
    "snapshot_ensemble",
    "task_router",
    "triangular_cycle",
    "twin_merging",
    "wemoe",
]
