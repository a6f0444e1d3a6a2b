"""What each generation of GPUs can do: the thresholds that kernels, recipes and `surogate env` share.

Plain numbers, without torch. What is not here: asking a device what it is (whoever uses the number), and what follows
from it (quant/compute.py, kernels/, machine/abilities.py).
"""

from __future__ import annotations

Capability = tuple[int, int]
"""Compute capability as NVIDIA counts it: (9, 0) is an H100."""

KERNELS: Capability = (8, 0)
"""First for which the Triton kernels are compiled and tested."""

FLASH_ATTENTION: Capability = (8, 0)
"""First on which torch's variable-length attention runs."""

FP8_CONVERSION: Capability = (8, 9)
"""First that converts FP8 itself; before, integer arithmetic does it."""

PRODUCTS: dict[str, Capability] = {"float8": (8, 9), "nvfp4": (10, 0)}
"""First whose tensor cores multiply the numbers of a family of recipes."""

PRODUCT_CHIPS = {"float8": "Ada, Hopper and later", "nvfp4": "Blackwell and later"}
"""The same in words."""

FUSED_MAX_TOKENS = {80: 128, 86: 128, 89: 128, 90: 48, 100: 32, 120: 128}
"""Up to how many tokens a chip (compute capability times ten, or the next lower one here) takes the fused kernel.

Not measured with these kernels. They are the safe side of what bitsandbytes 0.50 measured for its own fused NF4 kernel
on large weights (backends/cuda/ops.py: 48 to 64 on SM90, at most 32 on SM100, 128 to 256 on SM80 to SM89 and SM120);
`benchmarks/kernels.py` prints the figures for this table.
"""


def architecture(capability: Capability) -> int:
    """Return compute capability times ten, as in `sm_90`."""
    return 10 * capability[0] + capability[1]


def fused_max_tokens(capability: Capability) -> int:
    """Return the entry of FUSED_MAX_TOKENS for a chip; 0 where no kernel is made for it."""
    known = [chip for chip in FUSED_MAX_TOKENS if chip <= architecture(capability)]
    return FUSED_MAX_TOKENS[max(known)] if known else 0
