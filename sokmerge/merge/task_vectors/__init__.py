"""Task vectors: arithmetic on the steps that lead from one base to its fine-tuned networks."""

from sokmerge.merge.task_vectors.breadcrumbs import breadcrumbs
from sokmerge.merge.task_vectors.dare import dare, drop_and_rescale
from sokmerge.merge.task_vectors.emr import Modulated, emr
from sokmerge.merge.task_vectors.tall_masks import apply_mask, consensus, tall_mask
from sokmerge.merge.task_vectors.task_arithmetic import task_arithmetic, task_vectors
from sokmerge.merge.task_vectors.ties import disjoint_mean, elect_sign, ties, trim

__all__ = [
    "Modulated",
    "apply_mask",
    "breadcrumbs",
    "consensus",
    "dare",
    "disjoint_mean",
    "drop_and_rescale",
    "elect_sign",
    "emr",
    "tall_mask",
    "task_arithmetic",
    "task_vectors",
    "ties",
    "trim",
]
