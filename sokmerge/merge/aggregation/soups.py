"""Soups: averages whose ingredients are chosen by how the average performs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.average import average
from sokmerge.merge.aggregation.coefficients import Blend
from sokmerge.merge.descent import Loss, descend, require_schedule
from sokmerge.merge.operands import require_models
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, has_values, wide

__all__ = ["greedy_soup", "learned_soup"]


@method(
    branch="weight aggregation",
    paper="wortsman2022soups",
    needs=("data",),
    scope="model",
    equation=r"\theta=\operatorname{mean}_{i\in S}\theta_i,\ S\text{ grown greedily}",
    ties="of equal scores the earlier model comes first; a model that leaves the score as it is "
    "is added",
)
def greedy_soup(models: Sequence[Params], *, score: Callable[[Params], float]) -> Params:
    r"""Return the average of those models that do not make the average worse.

    The models are sorted by their score, the best first. Starting with the best one alone, each
    is added to the ingredients if the average with it scores at least as well as the average
    without it (Wortsman et al. 2022, Recipe 1). So the result scores at least as well as the best
    model. For k models the score is asked for 2k - 1 times. The average of all models, the
    uniform soup, is :func:`average`.

    Models of equal score keep the order in which they are given, and only then can the order
    matter.

    Args:
        models: parameters of networks of one architecture. Entries that are not floating point
            are taken from the best.
        score: what is to be high, for instance the accuracy on held-out data; not on the data on
            which the result is judged.

    Raises:
        ArgumentError: no models, models that do not match or are not finite, or a score that is
            NaN.

    >>> import torch
    >>> models = [{"w": torch.tensor([w])} for w in (0.0, 4.0, 1.0)]
    >>> greedy_soup(models, score=lambda model: -abs(float(model["w"]) - 0.6))["w"]
    tensor([0.5000])
    """
    require_models(models)

    def scored(name: str, model: Params) -> float:
        value = float(score(model))
        if math.isnan(value) and all(has_values(t) for t in model.values()):
            raise ArgumentError(
                "score", found=f"NaN for {name}", expected="a number, higher where better"
            )
        return value

    scores = [scored(f"models[{i}]", model) for i, model in enumerate(models)]
    first, *others = sorted(range(len(models)), key=lambda i: -scores[i])
    ingredients, soup, best = [models[first]], models[first], scores[first]
    for i in others:
        trial = average([*ingredients, models[i]])
        value = scored(f"the soup with models[{i}]", trial)
        if not value < best:  # an unknown score, in a rehearsal, is taken in
            ingredients, soup, best = [*ingredients, models[i]], trial, value
    return dict(soup)


@method(
    branch="weight aggregation",
    paper="wortsman2022soups",
    needs=("data",),
    scope="model",
    equation=r"\theta=\textstyle\sum_i a_i\theta_i,\ a=\operatorname{softmax}(g),"
    r"\ g\text{ by gradient descent}",
)
def learned_soup(
    models: Sequence[Params],
    *,
    loss: Loss,
    steps: int = 100,
    lr: float = 0.1,
    layerwise: bool = False,
) -> Params:
    r"""Return the average of networks with weights that were learned by gradient descent.

    .. math:: \theta = \sum_i a_i\,\theta_i, \qquad
              a = \operatorname{softmax}(g), \qquad
              g = \arg\min_g \ell\Bigl(\sum_i a_i\,\theta_i\Bigr)

    The weights are positive and sum to one: the result stays in the convex hull of the models
    (Wortsman et al. 2022, the learned soup of the appendix). They start equal, and Adam changes
    their logits g. The authors also learn a temperature of the logits of the network, which here
    would be part of the loss.

    Args:
        models: parameters of networks of one architecture. Entries that are not floating point
            are taken from the first.
        loss: a differentiable function of parameters that returns a scalar, such as the mean
            cross-entropy on held-out data.
        steps: steps of Adam; with 0 the result is the uniform soup.
        lr: the rate of Adam.
        layerwise: whether each layer has weights of its own.

    Raises:
        ArgumentError: models that do not match or are not finite, steps or a rate that cannot be
            used, or weights that did not stay finite.

    >>> models = [{"w": torch.tensor([w])} for w in (0.0, 4.0)]
    >>> soup = learned_soup(models, loss=lambda params: (params["w"] - 1).square().sum())
    >>> round(soup["w"].item(), 2)
    1.0
    """
    require_models(models)
    require_schedule(steps, lr)
    blend = Blend(models, layerwise=layerwise)
    start = wide(torch.zeros(blend.shape, device=blend.device))
    found = descend(
        {"weights": start},
        lambda logits, _: loss(blend(logits["weights"].softmax(0))),
        steps=steps,
        lr=lr,
    )
    return blend(found["weights"].softmax(0))
