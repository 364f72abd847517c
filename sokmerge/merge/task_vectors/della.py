"""Drop entries at random, small ones more often, then elect signs and average what agrees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.task_vectors.matrices import as_matrix
from sokmerge.merge.task_vectors.ties import disjoint_mean
from sokmerge.merge.task_vectors.vectors import (
    differences,
    draws,
    named_streams,
    names,
    prepare,
    require_between,
    step,
)
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, wide

__all__ = ["della", "drop_by_magnitude"]


def drop_by_magnitude(
    vector: Params, drop: float, seed: int, *, spread: float = 0.2, stream: str = "0"
) -> dict[str, Tensor]:
    r"""Drop entries of a task vector at random, small ones more often, and rescale the others.

    .. math:: p_j = p + \epsilon\Bigl(\frac{r_j+\frac12}{n}-\frac12\Bigr),\qquad
              \tilde\tau_j = \frac{m_j\,\tau_j}{1-p_j},\qquad
              m_j \sim \text{Bernoulli}(1-p_j)

    where :math:`r_j` is the rank of an entry's magnitude among the n of its row, 0 for the
    largest (MAGPRUNE, Deep et al. 2024). The probabilities lie :math:`\epsilon` apart and their
    mean is p. As each entry is rescaled by its own probability, :math:`\mathbb E\,\tilde\tau=\tau`.
    With :math:`\epsilon=0` this is :func:`~sokmerge.merge.task_vectors.drop_and_rescale`, draw for
    draw.

    * **Scope**: an entry is ranked within its row: all that leads to one output. A tensor with one
      axis or none is one row.
    * **Tie rule**: entries of equal magnitude share the mean of their ranks, so their
      probabilities are equal too.

    Args:
        vector: a task vector. Entries that are not floating point are left as they are.
        drop: p, the mean probability of being dropped.
        seed: fixes the masks, with ``stream`` and the name of the tensor.
        spread: :math:`\epsilon\ge 0`; :math:`p\pm\epsilon/2` must lie in [0, 1).
        stream: tells apart the masks of several vectors under one seed.

    Raises:
        ArgumentError: probabilities outside [0, 1).

    >>> kept = drop_by_magnitude({"w": torch.tensor([3.0, 1.0])}, 0.5, seed=1, spread=1 / 2)["w"]
    >>> kept  # p is 0.375 and 0.625
    tensor([4.8000, 0.0000])
    """
    _require_probabilities(drop, spread)
    dropped = dict(vector)
    for name in names(vector):
        dropped[name] = _dropped(vector[name], name, drop, spread, seed, stream)
    return dropped


@method(
    branch="weight aggregation",
    paper="deep2024della",
    needs=("base",),
    scope="tensor",
    equation=r"\theta=\theta_0+\lambda\operatorname*{mean}_{\operatorname{sgn}\tilde\tau_i=\gamma}"
    r"\tilde\tau_i,\ \tilde\tau_i=\frac{m_i}{1-p_i}\odot\tau_i,\ p_i\text{ by rank}",
    ties="entries of equal magnitude share the mean of their ranks",
    signs="the sign with the greater total mass is elected, and only entries of that sign are "
    "averaged; at equal mass the result is zero",
)
def della(
    models: Sequence[Params],
    *,
    base: Params,
    seed: int,
    drop: float = 0.7,
    spread: float = 0.2,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
    streams: Sequence[str] | None = None,
) -> Params:
    r"""Merge task vectors by dropping by magnitude, electing signs, and averaging what agrees.

    .. math:: \theta = \theta_0 + \lambda\,\tau,\qquad
              \tau = \operatorname{disjoint\ mean}_i\ \tilde\tau_i

    (DELLA-Merging, Deep et al. 2024: drop, elect, fuse.)
    :func:`~sokmerge.merge.task_vectors.drop_by_magnitude` drops and rescales, so that each
    :math:`\tilde\tau_i` is the task vector in expectation;
    :func:`~sokmerge.merge.task_vectors.elect_sign` and
    :func:`~sokmerge.merge.task_vectors.disjoint_mean` settle conflicts as in TIES. The election
    is not linear, so the merge is not unbiased where signs disagree.

    * **Scope**: ranks within each row of a tensor, signs entry by entry.
    * **Tie rule**: entries of equal magnitude share the mean of their ranks.
    * **Sign rule**: where positive and negative mass are equal, the entry keeps the base's value.
    * **Streams** as in :func:`~sokmerge.merge.dare`: a model's stream is its position, or its name.

    Args:
        models: parameters of networks fine-tuned from the base.
        base: parameters of the network from which they started. Entries that are not floating
            point are taken from it.
        seed: fixes the masks.
        drop: p, the mean probability with which an entry is dropped.
        spread: :math:`\epsilon`, how far the probabilities of the smallest and the largest entry
            of a row lie apart; :math:`p\pm\epsilon/2` must lie in [0, 1).
        scale: :math:`\lambda`, the length of the common step.
        weights: one non-negative number for each model, by default all equal; they count in the
            election and in the mean, and only their proportions matter.
        streams: a different name for each model, by default its position, "0", "1", ...

    Raises:
        ArgumentError: no models, models and base that do not match or are not finite, or a
            probability, spread, scale, weights or streams that cannot be used.

    >>> base = {"w": torch.zeros(2)}
    >>> models = [{"w": torch.tensor([4.0, 3.0])}, {"w": torch.tensor([2.0, -5.0])}]
    >>> della(models, base=base, drop=0, spread=0, seed=0)["w"]
    tensor([ 3., -5.])
    """
    weights = prepare(models, base, weights, scale=scale, negative=False)
    _require_probabilities(drop, spread)
    streams = named_streams(streams, models)

    def direction(name: str) -> Tensor:
        kept = [
            _dropped(tau, name, drop, spread, seed, stream)
            for tau, stream in zip(differences(models, base, name), streams, strict=True)
        ]
        return disjoint_mean(kept, weights)

    return step(base, direction, scale)


def _dropped(
    tensor: Tensor, name: str, drop: float, spread: float, seed: int, stream: str
) -> Tensor:
    if tensor.numel() == 0:
        return tensor
    rows = as_matrix(tensor) if tensor.dim() >= 2 else tensor.reshape(1, -1)
    p = drop + spread * (_share_larger(rows.abs()) - 0.5).reshape(tensor.shape)
    kept = tensor.where(draws(tensor, name, seed, stream) >= p, 0.0)
    return (wide(kept) / (1 - p)).to(tensor.dtype)


def _share_larger(magnitudes: Tensor) -> Tensor:
    """Return for each entry of a row the share of the row that is larger, equals counted half."""
    ordered = magnitudes.sort(-1).values
    smaller = torch.searchsorted(ordered, magnitudes)
    not_larger = torch.searchsorted(ordered, magnitudes, right=True)
    return 1 - wide(smaller + not_larger) / (2 * magnitudes.shape[-1])


def _require_probabilities(drop: float, spread: float) -> None:
    require_between("drop", drop, 0, 1, bounds="[)")
    if not (spread >= 0 and drop - spread / 2 >= 0 and drop + spread / 2 < 1):
        raise ArgumentError(
            "spread",
            found=f"{spread} around a drop of {drop}",
            expected="a non-negative number with drop - spread / 2 and drop + spread / 2 in [0, 1)",
        )
