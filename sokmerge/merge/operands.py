"""What every merge asks of its operands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, require_finite, require_matching

__all__ = ["model_weights", "proportions", "require_models", "require_statistics"]


def require_models(
    models: Sequence[Params],
    *,
    least: int = 1,
    reference: Mapping[str, Params] | None = None,
    **others: Params,
) -> None:
    """Raise unless there are enough models and all of them, and the others, match and are finite.

    Args:
        models: the models.
        least: how many there must be.
        reference: Params, by name, that the models are held against; by default the first model.
        **others: further Params, by name, that are held against the same.

    Raises:
        ArgumentError: too few models, or Params that do not match or are not finite.
    """
    if len(models) < least:
        raise ArgumentError(
            "models",
            found=f"{len(models)} models" if models else "no models",
            expected=f"at least {least if least > 1 else 'one'}",
        )
    numbered = {f"models[{i}]": model for i, model in enumerate(models)}
    named = {**(reference or {}), **numbered, **others}
    require_matching(**named)
    require_finite(**named)


def model_weights(
    weights: Sequence[float] | None, models: Sequence[Params], *, negative: bool = False
) -> list[float]:
    """Return one weight for each model, by default 1.

    Args:
        weights: one finite number for each model.
        models: the models.
        negative: whether weights may be negative; if not, they must not all be zero either.

    Raises:
        ArgumentError: weights that cannot be used, or of another number.

    >>> model_weights(None, [{}, {}]), model_weights([1, -1], [{}, {}], negative=True)
    ([1.0, 1.0], [1.0, -1.0])
    """
    weights = [1.0] * len(models) if weights is None else [float(w) for w in weights]
    usable = len(weights) == len(models) and all(math.isfinite(w) for w in weights)
    if usable and not negative:
        usable = all(w >= 0 for w in weights) and any(weights)
    if not usable:
        kind = "finite number" if negative else "finite, non-negative number"
        raise ArgumentError(
            "weights",
            found=f"{weights} for {len(models)} models",
            expected=f"one {kind} for each model" + ("" if negative else ", not all zero"),
        )
    return weights


def proportions(weights: Sequence[float] | None, models: Sequence[Params]) -> list[float]:
    """Return one weight for each model, their sum one.

    Raises:
        ArgumentError: weights that are negative, not finite, all zero, or of another number.

    >>> proportions([1, 3], [{}, {}])
    [0.25, 0.75]
    """
    weights = model_weights(weights, models)
    total = math.fsum(weights)
    return [w / total for w in weights]


def require_statistics(
    name: str, statistics: Sequence[Mapping[str, Tensor]], models: Sequence[Params]
) -> None:
    """Raise unless there is one statistic for each model, of the same entries, finite throughout.

    Raises:
        ArgumentError: another number of statistics, statistics that do not match or are not
            finite, or an entry that is no floating-point parameter of the models.
    """
    if len(statistics) != len(models):
        raise ArgumentError(
            name,
            found=f"{len(statistics)} statistics for {len(models)} models",
            expected="one for each model, in the same order",
        )
    named = {f"{name}[{i}]": statistic for i, statistic in enumerate(statistics)}
    require_matching(**named)
    for key, tensor in statistics[0].items():
        if key not in models[0] or not models[0][key].is_floating_point():
            raise ArgumentError(
                f"{name}[0]",
                found=f"an entry {key!r}",
                expected="names of floating-point parameters of the models",
            )
        if tensor.device != models[0][key].device:
            raise ArgumentError(
                f"{name}[0][{key!r}]",
                found=f"a tensor on {tensor.device}",
                expected=f"the models' device, {models[0][key].device}",
                do="Move one of them with sokmerge.params.to(params, device).",
            )
    require_finite(**named)
