"""Which dtype the weights get."""

from __future__ import annotations

import pytest
import torch

from surogate.models import dtypes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_without_native_bf16_computes_in_float32_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    dtypes._say_float32_once.cache_clear()
    assert dtypes.weights_dtype(None, torch.bfloat16, CPU) == torch.float32
    assert dtypes.weights_dtype("bfloat16", torch.float32, CPU) == torch.float32
    assert len(caplog.records) == 1 and "float32" in caplog.text


def test_a_cpu_with_native_bf16_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert dtypes.weights_dtype(None, torch.bfloat16, CPU) == torch.bfloat16


def test_the_request_wins_over_the_checkpoint_which_wins_over_float32() -> None:
    assert dtypes.weights_dtype("float16", torch.bfloat16, CUDA) == torch.float16
    assert dtypes.weights_dtype(None, torch.bfloat16, CUDA) == torch.bfloat16
    assert dtypes.weights_dtype(None, None, CUDA) == torch.float32
