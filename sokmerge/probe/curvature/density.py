r"""The density of an operator's eigenvalues, by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sokmerge.errors import ArgumentError
from sokmerge.probe.curvature.lanczos import Krylov, lanczos
from sokmerge.probe.curvature.operator import Operator

__all__ = ["DensityCurve", "SpectralDensity", "density"]


@dataclass(frozen=True)
class DensityCurve:
    r"""A smoothed density on a grid.

    Attributes:
        grid: eigenvalues, shape (points,).
        values: density there, shape (points,); it integrates to 1 over the line.
        stderr: standard error over the probes; NaN if there is only one.
        width: standard deviation of the Gaussian that smooths.
    """

    grid: np.ndarray
    values: np.ndarray
    stderr: np.ndarray
    width: float


@dataclass(frozen=True)
class SpectralDensity:
    r"""The distribution of the n eigenvalues, as weighted points.

    The share of eigenvalues below x is estimated by the weight of the nodes below x, the average
    over the probes, plus 1/n for each deflated value below x.

    Attributes:
        nodes: eigenvalues seen by each probe, shape (p, m).
        weights: the share of the spectrum each stands for, shape (p, m); each row sums to
            (n - d) / n.
        deflated: eigenvalues that were taken out before, shape (d,), each with the weight 1/n.
        size: n.
        products: how many products with a vector it took.
    """

    nodes: np.ndarray
    weights: np.ndarray
    deflated: np.ndarray
    size: int
    products: int

    def curve(
        self, points: int = 400, *, grid: np.ndarray | None = None, width: float | None = None
    ) -> DensityCurve:
        r"""Return the density smoothed with a Gaussian,

        .. math:: \rho(x) = \frac1p\sum_{l=1}^p\sum_j w_{lj}\,\mathcal N(x;\lambda_{lj},\sigma^2)
                  + \frac1n\sum_{i=1}^d \mathcal N(x;\mu_i,\sigma^2)

        Args:
            points: size of the grid, which reaches three widths beyond the outermost values.
            grid: where to evaluate, instead.
            width: :math:`\sigma`, by default a hundredth of the range of the values; if they
                are all equal, a hundredth of the value.

        Raises:
            ArgumentError: the width is not above zero.
        """
        seen = np.concatenate([self.nodes.ravel(), self.deflated])
        low, high = seen.min(), seen.max()
        if width is None:
            scale = max(abs(low), abs(high)) or 1.0
            # A spectrum of one value has no range, up to rounding.
            width = (high - low if high - low > 1e-6 * scale else scale) / 100
        if not width > 0:
            raise ArgumentError("width", found=f"{width}", expected="a number above zero")
        if grid is None:
            grid = np.linspace(low - 3 * width, high + 3 * width, points)
        rows = np.stack(
            [
                (_bells(grid, nodes, width) @ weights)
                for nodes, weights in zip(self.nodes, self.weights, strict=True)
            ]
        )
        values = rows.mean(0) + _bells(grid, self.deflated, width).sum(1) / self.size
        return DensityCurve(np.asarray(grid), values, stderr_of(rows), float(width))

    @property
    def trace(self) -> float:
        """The sum of the eigenvalues, as these points tell it."""
        return float(self._traces.mean() + self.deflated.sum())

    @property
    def trace_stderr(self) -> float:
        """The standard error of the trace; NaN if there is only one probe."""
        return float(stderr_of(self._traces))

    @property
    def _traces(self) -> np.ndarray:
        return self.size * (self.nodes * self.weights).sum(1)


def density(
    operator: Operator, *, steps: int = 50, probes: int = 1, deflation: int = 0, seed: int = 0
) -> SpectralDensity:
    r"""Return the density of the eigenvalues by stochastic Lanczos quadrature.

    For u uniform on the unit sphere, :math:`\mathbb E\,u^\top f(A)u=\frac1n\operatorname{tr}f(A)`.
    A Lanczos process of m steps from u gives the Gauss quadrature of :math:`u^\top f(A)u`: its
    nodes are the eigenvalues of T, its weights the squares of the first entries of their
    eigenvectors. It is exact for polynomials of degree 2m - 1 (Ubaru et al. 2017; for networks
    Ghorbani et al. 2019). One probe weighs an isolated eigenvalue with a chi-squared error of the
    size of its weight; more probes average it.

    With a deflation, a first run of that many steps takes its Krylov space out: the d Ritz values
    count 1/n each, and the probes stay in the complement. What couples the two has rank 2, so no
    share of the spectrum is moved by more than 2/n. Isolated eigenvalues then have their exact
    weight, and the trace is far more precise (as in Meyer et al. 2021).

    Args:
        operator: a symmetric matrix.
        steps: Lanczos steps of each probe, m.
        probes: number of random starts, p. It takes ``deflation + steps * probes`` products.
        deflation: steps of the first run, d.
        seed: of the starts.

    Raises:
        ArgumentError: a number of steps or probes is too small, or a product is not finite.

    >>> import torch
    >>> from sokmerge.probe.curvature import of_matrix
    >>> found = density(of_matrix(torch.diag(torch.arange(10.0))), steps=10, deflation=3)
    >>> round(float(found.weights.sum()), 6), found.deflated.shape
    (0.7, (3,))
    """
    first = take_out(operator, deflation, seed)
    return quadrature(operator, first, steps=steps, probes=probes, seed=seed)


def quadrature(
    operator: Operator, first: Krylov | None, *, steps: int, probes: int, seed: int
) -> SpectralDensity:
    """Return the density, after the Krylov space of a first run has been taken out."""
    for name, number in (("steps", steps), ("probes", probes)):
        if number < 1:
            raise ArgumentError(name, found=f"{number}", expected="at least one")
    without = None if first is None else first.basis[0]
    deflated = np.empty(0) if first is None else first.ritz()[0][0]
    size, before = operator.size, 0 if first is None else first.products
    if len(deflated) == size:  # all is known
        nothing = np.empty((probes, 0))
        return SpectralDensity(nothing, nothing, deflated, size, before)
    runs = [
        lanczos(operator, group, steps, key=f"{seed}:density", without=without)
        for group in operator.noise(probes, f"{seed}:probe").split(operator.together)
    ]
    pairs = [run.ritz() for run in runs]
    nodes = np.concatenate([values for values, _ in pairs])
    weights = np.concatenate([shares[:, 0] ** 2 for _, shares in pairs])
    share = (size - len(deflated)) / size
    products = before + sum(run.products for run in runs)
    return SpectralDensity(nodes, share * weights, deflated, size, products)


def take_out(operator: Operator, deflation: int, seed: int) -> Krylov | None:
    """Return the Krylov space of as many steps, which is to be taken out; None for no step."""
    if deflation < 0:
        raise ArgumentError("deflation", found=f"{deflation}", expected="0 or more steps")
    if deflation == 0:
        return None
    start = operator.noise(1, f"{seed}:start")
    return lanczos(operator, start, deflation, key=f"{seed}:deflation")


def stderr_of(rows: np.ndarray) -> np.ndarray:
    """Return the standard error over the first dimension; NaN for a single row."""
    if len(rows) < 2:
        return np.full(rows.shape[1:], math.nan)
    return rows.std(0, ddof=1) / math.sqrt(len(rows))


def _bells(grid: np.ndarray, centres: np.ndarray, width: float) -> np.ndarray:
    """Return the Gaussian of each centre at each point of a grid, (points, centres)."""
    away = (np.asarray(grid)[:, None] - centres[None]) / width
    return np.exp(-(away**2) / 2) / (width * math.sqrt(2 * math.pi))
