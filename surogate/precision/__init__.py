"""Lightning Precision plugins: how GEMMs compute and how frozen weights are stored."""

from surogate.precision.base import RecipePrecision

__all__ = ["RecipePrecision"]
