"""Dequantisation and products with stored weights: bytes a second and times, against copying, torch and bitsandbytes.

    python benchmarks/kernels.py [--shapes 4096x4096 12288x4096 4096x12288] [--dtype bfloat16] [--repeats 20]

On a GPU: each format's dequantisation as a share of what a plain copy of the same bytes reaches; the fused product
against dequantising and the vendor's GEMM, by number of tokens (the figures for chips.FUSED_MAX_TOKENS); forward and
backward of a frozen layer against a bfloat16 one at 4,096 tokens; and an FP8 GEMM that quantises its activations.
On a CPU: dequantisation against plain torch (the reference) and bitsandbytes' C++. Each figure is the best of the
repeats; the peers take turns in the same process.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from surogate.kernels import ops, products, reference
from surogate.quant.fp4 import Nvfp4Format
from surogate.quant.fp8 import Fp8Format
from surogate.quant.linear import frozen_linear
from surogate.quant.nf4 import Nf4Format
from surogate.quant.stored import StorageFormat, StoredWeight

FORMATS: list[StorageFormat] = [Nf4Format(double_quant=False), Nf4Format(), Fp8Format(), Nvfp4Format()]
TOKENS = [1, 8, 16, 32, 64, 128, 256, 512]
STEP_TOKENS = 4096


def best_seconds(call: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Return the least time of one call, the device waited for."""
    call()
    best = float("inf")
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            best = min(best, start.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - begin)
    return best


def fill(stored: StoredWeight, out: torch.Tensor) -> torch.Tensor:
    """Dequantise into memory that is there."""
    return ops.dequantize_(out, stored.kind, stored.tensors(), stored.numbers())


def plain_torch(stored: StoredWeight) -> torch.Tensor:
    """Dequantise as one writes it down first."""
    t, n = stored.tensors(), stored.numbers()
    if stored.kind == "nf4":
        return reference.nf4_dequantize(t[0], ops.nf4_absmax(t), t[2], n[0], stored.shape)
    if stored.kind == "fp8":
        return reference.fp8_dequantize(t[0], t[1], (n[0], n[1]))
    return reference.nvfp4_dequantize(t[0], t[1], t[2], bool(n[0]))


def bitsandbytes_call(weight: torch.Tensor, double_quant: bool) -> Callable[[], Any] | None:
    """Return a call of bitsandbytes' own dequantisation; None where it is not installed."""
    try:
        from bitsandbytes import functional
    except ImportError:
        return None
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double_quant)
    return lambda: functional.dequantize_4bit(codes, state)


def dequantisation(shapes: list[tuple[int, int]], dtype: torch.dtype, repeats: int, device: torch.device) -> None:
    """Print how fast each format is read."""
    print("| weight | format | ms | GB/s | of a copy | plain torch / ours | bitsandbytes / ours |\n|" + "---|" * 7)
    for shape in shapes:
        weight = torch.randn(shape, device=device, dtype=dtype)
        out = torch.empty_like(weight)
        copy = weight.clone()
        copied = 2 * weight.nbytes / best_seconds(lambda o=out, c=copy: o.copy_(c), repeats, device)
        for storage in FORMATS:
            stored = storage.quantize(weight)
            seconds = best_seconds(lambda s=stored, o=out: fill(s, o), repeats, device)
            plain = best_seconds(lambda s=stored: plain_torch(s).to(dtype), max(1, repeats // 4), device)
            theirs = None
            if isinstance(storage, Nf4Format) and (call := bitsandbytes_call(weight, storage.double_quant)):
                theirs = best_seconds(call, repeats, device)
            rate = (stored.num_bytes + out.nbytes) / seconds
            peer = f"{theirs / seconds:.2f}" if theirs else "-"
            print(
                f"| {shape[0]} x {shape[1]} | {storage.name} | {1e3 * seconds:.3f} | {rate / 1e9:.1f} | "
                f"{rate / copied:.0%} | {plain / seconds:.2f} | {peer} |"
            )


def fused_products(shapes: list[tuple[int, int]], dtype: torch.dtype, repeats: int, device: torch.device) -> None:
    """Print the time of dequantising and multiplying over that of the fused kernel: above 1 the fused one is faster."""
    print(
        "\n| weight | format | pass | "
        + " | ".join(f"{m} tokens" for m in TOKENS)
        + " |\n|"
        + "---|" * (3 + len(TOKENS))
    )
    for shape in shapes:
        weight = torch.randn(shape, device=device, dtype=dtype)
        for storage in FORMATS[1:]:
            stored = storage.quantize(weight)
            layout = (stored.kind, stored.shape, stored.tensors(), stored.numbers())
            for over_columns in (True, False):
                ratios = []
                for num_tokens in TOKENS:
                    x = torch.randn(num_tokens, shape[1] if over_columns else shape[0], device=device, dtype=dtype)
                    dense = products._weight(x, *layout)
                    by_gemm = best_seconds(
                        lambda x=x, s=stored, w=dense, o=over_columns: (fill(s, w), x @ (w.T if o else w)),
                        repeats,
                        device,
                    )
                    fused = best_seconds(
                        lambda x=x, a=layout, o=over_columns: products._fused(x, *a, over_columns=o), repeats, device
                    )
                    ratios.append(f"{by_gemm / fused:.2f}")
                print(
                    f"| {shape[0]} x {shape[1]} | {storage.name} | {'x W^T' if over_columns else 'g W'} | "
                    + " | ".join(ratios)
                    + " |"
                )


def layer_step(shapes: list[tuple[int, int]], dtype: torch.dtype, repeats: int, device: torch.device) -> None:
    """Print forward and backward of a frozen layer over those of a dense frozen layer."""
    print(
        f"\n| weight | format | ms, {STEP_TOKENS} tokens | over {str(dtype).removeprefix('torch.')} |\n|" + "---|" * 4
    )
    for shape in shapes:
        weight = torch.randn(shape, device=device, dtype=dtype)
        x = torch.randn(STEP_TOKENS, shape[1], device=device, dtype=dtype, requires_grad=True)
        grad = torch.randn(STEP_TOKENS, shape[0], device=device, dtype=dtype)
        dense = best_seconds(lambda x=x, w=weight, g=grad: F.linear(x, w).backward(g), repeats, device)
        for storage in FORMATS[1:]:
            stored = storage.quantize(weight)
            seconds = best_seconds(lambda x=x, s=stored, g=grad: frozen_linear(x, s).backward(g), repeats, device)
            print(f"| {shape[0]} x {shape[1]} | {storage.name} | {1e3 * seconds:.2f} | {seconds / dense:.2f} |")


def fp8_gemm(shapes: list[tuple[int, int]], repeats: int, device: torch.device) -> None:
    """Print an FP8 product with activations quantised on the fly against a bfloat16 one."""
    if torch.cuda.get_device_capability(device) < (8, 9):
        return
    print(f"\n| weight | bfloat16 / FP8, {STEP_TOKENS} tokens |\n|---|---|")
    one = torch.ones((), device=device)
    for N, K in shapes:
        x, w = (torch.randn(rows, K, device=device, dtype=torch.bfloat16) for rows in (STEP_TOKENS, N))
        w8 = w.to(torch.float8_e4m3fn)

        def in_fp8(x: torch.Tensor = x, w8: torch.Tensor = w8) -> torch.Tensor:
            scale = 448.0 / x.abs().amax().float()
            x8 = (x * scale).to(torch.float8_e4m3fn)
            return torch._scaled_mm(x8, w8.T, scale_a=1 / scale, scale_b=one, out_dtype=torch.bfloat16)

        dense = best_seconds(lambda x=x, w=w: F.linear(x, w), repeats, device)
        print(f"| {N} x {K} | {dense / best_seconds(in_fp8, repeats, device):.2f} |")


def main() -> None:
    """Measure what this machine can."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["4096x4096", "12288x4096", "4096x12288"])
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes]
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = {p: importlib.metadata.version(p) for p in ("torch", "triton") if _is_installed(p)}
    print(f"{name}, {dtype}, {versions}\n")
    dequantisation(shapes, dtype, options.repeats, device)  # type: ignore[arg-type]
    if device.type == "cuda":
        fused_products(shapes, dtype, options.repeats, device)  # type: ignore[arg-type]
        layer_step(shapes, dtype, options.repeats, device)  # type: ignore[arg-type]
        fp8_gemm(shapes, options.repeats, device)  # type: ignore[arg-type]


def _is_installed(package: str) -> bool:
    return any(name.lower() == package for name in (d.metadata["Name"] for d in importlib.metadata.distributions()))


if __name__ == "__main__":
    main()
