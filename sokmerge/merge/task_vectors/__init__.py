"""Task vectors: arithmetic on the steps that lead from one base to its fine-tuned networks."""

from sokmerge.merge.task_vectors.breadcrumbs import breadcrumbs
from sokmerge.merge.task_vectors.concrete import concrete
from sokmerge.merge.task_vectors.dare import dare, drop_and_rescale
from sokmerge.merge.task_vectors.della import della, drop_by_magnitude
from sokmerge.merge.task_vectors.emr import Modulated, emr
from sokmerge.merge.task_vectors.grafting import Grafts, graft_mask, grafting
from sokmerge.merge.task_vectors.iso_c import iso_c
from sokmerge.merge.task_vectors.knots import knots
from sokmerge.merge.task_vectors.low_rank import expand, low_rank, module_arithmetic
from sokmerge.merge.task_vectors.tall_masks import apply_mask, consensus, tall_mask
from sokmerge.merge.task_vectors.tangent import linearised, tangent
from sokmerge.merge.task_vectors.task_arithmetic import task_arithmetic, task_vectors
from sokmerge.merge.task_vectors.ties import disjoint_mean, elect_sign, ties, trim
from sokmerge.merge.task_vectors.tsv import tsv

__all__ = [
    "Grafts",
    "Modulated",
    "apply_mask",
    "breadcrumbs",
    "concrete",
    "consensus",
    "dare",
    "della",
    "disjoint_mean",
    "drop_and_rescale",
    "drop_by_magnitude",
    "elect_sign",
    "emr",
    "expand",
    "graft_mask",
    "grafting",
    "iso_c",
    "knots",
    "linearised",
    "low_rank",
    "module_arithmetic",
    "tall_mask",
    "tangent",
    "task_arithmetic",
    "task_vectors",
    "ties",
    "trim",
    "tsv",
]
