r"""The trace of an operator, with a standard error that is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sokmerge.errors import ArgumentError
from sokmerge.params import host, wide
from sokmerge.probe.curvature.density import stderr_of, take_out
from sokmerge.probe.curvature.lanczos import Krylov
from sokmerge.probe.curvature.operator import Operator

__all__ = ["Trace", "trace"]


@dataclass(frozen=True)
class Trace:
    r"""An estimate of the trace.

    Attributes:
        value: the estimate. Divide by the order of the matrix for the mean eigenvalue.
        stderr: its standard error, from the spread of the probes; 0 if all was deflated.
        deflated: the part that was taken out before and is exact.
        n: number of probes.
        converged: whether the standard error is as small as was asked for.
        products: how many products with a vector it took.
    """

    value: float
    stderr: float
    deflated: float
    n: int
    converged: bool
    products: int


def trace(
    operator: Operator,
    *,
    relative: float = 0.01,
    stderr: float | None = None,
    deflation: int = 20,
    fewest: int = 10,
    most: int = 1000,
    seed: int = 0,
) -> Trace:
    r"""Return the trace by Hutchinson's estimator in the complement of the largest eigenvalues.

    A Lanczos process of d steps gives an orthonormal basis Q of a space that holds the outermost
    eigenvectors nearly. With the projection :math:`P = 1 - Q^\top Q`,

    .. math:: \operatorname{tr}A = \operatorname{tr}(QAQ^\top)
              + (n-d)\,\mathbb E\,u^\top A u,\qquad u \text{ uniform on the unit sphere of } P

    The first part is exact, whatever Q is, and needs no further product; the second is averaged
    over probes. Its variance is about :math:`2\lVert PAP\rVert_F^2` instead of
    :math:`2\lVert A\rVert_F^2` (Hutchinson 1990; taking out a sketch of the matrix is the idea of
    Meyer et al. 2021). For networks, where a few eigenvalues hold most of the norm, that is a
    small part.

    Probes are added until the standard error is as small as is asked for. The standard error is
    itself an estimate: from ten probes it is right to about a quarter.

    Args:
        operator: a symmetric matrix.
        relative: standard error to reach, relative to the trace.
        stderr: standard error to reach, instead.
        deflation: steps of the first run, d; 0 gives the plain estimator.
        fewest: probes at least.
        most: probes at most; then ``converged`` is false and the standard error tells the rest.
        seed: of the start and of the probes.

    Raises:
        ArgumentError: an aim that is not above zero, fewer than two probes, more at least than at
            most, or a product that is not finite.

    >>> from sokmerge.probe.curvature import of_matrix
    >>> import torch
    >>> found = trace(of_matrix(torch.diag(torch.arange(50.0))), relative=0.01)
    >>> found.converged, abs(found.value - 1225) < 4 * found.stderr
    (True, True)
    """
    for name, aim in (("relative", relative), ("stderr", stderr)):
        if aim is not None and not (aim > 0 and math.isfinite(aim)):
            raise ArgumentError(name, found=f"{aim}", expected="a finite number above zero")
    if not 2 <= fewest <= most:
        raise ArgumentError(
            "fewest", found=f"{fewest}", expected=f"2 to {most}, the probes at most"
        )
    first = take_out(operator, min(deflation, operator.size), seed)
    exact = 0.0 if first is None else float(first.diagonal.sum())
    taken = 0 if first is None else first.products
    if taken == operator.size:
        return Trace(exact, 0.0, exact, 0, True, taken)
    samples: list[float] = []
    products, converged = taken, False
    while not converged and len(samples) < most:
        count = min(operator.together, most - len(samples))
        products += count
        # One after the other: where to stop does not depend on how many are taken at once.
        for sample in _samples(operator, first, count, seed, len(samples)):
            samples.append(float(sample))
            value = exact + float(np.mean(samples))
            error = float(stderr_of(np.array(samples)))
            aim = relative * abs(value) if stderr is None else stderr
            converged = len(samples) >= fewest and error <= aim
            if converged:
                break
    return Trace(value, error, exact, len(samples), converged, products)


def _samples(
    operator: Operator, first: Krylov | None, count: int, seed: int, number: int
) -> np.ndarray:
    """Return what each of some probes says of the trace in the complement. This waits."""
    u = operator.noise(count, f"{seed}:probe", first=number)
    dimensions = operator.size
    if first is not None:
        basis = first.basis[0]
        dimensions -= len(basis)
        for _ in range(2):  # the second time takes out what rounding left
            u = u - (u @ basis.T) @ basis
    u = u / u.norm(dim=1, keepdim=True)
    return dimensions * host((wide(u) * wide(operator.rows(u))).sum(1))
