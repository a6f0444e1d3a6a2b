"""FP8: E4M3 codes with one float32 scale a tile, the field's fine-grained FP8 at 128 x 128."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from surogate.kernels import ops
from surogate.quant.stored import StoredWeight, check_finite


class Fp8Weight(StoredWeight):
    """E4M3 codes and a scale for each tile.

    Args:
        codes: uint8 (R, C).
        scale: float32 (ceil(R / rows), ceil(C / columns)); a value is code * scale.
        tile: rows and columns that share a scale; (1, C) is a scale a row, (R, C) one for the tensor.
    """

    kind: ClassVar[str] = "fp8"
    format_name: ClassVar[str] = "fp8"

    def __init__(self, codes: Tensor, scale: Tensor, tile: tuple[int, int]) -> None:
        super().__init__((codes.shape[0], codes.shape[1]), {"codes": codes, "scale": scale})
        self.tile = tile

    @override
    def numbers(self) -> tuple[int, ...]:
        return self.tile


@dataclass(frozen=True, kw_only=True)
class Fp8Format:
    """FP8 storage in square tiles.

    Attributes:
        block_size: rows and columns of a tile: 64, 128 or 256.
    """

    block_size: int = 128

    @property
    def name(self) -> str:
        """As users know it."""
        return f"fp8, tiles of {self.block_size} x {self.block_size}"

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Every shape fits; tiles at the edges are smaller."""
        return None

    def quantize(self, weight_RC: Tensor) -> Fp8Weight:
        """Store a matrix; see StorageFormat."""
        check_finite(weight_RC)
        tile = (self.block_size, self.block_size)
        return Fp8Weight(*ops.quantize_fp8(weight_RC, tile), tile)
