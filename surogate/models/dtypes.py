"""Which dtype the weights are held in on this device."""

from __future__ import annotations

import logging
from functools import cache

import torch

logger = logging.getLogger(__name__)


def has_native_bf16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware.

    A CPU without AVX512-BF16 or AMX emulates them, measured some 36 times slower than float32.
    """
    if device.type != "cpu":
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def _say_float32_once(asked: str) -> None:
    logger.warning("This CPU has no native %s, so weights and compute are float32.", asked)


def weights_dtype(requested: str | None, source: torch.dtype | None, device: torch.device) -> torch.dtype:
    """Decide the dtype of the base weights.

    Args:
        requested: `torch_dtype` of the configuration.
        source: dtype of the checkpoint, where it says one.
        device: where the model will run.

    Returns:
        The requested dtype, else the source's; float32 on a CPU that has no native 16-bit arithmetic.
    """
    dtype = getattr(torch, requested) if requested else (source or torch.float32)
    if dtype in (torch.bfloat16, torch.float16) and not has_native_bf16(device):
        _say_float32_once(str(dtype).removeprefix("torch."))
        return torch.float32
    return dtype
