"""Which layout a format, or a weight that was read, is written in: so that it can be written as it came."""

from __future__ import annotations

from surogate.kernels.reference import nf4_levels
from surogate.quant.checkpoints.writing import BitsAndBytesLayout, CompressedTensorsLayout, FineGrainedFp8Layout, Layout
from surogate.quant.fp4 import Nvfp4Format
from surogate.quant.fp8 import Fp8Format, Fp8Weight
from surogate.quant.nf4 import Nf4Format, Nf4Weight
from surogate.quant.stored import StorageFormat, StoredWeight


def layout_of(storage: StorageFormat) -> Layout | None:
    """Return how a format is written for transformers and vLLM; None where it is not."""
    if isinstance(storage, Nf4Format):
        return BitsAndBytesLayout(storage)
    if isinstance(storage, Fp8Format):
        return FineGrainedFp8Layout(storage)
    return CompressedTensorsLayout(storage) if isinstance(storage, Nvfp4Format) else None


def layout_like(stored: StoredWeight, method: str) -> Layout | None:
    """Return how a weight of a quantised checkpoint is written again; None where it is not.

    Args:
        stored: as it was read.
        method: of its checkpoint.
    """
    if isinstance(stored, Nf4Weight) and stored.levels.equal(nf4_levels()):  # type: ignore[operator]
        nested = stored.nested_absmax is not None
        return BitsAndBytesLayout(Nf4Format(block_size=stored.block_size, double_quant=nested))
    if isinstance(stored, Fp8Weight) and method == "fp8" and stored.tile in {(64, 64), (128, 128), (256, 256)}:
        return FineGrainedFp8Layout(Fp8Format(block_size=stored.tile[0]))
    if method == "compressed-tensors" and stored.format_name == "nvfp4":
        return CompressedTensorsLayout(Nvfp4Format())
    return None
