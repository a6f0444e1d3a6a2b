"""Lightning Precision plugins: how GEMMs compute and how frozen weights are stored."""

from surogate.precision.base import RecipePrecision
from surogate.precision.storage import Fp8Precision, Nf4Precision, Nvfp4Precision

__all__ = ["Fp8Precision", "Nf4Precision", "Nvfp4Precision", "RecipePrecision"]
