"""The networks and data on which the book computes: small, seeded, and shipped with it."""

from sokmerge.testbed.devices import device

__all__ = ["device"]
