r"""Rounds of training apart and averaging: one start, several that train, and again.

A client is a function that trains: it takes parameters and returns parameters. How long, on what
and with which optimiser is its own affair, and so is the randomness of its training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.average import average
from sokmerge.merge.operands import model_weights, require_models
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, require_finite, require_matching

__all__ = ["Client", "cold_fusion", "fedavg", "require_rounds"]

Client = Callable[[Params], Params]
"""A function that goes on training from parameters, and returns where that leads."""


@method(
    branch="weight aggregation",
    paper="mcmahan2016communication",
    needs=("base", "training"),
    scope="entry",
    equation=r"\theta_{r+1}=\textstyle\sum_{k\in S_r}n_k\,T_k(\theta_r)\,/\,\sum_{k\in S_r}n_k",
)
def fedavg(
    base: Params,
    clients: Sequence[Client],
    *,
    rounds: int = 1,
    weights: Sequence[float] | None = None,
    fraction: float = 1.0,
    seed: int = 0,
) -> Params:
    r"""Return what clients reach that train apart and are averaged, round after round.

    .. math:: \theta_{r+1} = \frac{\sum_{k\in S_r} n_k\,T_k(\theta_r)}{\sum_{k\in S_r} n_k}

    In each round every client :math:`k` of a random set :math:`S_r` trains on its own data, from
    the common point :math:`\theta_r` to :math:`T_k(\theta_r)`, and the results are averaged
    (McMahan et al. 2016, algorithm 1, FederatedAveraging). With one step of full-batch gradient
    descent in each client this is gradient descent on the weighted mean of the losses; the more
    a client trains in a round, the more the average relies on the landscape between the clients.
    One round of all clients is the :func:`~sokmerge.merge.average` of fine-tuned networks.

    Args:
        base: where the first round starts.
        clients: functions from parameters to parameters.
        rounds: how often they train and are averaged; with 0 the result is the base.
        weights: for each client a non-negative number, such as the number of its examples; by
            default all equal. They need not sum to one.
        fraction: the share of the clients that take part in a round, above 0 to 1; at least one
            does.
        seed: says which clients take part.

    Raises:
        ArgumentError: no clients, what a client returns does not match the base or is not
            finite, or weights, rounds or a fraction that cannot be used.

    >>> import torch
    >>> def towards(target):
    ...     return lambda params: {"w": params["w"] + 0.5 * (target - params["w"])}
    >>> base = {"w": torch.tensor([0.0])}
    >>> fedavg(base, [towards(1.0), towards(3.0)], rounds=2)["w"]
    tensor([1.5000])
    """
    _require_some("clients", clients)
    shares = model_weights(weights, clients)
    if not 0 < fraction <= 1:
        raise ArgumentError("fraction", found=f"{fraction}", expected="above 0, at most 1")
    number = max(round(fraction * len(clients)), 1)

    def merged(params: Params, number_of_round: int) -> Params:
        chosen = _drawn(len(clients), number, f"{seed}:{number_of_round}")
        trained = [_trained(clients, k, params) for k in chosen]
        return average(trained, weights=[shares[k] for k in chosen])

    return _rounds(base, rounds, merged)


@method(
    branch="weight aggregation",
    paper="donyehiya2022cold",
    needs=("base", "training"),
    scope="entry",
    equation=r"\theta_{r+1}=\operatorname{mean}_{k\in S_r}T_k(\theta_r)\text{ but for the heads}",
)
def cold_fusion(
    base: Params,
    contributors: Sequence[Client],
    *,
    rounds: int = 1,
    number: int | None = None,
    own: Collection[str] = (),
    seed: int = 0,
) -> Params:
    r"""Return a base that got better by being fine-tuned on many tasks and fused, again and again.

    .. math:: \theta_{r+1} = \frac{1}{\lvert S_r\rvert}\sum_{k\in S_r} T_k(\theta_r)

    Contributors fetch the current base, each fine-tunes it on a task of its own, and the fused
    network is the next base (Don-Yehiya et al. 2022). The rule is that of :func:`fedavg`; what
    differs is the purpose. A contributor trains to the end on its own task, and the result is to
    be a good start for the next fine-tuning. What fits one task alone, such as a classifier's
    head, is not fused: each contributor keeps its ``own`` entries from one of its contributions
    to the next, and in the result they are those of ``base``.

    Args:
        base: the first base.
        contributors: functions from parameters to parameters, one for each task.
        rounds: how often they contribute; with 0 the result is the base.
        number: how many contributors, drawn at random, take part in a round; by default all.
        own: names of entries that are not fused.
        seed: says which contributors take part.

    Raises:
        ArgumentError: no contributors, what one returns does not match the base or is not
            finite, names that the base does not have, or rounds or a number that cannot be used.

    >>> import torch
    >>> def fits(target):
    ...     return lambda params: {"body": params["body"] + 1, "head": torch.tensor([target])}
    >>> base = {"body": torch.zeros(1), "head": torch.zeros(1)}
    >>> cold_fusion(base, [fits(1.0), fits(5.0)], rounds=3, own={"head"})
    {'body': tensor([3.]), 'head': tensor([0.])}
    """
    _require_some("contributors", contributors)
    unknown = sorted(set(own) - base.keys())
    if unknown:
        raise ArgumentError("own", found=f"{unknown}", expected="names of entries of the base")
    number = len(contributors) if number is None else number
    if not 1 <= number <= len(contributors):
        raise ArgumentError(
            "number", found=f"{number}", expected=f"from 1 to {len(contributors)}, the contributors"
        )
    kept: dict[int, dict[str, Tensor]] = {}

    def fused(params: Params, number_of_round: int) -> Params:
        trained = []
        for k in _drawn(len(contributors), number, f"{seed}:{number_of_round}"):
            found = _trained(contributors, k, {**params, **kept.get(k, {})})
            kept[k] = {key: found[key] for key in own}
            trained.append(found)
        return {**average(trained), **{key: base[key] for key in own}}

    return _rounds(base, rounds, fused)


def require_rounds(rounds: int) -> None:
    """Raise unless a number of rounds is a whole number of at least 0."""
    if not (isinstance(rounds, int) and rounds >= 0):
        raise ArgumentError("rounds", found=f"{rounds}", expected="a whole number, at least 0")


def _require_some(name: str, clients: Sequence[Client]) -> None:
    if not clients:
        raise ArgumentError(name, found=f"no {name}", expected="at least one")


def _rounds(base: Params, rounds: int, step: Callable[[Params, int], Params]) -> dict[str, Tensor]:
    require_models([base])
    require_rounds(rounds)
    params = dict(base)
    for number in range(rounds):
        params = dict(step(params, number))
    return params


def _trained(clients: Sequence[Client], k: int, params: Params) -> Params:
    """Return what a client makes of parameters, its own copy of which it may change."""
    found = clients[k]({key: tensor.clone() for key, tensor in params.items()})
    name = f"clients[{k}](params)"
    require_matching(**{"base": params, name: found})
    require_finite(**{name: found})
    return found


def _drawn(number: int, wanted: int, key: str) -> list[int]:
    """Return ``wanted`` of the first ``number`` whole numbers, drawn as a text says, in order."""
    return sorted(random.Random(key).sample(range(number), wanted))
