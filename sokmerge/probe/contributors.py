r"""The contributors to a merge, seen in the space of parameters: who stands out, and who is in it.

All is read from the steps :math:`\tau_i=\theta_i-\theta_0` from a common base, and most of it from
their Gram matrix :math:`G_{ij}=\langle\tau_i,\tau_j\rangle`. No data is needed, and no network is
run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, host, require_finite, require_matching, wide

__all__ = ["Ingredients", "Outlyingness", "ingredients", "outlyingness"]


@dataclass(frozen=True, eq=False)
class Outlyingness:
    r"""How far each of n contributions stands apart from the others, four arrays of shape (n,).

    Attributes:
        norm: :math:`\lVert\tau_i\rVert`.
        cosine: mean cosine to the other contributions; NaN where a step is zero.
        conflict: share of entries in which :math:`\tau_i` has the sign opposite to that of the sum
            of the others, among the entries in which both have a sign.
        distance: to the mean of the others.
    """

    norm: np.ndarray
    cosine: np.ndarray
    conflict: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True, eq=False)
class Ingredients:
    r"""What each of n candidates has to do with a merge, arrays of shape (n,).

    Attributes:
        coefficient: of the least-squares fit of the merge by the candidates.
        stderr: its standard error, the entries of the parameters taken for independent.
        cosine: of the candidate's step and the merge's.
        residual: share of the squared length of the merge's step that the fit leaves.
    """

    coefficient: np.ndarray
    stderr: np.ndarray
    cosine: np.ndarray
    residual: float

    def likeliest(self, count: int, by: str = "coefficient") -> list[int]:
        """Return the numbers of the candidates with the largest values, ascending.

        Args:
            count: how many.
            by: ``"coefficient"`` or ``"cosine"``.
        """
        if by not in ("coefficient", "cosine"):
            raise ArgumentError("by", found=repr(by), expected="'coefficient' or 'cosine'")
        return sorted(map(int, np.argsort(-getattr(self, by), kind="stable")[:count]))


def outlyingness(models: Sequence[Params], base: Params) -> Outlyingness:
    r"""Say how far each contribution to a merge stands apart from the others.

    Norm and direction are what anomaly detection in federated learning looks at (Mi et al. 2022
    among many), the distance is that of Krum in its simplest form (Blanchard et al. 2017, which
    sums distances to the nearest others), and the conflict of signs is what TIES-Merging settles
    by election (Yadav et al. 2023).

    Args:
        models: parameters of two or more networks, such as the ingredients of a soup.
        base: parameters of the network from which they started.

    Raises:
        ArgumentError: fewer than two models, or parameters that do not match or are not finite.

    >>> base, models = {"w": torch.zeros(2)}, [{"w": torch.tensor(w)} for w in
    ...     ([1.0, 0.0], [1.0, 0.0], [0.0, -3.0])]
    >>> found = outlyingness(models, base)
    >>> found.norm.tolist(), found.cosine.tolist()
    ([1.0, 1.0, 3.0], [0.5, 0.5, 0.0])
    """
    if len(models) < 2:
        raise ArgumentError("models", found=f"{len(models)}", expected="two or more")
    _require(base, **{f"models[{i}]": model for i, model in enumerate(models)})
    n = len(models)
    gram, against, signed = 0.0, 0.0, 0.0
    for steps in _steps(models, base):
        gram = gram + steps @ steps.T
        signs, rest = steps.sign(), (steps.sum(0) - steps).sign()
        against = against + (signs * rest < 0).sum(1)
        signed = signed + (signs * rest != 0).sum(1)
    g = host(gram)
    norm = np.sqrt(np.diag(g))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = g / np.outer(norm, norm)
        conflict = host(against) / host(signed)
    # |x - mean of others|^2 = v' G v with v = 1 at i and -1/(n-1) elsewhere.
    apart = np.eye(n) * (1 + 1 / (n - 1)) - 1 / (n - 1)
    squares = np.einsum("ij,jk,ik->i", apart, g, apart)
    return Outlyingness(
        norm,
        (cosines.sum(1) - np.diag(cosines)) / (n - 1),
        conflict,
        np.sqrt(np.maximum(squares, 0)),
    )


def ingredients(merged: Params, candidates: Sequence[Params], base: Params) -> Ingredients:
    r"""Tell which of several candidates went into a merge.

    .. math:: \min_c\ \Bigl\lVert (\theta_m-\theta_0) - \sum_i c_i\,(\theta_i-\theta_0)
              \Bigr\rVert^2

    For a merge that is a linear combination of some of the candidates the coefficients are its
    weights, those of the others are zero, and nothing is left over. The fit uses that candidates
    of one base overlap; the cosines do not. Where candidates depend on each other linearly, the
    shortest solution is taken.

    The standard errors are those of ordinary least squares with as many observations as there are
    parameters. Parameters are not independent, so they are a scale, not a test.

    Args:
        merged: parameters of the merge.
        candidates: parameters of one or more networks.
        base: parameters from which the candidates started.

    Raises:
        ArgumentError: no candidates, or parameters that do not match or are not finite.

    >>> base = {"w": torch.zeros(3)}
    >>> a, b, c = ({"w": row} for row in torch.tensor([[1.0, 1, 0], [0.0, 1, 1], [1.0, 0, 1]]))
    >>> found = ingredients({"w": torch.tensor([0.5, 1.0, 0.5])}, [a, b, c], base)
    >>> found.coefficient.round(6).tolist(), found.likeliest(2)
    ([0.5, 0.5, 0.0], [0, 1])
    """
    if not candidates:
        raise ArgumentError("candidates", found="none", expected="one or more")
    named = {f"candidates[{i}]": candidate for i, candidate in enumerate(candidates)}
    _require(base, merged=merged, **named)
    gram, entries = 0.0, 0
    for steps in _steps([merged, *candidates], base):
        gram, entries = gram + steps @ steps.T, entries + steps.shape[1]
    whole, along, among = gram[0, 0], gram[1:, 0], gram[1:, 1:]
    inverse = torch.linalg.pinv(among, hermitian=True)
    coefficient = inverse @ along
    left = (whole - coefficient @ along).clamp(min=0)
    free = max(1, entries - len(candidates))
    stderr = (left / free * inverse.diagonal().clamp(min=0)).sqrt()
    cosine = along / (whole * among.diagonal()).sqrt()
    return Ingredients(host(coefficient), host(stderr), host(cosine), float(host(left / whole)))


def _steps(models: Sequence[Params], base: Params) -> Iterator[Tensor]:
    """Yield the steps from the base, a matrix of shape (n, entries) for each floating tensor."""
    for name, tensor in base.items():
        if tensor.is_floating_point():
            yield torch.stack([(wide(model[name]) - wide(tensor)).flatten() for model in models])


def _require(base: Params, **named: Params) -> None:
    require_matching(base=base, **named)
    require_finite(base=base, **named)
