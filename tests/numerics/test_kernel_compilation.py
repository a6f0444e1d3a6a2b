"""Every kernel compiled for every architecture, without a GPU: what would be slow or fail to launch there fails here.

The same table with another Triton: `PYTHONPATH=<folder with triton>:.:tests python -m support.ahead_of_time`.
"""

from __future__ import annotations

import importlib
import inspect
import re

import pytest
from support.ahead_of_time import (
    ARCHITECTURES,
    KERNEL_MODULES,
    SHARED_BYTES,
    all_targets,
    compile_all,
    compile_for,
    lower,
    violations,
    with_ones,
)
from triton.runtime.jit import JITFunction

pytestmark = pytest.mark.slow

TARGETS = all_targets()
PRODUCTS = ["nf4.linear_nt", "fp8.linear_nt", "fp4.linear_nt mxfp4"]

OUTPUTS_PER_LANE = {
    "nf4.dequantize": 8,
    "nf4.dequantize nested": 8,
    "fp8.dequantize": 16,
    "fp8.dequantize native": 16,
    "fp4.dequantize mxfp4": 8,
}
"""Weights that a lane writes; NVFP4 is not here, as half of its instructions are a division's slow path, not taken."""
MEMORY_BOUND = 20
"""Instructions a weight: an H200 starts 33e12 lane-instructions a second and writes 1.7e12 bfloat16 at 4.3 TB/s."""


@pytest.mark.parametrize("name", TARGETS)
def test_a_kernel_compiles_for_every_gpu_and_spills_nothing(name: str) -> None:
    target = TARGETS[name]
    binaries = compile_all(target)
    assert binaries.keys() == {chip for chip in ARCHITECTURES if chip >= target.first_architecture}
    wrong = {chip: list(violations(target, chip, binary)) for chip, binary in binaries.items()}
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize("name", TARGETS)
def test_a_kernel_compiles_where_its_numbers_are_one(name: str) -> None:
    assert "tt.func" in lower(with_ones(TARGETS[name]), 90)


@pytest.mark.parametrize("name", OUTPUTS_PER_LANE)
def test_dequantising_is_bound_by_memory(name: str) -> None:
    binary = compile_for(TARGETS[name], 90)
    assert binary.num_instructions / OUTPUTS_PER_LANE[name] < MEMORY_BOUND


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_of_float32_fits_the_smallest_shared_memory(name: str) -> None:
    target = TARGETS[name]
    wide = target._replace(signature=target.signature | {"x_ptr": "*fp32:16", "y_ptr": "*fp32:16"})
    binary = compile_for(wide, 89)
    assert binary.shared <= SHARED_BYTES[89] * 1024


def test_every_kernel_that_is_launched_declares_a_target() -> None:
    for name in KERNEL_MODULES:
        module = importlib.import_module(f"surogate.kernels.{name}")
        launched = set(re.findall(r"(\w+)\[\(?\w", inspect.getsource(module)))
        kernels = {value for key, value in vars(module).items() if key in launched and isinstance(value, JITFunction)}
        assert kernels
        declared = {target.kernel for target in module.TARGETS.values()}
        assert declared == kernels, name
