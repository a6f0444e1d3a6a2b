"""Run Triton kernels on CPU tensors, in an ordinary process: `with interpreting(): launcher(tensors)`.

Triton's own interpreter is chosen by TRITON_INTERPRET when a kernel is decorated, for a whole process. Here the kernels
stay what they are, and within the context a launch is handed to the interpreter; outside, nothing has changed.

The interpreter itself is repaired for as long. Stock 3.6 to 3.9 cut float32 -> bfloat16 instead of rounding (49.7 % of
random values wrong), get 7 to 10 % of the casts to E4M3 wrong, and compute bfloat16 on the raw bits; upstream has no
plans for it (triton issues 8322 and 11584). With `_convert` and the three operators below every cast equals torch's.
What stays wrong: `tl.sum` of bfloat16, and NVFP4 in `tl.dot_scaled`. TF32 is not modelled: a float32 product is exact.

Every address that a mask lets through is checked against the tensors of the launch, so that a kernel which reads or
writes past an end fails here, where a GPU would mostly not notice.

This touches private names of Triton; numerics/test_interpreter.py is the self-test to run when its version changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter
from triton.runtime.interpreter import FunctionRewriter, GridExecutor, InterpreterBuilder, TensorHandle
from triton.runtime.jit import JITFunction

_TORCH = {
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float32: torch.float32,
    tl.float64: torch.float64,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LARGEST = {tl.float8e4nv: 448.0, tl.float8e5: 57344.0}
"""PTX `cvt.rn.satfinite` saturates here; torch would give infinity for E5M2."""

_stock_convert = interpreter._convert_float
_stock_patch = interpreter._patch_lang
_stock = {
    name: getattr(InterpreterBuilder, name)
    for name in (
        "binary_op",
        "unary_op",
        "create_dot",
        "create_masked_load",
        "create_masked_store",
        "create_atomic_rmw",
    )
}


def _convert(values: np.ndarray, source: tl.dtype, target: tl.dtype, rounding: Any) -> np.ndarray:
    """Cast as torch does; takes and returns arrays whose bits count, not their dtype."""
    if source not in _TORCH or target not in _TORCH or rounding == ir.ROUNDING_MODE.RTZ:
        return _stock_convert(values, source, target, rounding)
    bits = np.ascontiguousarray(values)
    integers = np.dtype(f"i{bits.itemsize}") if bits.itemsize > 1 else np.uint8
    floats = torch.from_numpy(bits.view(integers).copy()).view(_TORCH[source])
    if target in _LARGEST:
        floats = floats.float().clamp(-_LARGEST[target], _LARGEST[target])  # keeps NaN
    width = target.primitive_bitwidth // 8
    return floats.to(_TORCH[target]).view(_INTEGERS[width]).numpy().view(f"u{width}").reshape(values.shape)


def _is_bf16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _widen(handle: TensorHandle) -> np.ndarray:
    return _convert(handle.data, tl.bfloat16, tl.float32, None).view(np.float32)


def _bf16(values: np.ndarray) -> TensorHandle:
    return TensorHandle(_convert(values.astype(np.float32), tl.float32, tl.bfloat16, None), tl.bfloat16)


def _binary(self: InterpreterBuilder, left: TensorHandle, right: TensorHandle, op: Callable) -> TensorHandle:
    if not (_is_bf16(left) and _is_bf16(right)):
        return _stock["binary_op"](self, left, right, op)
    result = op(_widen(left), _widen(right))
    return TensorHandle(result, tl.int1) if result.dtype == np.bool_ else _bf16(result)


def _unary(self: InterpreterBuilder, value: TensorHandle, op: Callable) -> TensorHandle:
    return _bf16(op(_widen(value))) if _is_bf16(value) else _stock["unary_op"](self, value, op)


def _dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
    a, b = (TensorHandle(_widen(x), tl.float32) if _is_bf16(x) else x for x in (a, b))
    return _stock["create_dot"](self, a, b, *rest)


# ---- bounds

_bounds: list[tuple[int, int]] = []
"""First and last byte plus one of the tensors of the launch that runs."""


def _check_bounds(pointers: TensorHandle, mask: TensorHandle | None) -> None:
    addresses = pointers.data if mask is None else pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
    if addresses.size:
        first, last = int(addresses.min()), int(addresses.max()) + pointers.get_element_ty().primitive_bitwidth // 8
        assert any(start <= first and last <= end for start, end in _bounds), "reads or writes outside of its tensors"


def _load(self: InterpreterBuilder, pointers: TensorHandle, mask: TensorHandle, *rest: Any) -> TensorHandle:
    _check_bounds(pointers, mask)
    return _stock["create_masked_load"](self, pointers, mask, *rest)


def _store(
    self: InterpreterBuilder, pointers: TensorHandle, value: TensorHandle, mask: TensorHandle, *rest: Any
) -> None:
    _check_bounds(pointers, mask)
    _stock["create_masked_store"](self, pointers, value, mask, *rest)


def _atomic(self: InterpreterBuilder, op: Any, pointers: TensorHandle, value: TensorHandle, *rest: Any) -> TensorHandle:
    _check_bounds(pointers, rest[0])
    return _stock["create_atomic_rmw"](self, op, pointers, value, *rest)


# ---- launches


class _Rewriter(FunctionRewriter):
    """Rewrites a kernel for the interpreter without leaving the interpreter's names in the kernel's module."""

    def _compile_and_exec(self, transformed_ast: Any) -> Callable:
        scope = {**vars(interpreter), **self.fn.__globals__}
        defined: dict[str, Callable] = {}
        exec(compile(transformed_ast, self.filename, "exec"), scope, defined)
        return defined[self.fn.__name__]


_rewritten: dict[Callable, Callable] = {}


def _python_of(function: JITFunction) -> Callable:
    if function.fn not in _rewritten:
        _rewritten[function.fn] = _Rewriter(function.fn).rewrite_ast()
    return _rewritten[function.fn]


def _call(self: JITFunction, *args: Any, **kwargs: Any) -> Any:
    """A device function called by a kernel, or by Triton's own library (`tl.max`, `tl.zeros`)."""
    return _python_of(self)(*args, **kwargs)


def _run(self: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
    assert not warmup
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    _bounds[:] = [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors]
    GridExecutor(_python_of(self), self.arg_names, grid)(*args, **kwargs)


class _AlreadyPatched:
    def restore(self) -> None:
        pass


def _names_languages() -> None:
    """The stock patch reads from a function's globals which modules it is for."""


_languages = type(_names_languages)(_names_languages.__code__, {"tl": tl, "core": tl.core})


@contextmanager
def interpreting() -> Iterator[None]:
    """Run every Triton launch in this context on the CPU; at 4 to 6 ms for each program and inner iteration."""
    patches = [
        patch.object(interpreter, "_convert_float", _convert),
        patch.object(InterpreterBuilder, "binary_op", _binary),
        patch.object(InterpreterBuilder, "unary_op", _unary),
        patch.object(InterpreterBuilder, "create_dot", _dot),
        patch.object(InterpreterBuilder, "create_masked_load", _load),
        patch.object(InterpreterBuilder, "create_masked_store", _store),
        patch.object(InterpreterBuilder, "create_atomic_rmw", _atomic),
        # once for the context: each launch and each call of a device function would do it again, 10 ms each
        patch.object(interpreter, "_patch_lang", lambda function: _AlreadyPatched()),
        patch.object(JITFunction, "run", _run),
        patch.object(JITFunction, "__call__", _call),
    ]
    language = _stock_patch(_languages)
    try:
        # triton 3.6 converts an array of one element, which numpy 2.4 refuses
        tl.tensor.__index__ = lambda self: int(self.handle.data.squeeze())
        for active in patches:
            active.start()
        with np.errstate(all="ignore"):  # a GPU does not warn of 1 / 0 either
            yield
    finally:
        for active in reversed(patches):
            active.stop()
        language.restore()
