"""NF4, bitsandbytes' 4-bit format, with or without double quantisation; bit for bit as bitsandbytes stores it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from surogate.kernels import ops, reference
from surogate.quant.stored import StoredWeight, check_finite


class Nf4Weight(StoredWeight):
    """16 levels (NF4's, or those of bitsandbytes' FP4) in blocks over the flattened weight.

    Args:
        shape: of the matrix.
        codes: uint8 (ceil(R * C / 2), 1), high nibble first.
        absmax: float32 a block, or uint8 codes of it where it is nested.
        levels: float32 (16,).
        block_size: elements of a block.
        nested: (nested_absmax, nested_levels, offset) of double quantisation, float32.
    """

    kind: ClassVar[str] = "nf4"
    format_name: ClassVar[str] = "nf4"

    def __init__(
        self,
        shape: tuple[int, int],
        codes: Tensor,
        absmax: Tensor,
        levels: Tensor,
        block_size: int,
        nested: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        nested_absmax, nested_levels, offset = nested or (None, None, None)
        tensors: dict[str, Any] = {"codes": codes, "absmax": absmax, "levels": levels}
        more = {"nested_absmax": nested_absmax, "nested_levels": nested_levels, "offset": offset}
        super().__init__(shape, tensors | more)
        self.block_size = block_size

    @override
    def numbers(self) -> tuple[int, ...]:
        return (self.block_size,)


@dataclass(frozen=True, kw_only=True)
class Nf4Format:
    """NF4 storage.

    Attributes:
        block_size: elements that share a scale: 64, 128, 256 or 512.
        double_quant: store the scales in 8 bits too, 0.127 instead of 0.5 bits a weight at block size 64.
    """

    block_size: int = 64
    double_quant: bool = True

    @property
    def name(self) -> str:
        """As users know it."""
        return f"nf4, blocks of {self.block_size}{', double quantised' if self.double_quant else ''}"

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Every shape fits; the last block may be short."""
        return None

    def quantize(self, weight_RC: Tensor) -> Nf4Weight:
        """Store a matrix; see StorageFormat."""
        check_finite(weight_RC)
        codes, absmax = ops.quantize_nf4(weight_RC, self.block_size)
        nested = None
        if self.double_quant:
            absmax, nested_absmax, offset = reference.nested_quantize(absmax)
            nested = (nested_absmax, reference.dynamic_map().to(absmax.device), offset)
        levels = reference.nf4_levels(weight_RC.device)
        return Nf4Weight((weight_RC.shape[0], weight_RC.shape[1]), codes, absmax, levels, self.block_size, nested)
