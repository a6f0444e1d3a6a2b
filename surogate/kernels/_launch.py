"""What the launches of all kernels share: options, checks, the tiles of a product, how a kernel is declared.

Not here: any format. The one idea: a launcher never asks where its tensors lie, so that tests run it on CPU tensors
through Triton's interpreter; whoever calls it (ops.py) decides by device.

Shape legend: M rows of activations, N rows and K columns of a weight.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from surogate import chips

EXACT = {"enable_fp_fusion": False}
"""Launch options where equal bits are promised: an FMA rounds once where the reference rounds twice.

Named at each launch, since the default is on up to Triton 3.9 and off from 3.10.
"""

MAX_WORDS = 2**30
"""Of 8 codes of 4 bits in one weight, 8.6e9 elements: kernels count words, and the lanes past the last, in int32."""


def flat(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor as one dimension, without a copy."""
    assert tensor.is_contiguous(), "kernels read contiguous memory"
    return tensor.view(-1)


def words(codes: Tensor, num_words: int) -> Tensor:
    """Return the first 4 * num_words bytes as int32 words: a lane reads one word, and no byte past the end."""
    assert num_words <= MAX_WORDS, f"a kernel counts words of 8 codes in int32: {num_words}"
    if num_words == 0:
        return codes.new_empty(0, dtype=torch.int32)
    assert codes.data_ptr() % 4 == 0, "codes begin at a multiple of 4 bytes"
    return flat(codes)[: 4 * num_words].view(torch.int32)


def has_native_fp8(device: torch.device) -> bool:
    """Tell whether the chip converts FP8 itself (SM89 and later); before, integer arithmetic does it."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= chips.FP8_CONVERSION


class GemmTile(NamedTuple):
    """Tile of a fused product: rows of activations, outputs, elements of the sum a step; warps and pipeline stages."""

    rows: int
    outputs: int
    depth: int
    num_warps: int = 4
    num_stages: int = 3

    @property
    def options(self) -> dict[str, Any]:
        """Launch options of this tile."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, **EXACT}


def gemm_tile(num_rows: int) -> GemmTile:
    """Choose the tile for M rows; by reasoning, not yet measured.

    Few rows are bound by reading the weight, so a tile has few outputs and many programs share the weight. A tile of 64
    rows is what wgmma and tcgen05 need. All fit the 99 KB of shared memory of SM86, SM89 and SM120.
    """
    if num_rows <= 16:
        return GemmTile(16, 32, 128)
    if num_rows <= 32:
        return GemmTile(32, 64, 64)
    return GemmTile(64, 64, 64)


def gemm_grid(num_rows: int, num_outputs: int, tile: GemmTile) -> tuple[int, int]:
    """Return the programs of a product, those that share a tile of the weight next to each other."""
    return triton.cdiv(num_rows, tile.rows), triton.cdiv(num_outputs, tile.outputs)


@triton.jit
def load_activations(x_ptr, rows, columns, num_rows, num_columns):
    """Return x[rows, columns] of a row-major matrix, zeros outside."""
    mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    return tl.load(x_ptr + rows.to(tl.int64)[:, None] * num_columns + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_product(y_ptr, sums, rows, columns, num_rows, num_columns):
    """Round the sums to y's dtype and write y[rows, columns] of a row-major matrix."""
    mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    offsets = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    tl.store(y_ptr + offsets, sums.to(y_ptr.dtype.element_ty), mask=mask)


TENSOR_CORES = {0: "HMMA|HGMMA", 90: "HGMMA", 100: "UTCHMMA"}
"""Instructions of a product with 64 rows: wgmma on SM90, tcgen05 on SM100."""


class Target(NamedTuple):
    """A kernel as the launcher compiles it, for the check without a GPU.

    Attributes:
        kernel: decorated with triton.jit.
        signature: Triton type of each argument that is no constexpr, such as `*bf16` or `i32`.
        constants: value of each constexpr argument.
        options: launch options.
        first_architecture: compute capability times ten from which on it compiles.
        expected: architecture -> regular expression that an instruction must match; 0 stands for every architecture.
        from_triton: first version that compiles it as it should be.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]
    first_architecture: int = chips.architecture(chips.KERNELS)
    expected: dict[int, str] = {}  # noqa: RUF012 -- a tuple's default is never changed
    from_triton: tuple[int, int] = (3, 6)
