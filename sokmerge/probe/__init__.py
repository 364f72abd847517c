"""Measure the loss landscape: the risk as an oracle, lines, barriers and planes."""

from sokmerge.probe.directions import Frame, filter_normalised, through
from sokmerge.probe.line import Barrier, Line, barrier, line
from sokmerge.probe.plane import Plane, plane
from sokmerge.probe.risk import EmpiricalRisk, RiskValue

__all__ = [
    "Barrier",
    "EmpiricalRisk",
    "Frame",
    "Line",
    "Plane",
    "RiskValue",
    "barrier",
    "filter_normalised",
    "line",
    "plane",
    "through",
]
