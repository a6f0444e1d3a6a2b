"""What a format is: a recipe that turns a weight into a `StoredWeight`, a frozen matrix in few bits.

A new format is a subclass of each (docs/guides/kernels.md walks through it). What is not here: the layer around a
stored weight (linear.py) and which layers of a model are stored (convert.py).

The one idea: codes are uint8 and scales float32 buffers, and both keep their dtype whatever a model is cast to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from surogate.errors import ModelError
from surogate.kernels import ops


class StoredWeight(nn.Module):
    """A frozen matrix of `shape` (R, C), of which only codes and scales exist.

    Args:
        shape: of the matrix.
        tensors: the buffers by name, in the order of `kernels.ops.KINDS[kind]`.
    """

    kind: ClassVar[str]
    """Which layout of `kernels.ops.KINDS`."""
    format_name: ClassVar[str]
    """As users know it."""

    def __init__(self, shape: tuple[int, int], tensors: dict[str, Tensor | None]) -> None:
        super().__init__()
        self.shape = shape
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return the buffers in the order of the layout."""
        return tuple(getattr(self, name.rstrip("?")) for name in ops.KINDS[self.kind].tensors)

    def numbers(self) -> tuple[int, ...]:
        """Return the whole numbers of the layout."""
        return ()

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix, (R, C), newly allocated."""
        return ops.dequantize(self.kind, self.tensors(), self.numbers(), self.shape, dtype)

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let devices change and dtypes stay: `model.to(torch.bfloat16)` would round the scales."""
        for name, buffer in self._buffers.items():
            if buffer is not None:
                moved = fn(buffer)
                self._buffers[name] = moved if moved.dtype == buffer.dtype else buffer.to(moved.device)
        return self

    @override
    def extra_repr(self) -> str:
        return f"{self.format_name}, shape={tuple(self.shape)}, {self.num_bytes} bytes"


class StorageFormat(Protocol):
    """How weights are stored."""

    @property
    def name(self) -> str:
        """As users know it, with what distinguishes it from its like."""
        ...

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Return why a matrix of this shape cannot be stored so, or None."""
        ...

    def quantize(self, weight_RC: Tensor) -> StoredWeight:
        """Store a matrix (float32, bfloat16 or float16), on its device.

        Raises:
            ModelError: it holds what is not a number.
        """
        ...


def check_finite(weight: Tensor) -> None:
    """Refuse a weight that holds NaN or infinity, which would spoil the scale of a whole block.

    Raises:
        ModelError: it does.
    """
    if not bool(weight.isfinite().all()):
        raise ModelError("it holds NaN or infinity, so it cannot be quantised; the checkpoint is broken")
