"""FP4: E2M1 codes in blocks of a row; NVFP4 (16, E4M3 scales, a float32 scale) and MXFP4 (32, powers of two)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from surogate.kernels import ops, reference
from surogate.quant.stored import StoredWeight, check_finite


class Fp4Weight(StoredWeight):
    """E2M1 codes and their scales.

    Args:
        codes: uint8 (R, C / 2), low nibble first.
        scale: uint8; NVFP4 (R, C / 16) as E4M3, MXFP4 (R, C / 32) as E8M0.
        tensor_scale: float32 (1,) of NVFP4; None makes it MXFP4.
        divides: block scales are divided by the tensor scale (compressed-tensors' global scale), not multiplied
            (ModelOpt's weight_scale_2).
    """

    kind: ClassVar[str] = "fp4"

    def __init__(self, codes: Tensor, scale: Tensor, tensor_scale: Tensor | None = None, divides: bool = True) -> None:
        shape = (codes.shape[0], 2 * codes.shape[1])
        super().__init__(shape, {"codes": codes, "scale": scale, "tensor_scale": tensor_scale})
        self.divides = divides

    @property
    def format_name(self) -> str:  # type: ignore[override]
        """Which of the two."""
        return "mxfp4" if self.tensor_scale is None else "nvfp4"

    @override
    def numbers(self) -> tuple[int, ...]:
        return (int(self.divides),)


@dataclass(frozen=True, kw_only=True)
class Nvfp4Format:
    """NVFP4 storage.

    Attributes:
        four_over_six: let each block end at 4 or at 6, whichever errs less.
    """

    four_over_six: bool = True

    @property
    def name(self) -> str:
        """As users know it."""
        return f"nvfp4{', four over six' if self.four_over_six else ''}"

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """A row must be made of whole blocks."""
        if shape[1] % reference.NVFP4_BLOCK:
            return f"{shape[1]} columns are not a multiple of {reference.NVFP4_BLOCK}"
        return None

    def quantize(self, weight_RC: Tensor, global_scale: Tensor | None = None) -> Fp4Weight:
        """Store a matrix; see StorageFormat. A tensor scale may be given that is at most the matrix's own."""
        check_finite(weight_RC)
        if global_scale is None:
            global_scale = reference.nvfp4_global_scale(weight_RC, self.four_over_six)
        return Fp4Weight(*ops.quantize_nvfp4(weight_RC, global_scale, self.four_over_six), global_scale)
