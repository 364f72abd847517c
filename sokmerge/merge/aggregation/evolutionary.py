"""Evolutionary merging: coefficients found by an evolution strategy, from scores alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.average import average
from sokmerge.merge.aggregation.coefficients import Blend
from sokmerge.merge.operands import require_models
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, has_values

__all__ = ["evolutionary"]


@method(
    branch="weight aggregation",
    paper="akiba2024evolutionary",
    needs=("data",),
    scope="layer",
    equation=r"\theta^l=\theta_0^l+\textstyle\sum_i\lambda_i^l(\theta_i^l-\theta_0^l),\ "
    r"\lambda\text{ by CMA-ES}",
    ties="of equal scores the earlier candidate is kept",
)
def evolutionary(
    models: Sequence[Params],
    *,
    score: Callable[[Params], float],
    base: Params | None = None,
    budget: int = 200,
    spread: float = 0.2,
    layerwise: bool = True,
    seed: int = 0,
) -> Params:
    r"""Return the best merge that an evolution strategy finds, by score.

    .. math:: \theta^l = \theta_0^l + \sum_i \lambda_i^l\,(\theta_i^l - \theta_0^l),
              \qquad \lambda = \arg\max_\lambda\ \text{score}(\theta)

    No gradient is asked for, so that the score may be anything, accuracy included. Candidates are
    drawn from a normal distribution over the coefficients, whose mean and covariance follow the
    better ones: CMA-ES (Hansen 2016). Akiba et al. (2024) search so, layer by layer, for how
    language models are mixed; they also search for how sparse each model's task vector is made
    and in which order layers are stacked, which this function does not.

    The search starts at the average of the models, with or without a base, and the average is
    scored first: the result is never worse than it by the score that was given.

    Scope: per layer, or per model if not ``layerwise``.

    Args:
        models: parameters of networks of one architecture.
        score: what is to be high, on data on which the result is not judged.
        base: where the steps :math:`\theta_i-\theta_0` start; by default the average of the
            models, which the coefficients then move away from. Entries that are not floating
            point are taken from it.
        budget: how often the score may be asked for, at least once.
        spread: standard deviation of the coefficients in the first generation.
        layerwise: whether each layer has coefficients of its own.
        seed: of the draws, which come from a generator of this call's own.

    Raises:
        ArgumentError: models that do not match or are not finite, a budget or spread that cannot
            be used, a score that is NaN, or the package ``cma`` is not there.

    >>> models = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}]
    >>> base, goal = {"w": torch.zeros(2)}, torch.tensor([0.9, 0.2])
    >>> found = evolutionary(models, base=base, score=lambda p: -float((p["w"] - goal).norm()))
    >>> found["w"].round(decimals=2)
    tensor([0.9000, 0.2000])
    """
    require_models(models, **({} if base is None else {"base": base}))
    if budget < 1:
        raise ArgumentError("budget", found=f"{budget}", expected="at least 1")
    if not 0 < spread < math.inf:
        raise ArgumentError("spread", found=f"{spread}", expected="a positive, finite number")
    blend = Blend(models, base=average(models) if base is None else base, layerwise=layerwise)

    def made(vector: np.ndarray) -> Params:
        return blend(torch.tensor(vector.tolist()).reshape(blend.shape).to(blend.device))

    def scored(vector: np.ndarray) -> float:
        candidate = made(vector)
        value = float(score(candidate))
        if math.isnan(value):
            if all(has_values(t) for t in candidate.values()):
                raise ArgumentError("score", found="NaN", expected="a number, higher where better")
            return 0.0  # unknown, in a rehearsal
        return value

    best = np.full(math.prod(blend.shape), 1 / len(models))
    highest = scored(best)
    search, left = _strategy(best, spread, seed), budget - 1
    while left > 0 and not search.stop():
        generation = search.ask()
        values = [scored(vector) for vector in generation[:left]]
        left -= len(values)
        for vector, value in zip(generation, values, strict=False):
            if value > highest:
                best, highest = vector, value
        if len(values) == len(generation):
            search.tell(generation, [-value for value in values])
    return made(best)


def _strategy(start: np.ndarray, spread: float, seed: int):
    cma = _cma()
    draws = np.random.default_rng(seed)
    options = {
        "randn": lambda *shape: draws.standard_normal(shape),
        "seed": math.nan,  # or it would seed NumPy's global generator
        "verbose": -9,
        "verb_log": 0,
    }
    return cma.CMAEvolutionStrategy(start, spread, options)


def _cma() -> ModuleType:
    """Import the package on first use: it takes as long as all of the rest."""
    try:
        import cma
    except ImportError as error:
        raise ArgumentError(
            "evolutionary",
            found="no package cma",
            expected="CMA-ES by its authors",
            do="Install it: pip install cma.",
        ) from error
    return cma
