"""Adapters trained on top of adapters: three storeys, moved to another place, still stand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import save_tiny_model

from surogate.config.parts import LoraSpec, ModelSpec
from surogate.errors import ModelError
from surogate.models import lora
from surogate.models.inference import find_model, load_for_inference
from surogate.models.load import load_model
from surogate.models.stacks import carry_below, locate_adapter, stack_of


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"))


def train(base: Path, folder: Path, seed: int, **on: Any) -> torch.Tensor:
    """Leave an adapter with random weights in a folder, as a run does, and return its logits."""
    spec = LoraSpec(rank=2, dropout=0.0, **on)
    model: Any = lora.inject(load_model(ModelSpec(source=str(base))), spec, str(base))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    lora.save_adapter(model, folder)
    carry_below(spec, folder)
    return logits(model.eval())


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(12)[None]).logits


@pytest.mark.parametrize("mode", ["merge", "trainable"])
def test_a_third_adapter_stands_on_both_below_it_wherever_they_go(base: Path, tmp_path: Path, mode: str) -> None:
    train(base, tmp_path / "first", 1)
    train(base, tmp_path / "second", 2, adapter_path=str(tmp_path / "first"))
    top = train(base, tmp_path / "third", 3, adapter_path=str(tmp_path / "second"), adapter_init_mode=mode)
    moved = Path(shutil.move(tmp_path / "third", tmp_path / "elsewhere"))
    for name in ("first", "second"):
        shutil.rmtree(tmp_path / name)
    found = find_model(str(base), str(moved))
    assert len(found.adapters) == (3 if mode == "merge" else 2)
    torch.testing.assert_close(logits(load_for_inference(found)), top, atol=1e-4, rtol=1e-4)


def test_an_adapter_alone_is_its_own_stack_and_a_run_stands_for_its_adapter(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "run/adapter", 1)
    assert stack_of(tmp_path / "run/adapter") == (tmp_path / "run/adapter",)
    assert locate_adapter(str(tmp_path / "run")) == tmp_path / "run/adapter"


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no adapter_config\.json"):
        locate_adapter(str(tmp_path))
