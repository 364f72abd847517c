"""Measure curvature: the spectrum of the Hessian and its relatives, by products alone."""

from sokmerge.probe.curvature.density import DensityCurve, SpectralDensity, density
from sokmerge.probe.curvature.eigenpairs import Eigenpairs, eigenpairs
from sokmerge.probe.curvature.lanczos import Krylov, lanczos
from sokmerge.probe.curvature.operator import Layout, Operator, of_matrix
from sokmerge.probe.curvature.products import empirical_fisher, fisher, gauss_newton, hessian
from sokmerge.probe.curvature.spectrum import Spectrum, spectrum
from sokmerge.probe.curvature.trace import Trace, trace

__all__ = [
    "DensityCurve",
    "Eigenpairs",
    "Krylov",
    "Layout",
    "Operator",
    "SpectralDensity",
    "Spectrum",
    "Trace",
    "density",
    "eigenpairs",
    "empirical_fisher",
    "fisher",
    "gauss_newton",
    "hessian",
    "lanczos",
    "of_matrix",
    "spectrum",
    "trace",
]
