"""What only the libraries themselves can say, by importing them: `surogate env --full`.

The one module of this folder that loads torch, inside its functions.
"""

from __future__ import annotations

import importlib
from typing import Any

_IMPORTED = ("lightning", "transformers", "peft", "bitsandbytes", "triton")


def probe() -> dict[str, Any]:
    """Import torch and what stands on it, and try a product on each GPU."""
    import torch

    has_cuda = torch.cuda.is_available()
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cuda_available": has_cuda,
        "architectures": torch.cuda.get_arch_list() if has_cuda else [],
        "cudnn": torch.backends.cudnn.version() if has_cuda else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_cuda else None,
        "distributed": torch.distributed.is_available(),
        "gpus": [_try_gpu(torch, index) for index in range(torch.cuda.device_count())] if has_cuda else [],
        "imports": {name: _import(name) for name in _IMPORTED},
    }


def _try_gpu(torch: Any, index: int) -> dict[str, Any]:
    device = torch.device("cuda", index)
    tried: dict[str, Any] = {
        "index": index,
        "name": torch.cuda.get_device_name(device),
        "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
    }
    try:
        free, total = torch.cuda.mem_get_info(device)
        ones = torch.ones(64, 64, device=device, dtype=torch.bfloat16)
        works = bool(((ones @ ones) == 64).all())
        return {**tried, "free_gib": round(free / 2**30, 1), "total_gib": round(total / 2**30, 1), "works": works}
    except RuntimeError as error:
        return {**tried, "works": False, "problem": str(error).splitlines()[0]}


def _import(name: str) -> str:
    """Import a package; return `ok`, `missing` or how it failed."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        return "missing" if error.name == name else str(error)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return "ok"
