"""Weight aggregation: one network by arithmetic on corresponding weights."""

from sokmerge.merge.aggregation.average import average

__all__ = ["average"]
