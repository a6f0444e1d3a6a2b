"""Products in NVFP4: E2M1 operands in blocks of 16 along the axis that is summed, forward and backward.

After NVIDIA, "Pretraining Large Language Models with NVFP4", arXiv:2509.25149, section 4:

    y  = Q(x) Q2(W)^T                  Q: blocks 1 x 16, to nearest;  Q2: tiles 16 x 16, the same for W and W^T
    dX = S(g) Q2(W)                    S: blocks 1 x 16, stochastic
    dW = S(H g^T) Q(H x^T)^T           H: random Hadamard transform of 16 tokens, which cancels in the product

Every tensor has a float32 scale of its own besides, from its present amax. The signs of H are the same in all layers
and steps (the paper found no use in more), and the random numbers of S come from torch's generator, which the training
step seeds from seed, step and rank: a run resumed at a step rounds as one that was never stopped.

Deviation: tokens are filled up with zeros to a multiple of 16, in the product for dW.

Shape legend: T tokens, K in_features, N out_features; R rows, C columns of an operand, C the axis that is summed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from surogate.config.recipe import Recipe
from surogate.kernels.reference import NVFP4_BLOCK, e2m1_decode, e4m3_decode, unpack_nibbles
from surogate.quant.gemm import Gemm, Kept, exact_product
from surogate.quant.rounding import hadamard16, to_nvfp4, to_nvfp4_at_random, to_nvfp4_tiles

SIGNS = (1, -1, -1, 1, -1, 1, 1, 1, -1, 1, -1, -1, -1, 1, 1, -1)
"""Of the random Hadamard transform; drawn once."""


@cache
def _signs(device: torch.device) -> Tensor:
    return torch.tensor(SIGNS, dtype=torch.float32, device=device)


class Nvfp4Matrix(NamedTuple):
    """A matrix in NVFP4, blocks along its rows.

    Attributes:
        codes: uint8 (R, C / 2), two E2M1 a byte, the first in the low nibble.
        scale: uint8 (R, C / 16), E4M3.
        global_scale: float32 (1,); a value is `e2m1 * scale / global_scale`.
    """

    codes: Tensor
    scale: Tensor
    global_scale: Tensor

    @property
    def unscaled(self) -> Tensor:
        """`e2m1 * scale`, (R, C) float32: at most six significant bits, so exact in bfloat16."""
        steps = e4m3_decode(self.scale).repeat_interleave(NVFP4_BLOCK, 1)
        return e2m1_decode(unpack_nibbles(self.codes)) * steps


def emulated_product(a_MC: Nvfp4Matrix, b_NC: Nvfp4Matrix, dtype: torch.dtype) -> Tensor:
    """Return `a b^T` as the tensor core computes it: exact products, summed in float32, then scaled."""
    product_MN = exact_product(a_MC.unscaled, b_NC.unscaled)
    return (product_MN / (a_MC.global_scale * b_NC.global_scale)).to(dtype)


def native_product(a_MC: Nvfp4Matrix, b_NC: Nvfp4Matrix, dtype: torch.dtype) -> Tensor:
    """Return `a b^T` by torch's scaled_mm: SM100 and later. Not yet run on such a chip.

    cuBLAS wants C in whole chunks of 16 bytes (32 codes): zeros fill it up.
    """
    blockwise = [F.ScalingType.BlockWise1x16, F.ScalingType.TensorWise]
    swizzle = [F.SwizzleType.SWIZZLE_32_4_4, F.SwizzleType.NO_SWIZZLE]
    (a, scales_a), (b, scales_b) = _for_cublas(a_MC), _for_cublas(b_NC)
    return F.scaled_mm(
        *(a, b.t(), scales_a, blockwise, scales_b, blockwise), swizzle_a=swizzle, swizzle_b=swizzle, output_dtype=dtype
    )


def _for_cublas(matrix: Nvfp4Matrix) -> tuple[Tensor, list[Tensor]]:
    odd = matrix.scale.shape[1] % 2
    codes = F.pad(matrix.codes, (0, NVFP4_BLOCK // 2 * odd)).contiguous().view(torch.float4_e2m1fn_x2)
    scale = swizzled(F.pad(matrix.scale, (0, odd))).view(torch.float8_e4m3fn)
    return codes, [scale, 1.0 / matrix.global_scale]


def swizzled(scale_RS: Tensor) -> Tensor:
    """Lay out block scales as tcgen05 reads them, flat: tiles of 128 rows x 4 blocks, row r of a tile at
    `(r % 32) * 16 + (r // 32) * 4` (cuBLAS, "1D block scaling factors layout"); zeros fill up the last tiles.
    """
    R, S = scale_RS.shape
    padded = F.pad(scale_RS, (0, -S % 4, 0, -R % 128))
    tiles = padded.reshape(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1)


class Nvfp4Gemm(Gemm):
    """The products of one layer in NVFP4.

    Args:
        recipe: the fields of the nvfp4 family.
        native: by scaled_mm; otherwise emulated.
    """

    def __init__(self, recipe: Recipe, native: bool) -> None:
        super().__init__()
        self.recipe, self.native = recipe, native
        self._product = native_product if native else emulated_product

    @override
    def forward_product(self, x_TK: Tensor, weight_NK: Tensor, keeps_x: bool, is_step: bool) -> tuple[Tensor, Kept]:
        x = Nvfp4Matrix(*to_nvfp4(x_TK, self.recipe.four_over_six))
        y_TN = self._product(x, self._rounded_weight(weight_NK), x_TK.dtype)
        return y_TN, to_nvfp4(self._spread(x_TK)) if keeps_x else ()

    @override
    def backward_products(
        self, grad_TN: Tensor, weight: Callable[[], Tensor], kept: Kept, wanted: tuple[bool, bool], is_step: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        rounded = to_nvfp4_at_random if self.recipe.stochastic_rounding else to_nvfp4
        grad_x = grad_w = None
        if wanted[0]:
            weight_KN = self._rounded_weight(weight().t())
            grad_x = self._product(Nvfp4Matrix(*rounded(grad_TN)), weight_KN, grad_TN.dtype)
        if wanted[1]:
            grad_w = self._product(Nvfp4Matrix(*rounded(self._spread(grad_TN))), Nvfp4Matrix(*kept), grad_TN.dtype)
        return grad_x, grad_w

    def _rounded_weight(self, weight_RC: Tensor) -> Nvfp4Matrix:
        return Nvfp4Matrix(*(to_nvfp4_tiles if self.recipe.weight_block == "16x16" else to_nvfp4)(weight_RC))

    def _spread(self, matrix_TC: Tensor) -> Tensor:
        """Return the transpose, tokens filled up to whole blocks, with outliers spread over the tokens of a block."""
        matrix_CT = F.pad(matrix_TC.t(), (0, -matrix_TC.shape[0] % NVFP4_BLOCK))
        return hadamard16(matrix_CT, _signs(matrix_CT.device)) if self.recipe.hadamard else matrix_CT

    @override
    def extra_repr(self) -> str:
        return f"nvfp4, {'scaled_mm' if self.native else 'emulated'}"
