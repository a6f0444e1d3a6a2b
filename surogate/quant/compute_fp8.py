"""Products in FP8 with a scale a tensor: activations and weights in E4M3, gradients in E5M2 or E4M3.

A value v is stored as round(v * scale) and read as code / scale. With delayed scaling the scale of a step comes from
the largest magnitudes ("amax") of the steps before it (Micikevicius et al., "FP8 Formats for Deep Learning",
arXiv:2209.05433, section 3; NVIDIA Transformer Engine, pytorch/fp8.py, DelayedScaling):

    scale = largest code / amax / 2 ** margin,   amax = max or most recent of the last `amax_history` steps

Deviations from Transformer Engine, each for equal numbers however a step is cut:
- histories roll once an optimizer step, not once a forward pass. Within the step magnitudes gather by maximum, so that
  micro-batches and the second forward pass of activation checkpointing meet the same scales;
- before a tensor's first roll it is scaled by its own amax instead of by 1, where small gradients would round to 0 (so
  that the first step, and it alone, depends on how it is cut);
- a magnitude that is not finite leaves no trace in the history, instead of stopping its scale for the whole of it.

What is not here: when to roll, and among which ranks (precision/base.py).

Shape legend: L layers, H steps of history, T tokens, K in_features, N out_features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from surogate.config.recipe import Recipe
from surogate.errors import CheckpointError
from surogate.kernels.reference_rounding import FP8_MAX
from surogate.quant.gemm import Gemm, Kept, exact_product
from surogate.quant.rounding import largest_magnitude, to_fp8

X, WEIGHT, GRADIENT = range(3)
"""The operands of a layer, in the order in which their scales stand."""

DTYPES = {"float8_e4m3": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


class Fp8Scaling:
    """The scales of all layers, and the histories that they come from.

    Not buffers of the model: DDP would give every rank those of rank 0, and a model's state dict would no longer be
    that of the plain model.

    Args:
        names: of the layers.
        recipe: the fields of the float8 family.
        device: of the model.
    """

    def __init__(self, names: list[str], recipe: Recipe, device: torch.device) -> None:
        self.names, self.recipe = names, recipe
        dtypes = (torch.float8_e4m3fn, torch.float8_e4m3fn, DTYPES[recipe.gradient_dtype])
        largest = [FP8_MAX[dtype] / 2**recipe.margin for dtype in dtypes]
        self._largest = torch.tensor(largest, dtype=torch.float32, device=device)
        self.seen_L3 = torch.zeros(len(names), 3, device=device)
        """Largest magnitudes of this step so far."""
        self.history_HL3 = torch.zeros(recipe.amax_history, len(names), 3, device=device)
        """Those of the last steps, the newest first."""
        self.scale_L3 = torch.zeros(len(names), 3, device=device)
        """Scales of this step; 0 where none is known yet."""

    @torch.no_grad()
    def scale_for(self, tensor: Tensor, layer: int, operand: int, is_step: bool) -> Tensor:
        """Return a tensor's scale, float32 scalar, and note its magnitude where it is part of a training step."""
        magnitude = largest_magnitude(tensor)
        if is_step:
            seen = self.seen_L3[layer, operand]
            torch.maximum(seen, magnitude, out=seen)
        known, own = self.scale_L3[layer, operand], _scale(magnitude, self._largest[operand])
        return torch.where(known > 0, known, torch.where(own > 0, own, 1.0))

    @torch.no_grad()
    def roll_(self, max_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """End an optimizer step: move its magnitudes into the histories, and take the next scales from them.

        Args:
            max_over_ranks: returns the largest value that any rank has, element by element.
        """
        seen = max_over_ranks(self.seen_L3.clone())
        self.seen_L3.zero_()
        if self.recipe.scaling == "current":
            return
        seen = torch.where(seen.isfinite(), seen, 0.0)
        self.history_HL3.copy_(torch.cat([seen[None], self.history_HL3[:-1]]))
        magnitude = self.history_HL3.amax(0) if self.recipe.amax_compute_algo == "max" else seen
        scale = _scale(magnitude, self._largest)
        self.scale_L3.copy_(torch.where(scale > 0, scale, self.scale_L3))

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on."""
        return {"names": self.names, "history": self.history_HL3, "scale": self.scale_L3}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the histories of a checkpoint.

        Raises:
            CheckpointError: it is of other layers.
        """
        if state["names"] != self.names or state["history"].shape != self.history_HL3.shape:
            raise CheckpointError(
                f"The checkpoint holds FP8 scales of {len(state['names'])} layers, and this run computes "
                f"{len(self.names)} layers in FP8 or names them otherwise. Start afresh in another output_dir."
            )
        self.history_HL3.copy_(state["history"])
        self.scale_L3.copy_(state["scale"])


def _scale(magnitude: Tensor, largest: Tensor) -> Tensor:
    """Return `largest / magnitude`, float32; 0 where there is no magnitude to go by."""
    usable = (magnitude > 0) & magnitude.isfinite()
    scale = largest / torch.where(usable, magnitude, 1.0)
    return torch.where(usable, scale.clamp(max=torch.finfo(torch.float32).max), 0.0)


class Fp8Matrix(NamedTuple):
    """A matrix in FP8.

    Attributes:
        codes: float8_e4m3fn or float8_e5m2.
        inverse: float32 scalar; a value is code * inverse.
    """

    codes: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, matrix: Tensor, scale: Tensor, dtype: torch.dtype) -> Fp8Matrix:
        """Round a matrix, saturating at the largest code."""
        return cls(to_fp8(matrix, scale, dtype), 1.0 / scale)

    @property
    def transposed(self) -> Fp8Matrix:
        """The transpose, a view."""
        return Fp8Matrix(self.codes.t(), self.inverse)


def emulated_product(a_MK: Fp8Matrix, b_NK: Fp8Matrix, dtype: torch.dtype) -> Tensor:
    """Return `a b^T` as the tensor core computes it: exact products of codes, summed in float32, then scaled."""
    return (exact_product(a_MK.codes, b_NK.codes) * (a_MK.inverse * b_NK.inverse)).to(dtype)


def native_product(a_MK: Fp8Matrix, b_NK: Fp8Matrix, dtype: torch.dtype, fast_accumulation: bool = False) -> Tensor:
    """Return `a b^T` by torch's scaled_mm: SM89 and later, and the CPU.

    cuBLAS wants both operands with K next to each other, and K a multiple of 16: zeros fill it up.

    Args:
        a_MK: one of the two in E4M3, or both.
        b_NK: N a multiple of 16.
        dtype: of the result.
        fast_accumulation: let Hopper sum in fewer bits, as Transformer Engine does in the forward pass alone.
    """
    a, b = _with_whole_chunks(a_MK.codes), _with_whole_chunks(b_NK.codes)
    tensorwise = F.ScalingType.TensorWise
    return F.scaled_mm(
        *(a, b.t(), a_MK.inverse, tensorwise, b_NK.inverse, tensorwise),
        output_dtype=dtype,
        use_fast_accum=fast_accumulation,
    )


def _with_whole_chunks(codes: Tensor) -> Tensor:
    missing = -codes.shape[1] % 16
    if missing == 0:
        return codes.contiguous()
    return F.pad(codes.view(torch.uint8), (0, missing)).view(codes.dtype)


class Fp8Gemm(Gemm):
    """The products of one layer in FP8.

    Args:
        scaling: the scales of all layers.
        layer: which of them is this one.
        native: by scaled_mm; otherwise emulated.
    """

    def __init__(self, scaling: Fp8Scaling, layer: int, native: bool) -> None:
        super().__init__()
        self.scaling, self.layer, self.native = scaling, layer, native
        self.gradient_dtype = DTYPES[scaling.recipe.gradient_dtype]

    @override
    def forward_product(self, x_TK: Tensor, weight_NK: Tensor, keeps_x: bool, is_step: bool) -> tuple[Tensor, Kept]:
        x = self._rounded(x_TK, X, torch.float8_e4m3fn, is_step)
        weight_scale = self.scaling.scale_for(weight_NK, self.layer, WEIGHT, is_step)
        weight = Fp8Matrix.of(weight_NK, weight_scale, torch.float8_e4m3fn)
        return self._product(x, weight, x_TK.dtype, is_forward=True), (weight_scale, *(x if keeps_x else ()))

    @override
    def backward_products(
        self, grad_TN: Tensor, weight: Callable[[], Tensor], kept: Kept, wanted: tuple[bool, bool], is_step: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        weight_scale, *x = kept
        grad = self._rounded(grad_TN, GRADIENT, self.gradient_dtype, is_step)
        grad_x = grad_w = None
        if wanted[0]:
            rounded = Fp8Matrix.of(weight(), weight_scale, torch.float8_e4m3fn)
            grad_x = self._product(grad, rounded.transposed, grad_TN.dtype)
        if wanted[1]:
            grad_w = self._product(grad.transposed, Fp8Matrix(*x).transposed, grad_TN.dtype)
        return grad_x, grad_w

    def _rounded(self, matrix: Tensor, operand: int, dtype: torch.dtype, is_step: bool) -> Fp8Matrix:
        return Fp8Matrix.of(matrix, self.scaling.scale_for(matrix, self.layer, operand, is_step), dtype)

    def _product(self, a: Fp8Matrix, b: Fp8Matrix, dtype: torch.dtype, is_forward: bool = False) -> Tensor:
        return native_product(a, b, dtype, is_forward) if self.native else emulated_product(a, b, dtype)

    @override
    def extra_repr(self) -> str:
        return f"float8_e4m3, gradients {self.gradient_dtype}, {'scaled_mm' if self.native else 'emulated'}"
