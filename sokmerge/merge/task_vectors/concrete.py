"""Learn one mask for all task vectors, drawn from a relaxed Bernoulli distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.descent import descend, require_schedule
from sokmerge.merge.task_vectors.vectors import (
    differences,
    draws,
    names,
    prepare,
    step,
    weighted_sum,
)
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, wide

__all__ = ["concrete"]


@method(
    branch="weight aggregation",
    paper="tang2023concrete",
    needs=("base", "inputs"),
    scope="entry",
    equation=r"\theta=\theta_0+\lambda\,\frac{m}{\bar m}\odot\textstyle\sum_i w_i\tau_i,"
    r"\ m=\sigma(g),\ g=\arg\min_g\mathbb E\,L(\theta)",
    signs="left as they are; sums may cancel",
)
def concrete(
    models: Sequence[Params],
    *,
    base: Params,
    loss: Callable[[dict[str, Tensor]], Tensor],
    seed: int,
    steps: int = 100,
    lr: float = 0.1,
    temperature: float = 0.5,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Params:
    r"""Add task vectors under one learned mask.

    .. math:: \theta(m) = \theta_0 + \lambda\,\frac{m}{\bar m}\odot\sum_i w_i\,(\theta_i-\theta_0),
              \qquad g^* = \arg\min_g\ \mathbb E_u\,L\bigl(\theta(m_u)\bigr),\qquad
              m_u = \sigma\Bigl(\frac{g+\log u-\log(1-u)}{T}\Bigr)

    (Concrete subspace learning, Tang et al. 2023.) The mask says which entries the tasks share
    without harm. While it is learned it is drawn from a concrete distribution, a continuous
    relaxation of coin tosses with the logits g: u is uniform and the temperature T says how
    sharply it falls to 0 or 1. The result takes the probabilities, :math:`m=\sigma(g^*)`.
    :math:`\bar m` is the mean of the mask over each tensor, so that the mask does not shorten the
    step. With no steps all logits are equal, and this is task arithmetic.

    The loss is the caller's. The paper takes the entropy of the merged network's predictions on
    inputs without labels, summed over the tasks, and learns the coefficients of the sum as an
    inner problem; here they are given.

    * **Scope**: one logit for each entry of the parameters; means over each tensor.
    * **Draws** are fixed by the seed, the number of the step, and the name of the tensor.
    * There is neither a tie rule nor a sign rule. The order of the models does not matter.

    Args:
        models: parameters of networks fine-tuned from the base.
        base: parameters of the network from which they started. Entries that are not floating
            point are taken from it.
        loss: a differentiable function of parameters that returns a scalar.
        seed: fixes the draws.
        steps: steps of Adam on the logits.
        lr: their rate.
        temperature: T.
        scale: :math:`\lambda`, the length of the common step.
        weights: one number of any sign for each model, by default all 1.

    Raises:
        ArgumentError: no models, models and base that do not match or are not finite, numbers
            that cannot be used, or logits that are no longer finite.

    >>> base, model = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 1.0])}
    >>> merged = concrete([model], base=base, loss=lambda p: p["w"][1] - p["w"][0], seed=0)
    >>> bool(merged["w"][0] > 1.9), bool(merged["w"][1] < 0.1)
    (True, True)
    """
    weights = prepare(models, base, weights, scale=scale)
    require_schedule(steps, lr)
    if not 0 < temperature < float("inf"):
        raise ArgumentError(
            "temperature", found=f"{temperature}", expected="a positive, finite number"
        )
    total = {name: weighted_sum(differences(models, base, name), weights) for name in names(base)}

    def merged(masks: dict[str, Tensor]) -> dict[str, Tensor]:
        return step(base, lambda name: total[name] * _even(masks[name]), scale)

    def objective(logits: dict[str, Tensor], number: int) -> Tensor:
        masks = {}
        for name, g in logits.items():
            # Away from 0 and 1, where the logarithms are not finite.
            u = draws(g, name, seed, f"step {number}").clamp(1e-6, 1 - 1e-6)
            masks[name] = ((g + (u / (1 - u)).log()) / temperature).sigmoid()
        return loss(merged(masks))

    start = {name: torch.zeros_like(tau, dtype=torch.float32) for name, tau in total.items()}
    logits = descend(start, objective, steps=steps, lr=lr)
    return merged({name: wide(g).sigmoid() for name, g in logits.items()})


def _even(mask: Tensor) -> Tensor:
    """Return a mask divided by its mean; a tensor without entries stays."""
    return mask / mask.mean() if mask.numel() else mask
