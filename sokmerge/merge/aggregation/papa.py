"""Population parameter averaging: networks that train apart and are pulled to their mean."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.average import average
from sokmerge.merge.aggregation.federated import Client, require_rounds
from sokmerge.merge.operands import require_models
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, lerp

__all__ = ["papa"]


@method(
    branch="weight aggregation",
    paper="jolicoeur2023papa",
    needs=("training",),
    returns="population",
    scope="entry",
    equation=r"\theta_j\leftarrow(1-\rho)\,T_j(\theta_j)+\rho\,\tfrac1n\textstyle\sum_iT_i(\theta_i)",
)
def papa(
    models: Sequence[Params],
    steppers: Sequence[Client],
    *,
    rounds: int = 1,
    rate: float = 0.01,
    partners: int | None = None,
    seed: int = 0,
) -> tuple[Params, ...]:
    r"""Return a population of networks that trained apart, yet stayed close enough to average.

    .. math:: \theta_j \leftarrow (1-\rho)\,T_j(\theta_j) + \rho\,\bar\theta_j, \qquad
              \bar\theta_j = \frac1n\sum_{i} T_i(\theta_i)

    Each member takes some steps of its own, :math:`T_j`, and is then pulled a little towards the
    mean of the population (Jolicoeur-Martineau et al. 2023). The authors train with different data
    orders, augmentations and regularisation, pull every few steps, and in the end average
    the population (:func:`~sokmerge.merge.average` or :func:`~sokmerge.merge.greedy_soup`).

    Their two other variants are special cases: PAPA-all, where members are replaced by the mean
    but rarely, is ``rate=1``; PAPA-2, where each is replaced by the mean of two members drawn at
    random, is ``rate=1, partners=2``. With ``rate=0`` the members train separately.

    Args:
        models: parameters of the members, of one architecture. Entries that are not floating
            point stay each member's own.
        steppers: for each member a function that trains it on for some steps. What an optimiser
            remembers, such as momentum, is the function's to keep or to drop.
        rounds: how often the members train and are pulled.
        rate: :math:`\rho`, from 0 to 1.
        partners: how many members, drawn at random for each, make up the mean; by default all.
        seed: says which partners are drawn.

    Returns:
        The population, in the order of the models.

    Raises:
        ArgumentError: models that do not match or are not finite, also after training, or other
            arguments that cannot be used.

    >>> import torch
    >>> models = [{"w": torch.tensor([0.0])}, {"w": torch.tensor([8.0])}]
    >>> still = [lambda params: params] * 2
    >>> [member["w"] for member in papa(models, still, rounds=2, rate=0.5)]
    [tensor([3.]), tensor([5.])]
    """
    require_models(models)
    require_rounds(rounds)
    if len(steppers) != len(models):
        raise ArgumentError(
            "steppers",
            found=f"{len(steppers)} for {len(models)} models",
            expected="one for each model, in the same order",
        )
    if not 0 <= rate <= 1:
        raise ArgumentError("rate", found=f"{rate}", expected="a number from 0 to 1")
    if partners is not None and not 1 <= partners <= len(models):
        raise ArgumentError(
            "partners", found=f"{partners}", expected=f"from 1 to {len(models)}, or None for all"
        )
    population = [dict(model) for model in models]
    for number in range(rounds):
        trained = [
            step({key: tensor.clone() for key, tensor in params.items()})
            for step, params in zip(steppers, population, strict=True)
        ]
        require_models(trained, reference={"models[0] before training": models[0]})
        population = [
            lerp(member, _mean(trained, partners, f"{seed}:{number}:{j}"), rate)
            for j, member in enumerate(trained)
        ]
    return tuple(population)


def _mean(population: Sequence[Params], partners: int | None, key: str) -> Params:
    """Return the mean of all members, or of some that are drawn as a text says."""
    if partners is None:
        return average(population)
    return average(random.Random(key).sample(list(population), partners))
