"""What every aggregation asks of its operands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, require_finite, require_matching

__all__ = ["proportions", "require_models", "require_statistics"]


def require_models(models: Sequence[Params], *, least: int = 1, **others: Params) -> None:
    """Raise unless there are enough models and all of them, and the others, match and are finite.

    Raises:
        ArgumentError: too few models, or Params that do not match or are not finite.
    """
    if len(models) < least:
        raise ArgumentError(
            "models",
            found=f"{len(models)} models" if models else "no models",
            expected=f"at least {least if least > 1 else 'one'}",
        )
    named = {**{f"models[{i}]": model for i, model in enumerate(models)}, **others}
    require_matching(**named)
    require_finite(**named)


def proportions(weights: Sequence[float] | None, models: Sequence[Params]) -> list[float]:
    """Return one weight for each model, their sum one.

    Raises:
        ArgumentError: weights that are negative, not finite, all zero, or of another number.

    >>> proportions([1, 3], [{}, {}])
    [0.25, 0.75]
    """
    weights = [1.0] * len(models) if weights is None else [float(w) for w in weights]
    usable = all(math.isfinite(w) and w >= 0 for w in weights) and any(weights)
    if len(weights) != len(models) or not usable:
        raise ArgumentError(
            "weights",
            found=f"{weights} for {len(models)} models",
            expected="one finite, non-negative number for each model, not all zero",
        )
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
