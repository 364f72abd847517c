"""Drop entries of task vectors at random and rescale what remains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sokmerge.merge.task_vectors.vectors import (
    differences,
    draws,
    named_streams,
    names,
    prepare,
    require_between,
    step,
    weighted_sum,
)
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params

__all__ = ["dare", "drop_and_rescale"]


def drop_and_rescale(
    vector: Params, drop: float, seed: int, *, stream: str = "0", rescale: bool = True
) -> dict[str, Tensor]:
    r"""Set each entry of a task vector to zero with probability p, and rescale the others.

    .. math:: \tilde\tau = \frac{m\odot\tau}{1-p},\qquad m_j \sim \text{Bernoulli}(1-p)

    so that :math:`\mathbb E\,\tilde\tau = \tau`. The draws are independent, entry by entry.

    Each tensor has a stream of its own, made from the seed, ``stream`` and the tensor's name and
    drawn on the CPU: the mask does not depend on the device, on the order of the entries, or on
    which other entries there are.

    Args:
        vector: a task vector. Entries that are not floating point are left as they are.
        drop: :math:`p`, in [0, 1).
        seed: fixes the masks.
        stream: tells apart the masks of several vectors under one seed.
        rescale: divide by :math:`1-p`; False leaves the kept entries as they are, for comparison.

    Raises:
        ArgumentError: the probability is not in [0, 1).

    >>> import torch
    >>> kept = drop_and_rescale({"w": torch.ones(8)}, 0.5, seed=0)["w"]
    >>> sorted(set(kept.tolist()))
    [0.0, 2.0]
    """
    require_between("drop", drop, 0, 1, bounds="[)")
    dropped = dict(vector)
    for name in names(vector):
        dropped[name] = _dropped(vector[name], name, drop, seed, stream, rescale)
    return dropped


@method(
    branch="weight aggregation",
    paper="yu2023language",
    needs=("base",),
    scope="entry",
    equation=r"\theta=\theta_0+\lambda\textstyle\sum_i w_i\,\frac{m_i}{1-p}\odot\tau_i,"
    r"\ m_i\sim\operatorname{Bernoulli}(1-p)",
)
def dare(
    models: Sequence[Params],
    *,
    base: Params,
    seed: int,
    drop: float = 0.9,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
    rescale: bool = True,
    streams: Sequence[str] | None = None,
) -> Params:
    r"""Add task vectors of which most entries were dropped at random.

    .. math:: \theta = \theta_0 + \lambda\sum_i w_i\,\frac{m_i\odot(\theta_i-\theta_0)}{1-p}

    (DARE, "drop and rescale", before task arithmetic; Yu et al. 2023.) In expectation over the
    masks this is task arithmetic with the same scale and weights.

    **Streams.** A mask is fixed by the seed, the stream of its model, and the name of its tensor.
    By default a model's stream is its position, so the first model has the same mask whatever
    follows it, but exchanging two models exchanges their masks. Give ``streams``, a name for each
    model, and the order of the models does not matter.

    **Scope**: entry by entry; no entry depends on another, and there are neither ties nor
    elected signs.

    Args:
        models: parameters of networks fine-tuned from the base.
        base: parameters of the network from which they started. Entries that are not floating
            point are taken from it.
        seed: fixes the masks.
        drop: :math:`p`, the probability with which an entry is dropped, in [0, 1).
        scale: :math:`\lambda`, the length of the common step.
        weights: one number of any sign for each model, by default all 1.
        rescale: divide by :math:`1-p`; False is for comparison.
        streams: a different name for each model, by default its position, "0", "1", ...

    Raises:
        ArgumentError: no models, models and base that do not match or are not finite, or a
            probability, scale, weights or streams that cannot be used.

    >>> import torch
    >>> base, model = {"w": torch.zeros(8)}, {"w": torch.ones(8)}
    >>> sorted(set(dare([model], base=base, drop=0.5, seed=0)["w"].tolist()))
    [0.0, 2.0]
    """
    weights = prepare(models, base, weights, scale=scale)
    require_between("drop", drop, 0, 1, bounds="[)")
    streams = named_streams(streams, models)

    def direction(name: str) -> Tensor:
        kept = [
            _dropped(tau, name, drop, seed, stream, rescale)
            for tau, stream in zip(differences(models, base, name), streams, strict=True)
        ]
        return weighted_sum(kept, weights)

    return step(base, direction, scale)


def _dropped(
    tensor: Tensor, name: str, drop: float, seed: int, stream: str, rescale: bool
) -> Tensor:
    kept = tensor.where(draws(tensor, name, seed, stream) >= drop, 0.0)
    return kept / (1 - drop) if rescale else kept
