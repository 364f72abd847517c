"""Measure the loss landscape: the risk as an oracle, lines, barriers, planes, calibration."""

from sokmerge.probe.adaptive import AdaptiveBarrier, adaptive_barrier
from sokmerge.probe.calibration import brier_score, expected_calibration_error
from sokmerge.probe.directions import Frame, filter_normalised, through
from sokmerge.probe.line import Barrier, Line, barrier, line
from sokmerge.probe.plane import Plane, plane
from sokmerge.probe.representation import (
    activations,
    disagreement,
    feature_cosine,
    linear_cka,
)
from sokmerge.probe.risk import EmpiricalRisk, RiskValue

__all__ = [
    "AdaptiveBarrier",
    "Barrier",
    "EmpiricalRisk",
    "Frame",
    "Line",
    "Plane",
    "RiskValue",
    "activations",
    "adaptive_barrier",
    "barrier",
    "brier_score",
    "disagreement",
    "expected_calibration_error",
    "feature_cosine",
    "filter_normalised",
    "line",
    "linear_cka",
    "plane",
    "through",
]
