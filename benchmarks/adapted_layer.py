"""Forward and backward of a stored layer with a LoRA adapter: the update added in place, against PEFT's own forward.

    python benchmarks/adapted_layer.py [--shapes 512x576x1536 ...] [--dtypes float32 bfloat16] [--repeats 30]

A shape is tokens x in_features x out_features. Of two dtypes the first is that of the base and the input, the second
the adapter's. Each figure is the best of the repeats; both forwards take turns in the same process. Above 1 the update
in place is faster.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from surogate.quant.adapted import add_updates_in_place_
from surogate.quant.fp4 import Nvfp4Format
from surogate.quant.fp8 import Fp8Format
from surogate.quant.linear import FrozenQuantLinear
from surogate.quant.nf4 import Nf4Format
from surogate.quant.stored import StorageFormat

FORMATS: list[StorageFormat] = [Nf4Format(), Fp8Format(), Nvfp4Format()]
SHAPES = ["512x576x1536", "512x1536x576", "2048x1024x3072"]
RANK = 16


def adapted(storage: StorageFormat, shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype]) -> nn.Module:
    """Return a layer of PEFT's over a stored weight; dtypes are those of the base and of the adapter."""
    _, num_in, num_out = shape
    model: Any = nn.ModuleDict({"proj": nn.Linear(num_in, num_out, bias=False, dtype=dtypes[0])})
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["proj"], init_lora_weights=False)
    inject_adapter_in_model(config, model)
    weight = model["proj"].base_layer.weight.detach()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtypes[1])
    model["proj"].base_layer = FrozenQuantLinear(storage.quantize(weight), None, dtypes[0])
    return model


def in_turns(calls: list[Callable[[], Any]], repeats: int, device: torch.device) -> list[float]:
    """Return the least time of each call in seconds, the device waited for."""
    best = [float("inf")] * len(calls)
    for turn in range(repeats + 2):
        for index in range(len(calls)) if turn % 2 else reversed(range(len(calls))):
            _wait(device)
            begin = time.perf_counter()
            calls[index]()
            _wait(device)
            if turn >= 2:  # the first two warm up
                best[index] = min(best[index], time.perf_counter() - begin)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def step(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    """Return a call of forward and backward."""

    def call() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).backward(grad)

    return call


def main() -> None:
    """Print a table row for each shape, format and pair of dtypes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of the base")
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, { ({p: importlib.metadata.version(p) for p in ('torch', 'peft')}) }\n")
    print("| tokens x in x out | base, adapter | format | PEFT, ms | in place, ms | PEFT / in place |\n|" + "---|" * 6)
    dtypes = [getattr(torch, dtype) for dtype in options.dtypes]
    pairs = [(base, adapter) for base in dtypes for adapter in dict.fromkeys((base, torch.float32))]
    for text in options.shapes:
        num_tokens, num_in, num_out = (int(part) for part in text.split("x"))
        for pair in pairs:
            x = torch.randn(1, num_tokens, num_in, device=device, dtype=pair[0], requires_grad=True)
            grad = torch.randn(1, num_tokens, num_out, device=device, dtype=pair[0])
            for storage in FORMATS:
                models = [adapted(storage, (num_tokens, num_in, num_out), pair).to(device) for _ in range(2)]
                add_updates_in_place_(models[1])
                calls = [step(model["proj"], x, grad) for model in models]  # type: ignore[index]
                theirs, ours = in_turns(calls, options.repeats, device)
                of = ", ".join(str(dtype).removeprefix("torch.") for dtype in pair)
                row = f"| {text} | {of} | {storage.name.split(',')[0]} | {1e3 * theirs:.2f} | {1e3 * ours:.2f} |"
                print(f"{row} {theirs / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
