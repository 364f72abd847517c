"""Measure mode connectivity: curves, bands, layers, halves of networks, and many networks."""

from sokmerge.probe.connectivity.autoneb import Band, autoneb, nudge
from sokmerge.probe.connectivity.curves import Curve, Profile, along, fit_curve
from sokmerge.probe.connectivity.geodesic import Spokes, geodesic, spokes, via
from sokmerge.probe.connectivity.layerwise import (
    FeatureConnectivity,
    LayerBarriers,
    Stitches,
    feature_connectivity,
    layer_barriers,
    stitching,
)

__all__ = [
    "Band",
    "Curve",
    "FeatureConnectivity",
    "LayerBarriers",
    "Profile",
    "Spokes",
    "Stitches",
    "along",
    "autoneb",
    "feature_connectivity",
    "fit_curve",
    "geodesic",
    "layer_barriers",
    "nudge",
    "spokes",
    "stitching",
    "via",
]
