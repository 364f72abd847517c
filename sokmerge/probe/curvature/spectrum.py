r"""Eigenpairs, density and trace of an operator from one run."""

from __future__ import annotations

from dataclasses import dataclass

from sokmerge.probe.curvature.density import SpectralDensity, quadrature
from sokmerge.probe.curvature.eigenpairs import Eigenpairs, Which, from_krylov, krylov_for
from sokmerge.probe.curvature.operator import Operator

__all__ = ["Spectrum", "spectrum"]


@dataclass(frozen=True)
class Spectrum:
    r"""What a run of the Lanczos process says of a spectrum.

    Attributes:
        top: the extreme eigenpairs with their residuals.
        density: all eigenvalues, as weighted points.
        trace: the sum of the eigenvalues.
        trace_stderr: its standard error, over the probes; NaN if there is only one.
        products: how many products with a vector all of it took.
    """

    top: Eigenpairs
    density: SpectralDensity
    trace: float
    trace_stderr: float
    products: int


def spectrum(
    operator: Operator,
    k: int = 10,
    *,
    which: Which = "largest",
    tol: float = 1e-3,
    most: int = 200,
    steps: int = 50,
    probes: int = 4,
    seed: int = 0,
) -> Spectrum:
    r"""Return the extreme eigenpairs, the density and the trace, the products shared.

    The run that finds the eigenpairs (:func:`eigenpairs`) takes its whole Krylov space out of
    what the probes of the density see (:func:`density`), and the first step of each probe is one
    of Hutchinson's samples of the trace (:func:`trace`).

    Args:
        operator: a symmetric matrix.
        k, which, tol, most: as in :func:`eigenpairs`.
        steps, probes: as in :func:`density`.
        seed: of the start and of the probes.

    Raises:
        ArgumentError: as there.

    >>> import torch
    >>> from sokmerge.probe.curvature import of_matrix
    >>> values = torch.cat([torch.linspace(0, 1, 60), torch.tensor([20.0, 30.0])])
    >>> found = spectrum(of_matrix(torch.diag(values)), k=2, steps=10)
    >>> found.top.values.round(3), abs(found.trace - 80) < 4 * found.trace_stderr
    (array([30., 20.]), True)
    """
    first = krylov_for(operator, k, which=which, tol=tol, most=most, seed=seed)
    top = from_krylov(first, k, which, tol)
    points = quadrature(operator, first, steps=steps, probes=probes, seed=seed)
    return Spectrum(top, points, points.trace, points.trace_stderr, points.products)
