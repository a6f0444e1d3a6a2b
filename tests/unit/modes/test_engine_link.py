"""What the engine is given, and what servers of somebody else have to serve where that is not the model itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny import save_tiny_model
from transformers import LlamaForCausalLM

from surogate.config.parts import LoraSpec, ModelSpec
from surogate.config.parts_grpo import InferenceSpec, LinkSpec
from surogate.modes import engine_link
from surogate.modes.engine_link import EngineLink


@pytest.mark.parametrize(
    ("spec", "is_stored", "is_told"),
    [
        (LinkSpec(server_urls=["http://node:8000"]), True, True),
        (LinkSpec(feed="folder"), True, True),
        (LinkSpec(feed="folder"), False, False),
        (LinkSpec(), True, False),
    ],
)
def test_servers_have_to_serve_the_base_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: LinkSpec, is_stored: bool, is_told: bool
) -> None:
    source = str(save_tiny_model(tmp_path / "model"))
    monkeypatch.setattr(engine_link, "is_stored", lambda model: is_stored)
    monkeypatch.setattr(engine_link, "export_base", lambda model, folder, tokenizer, fingerprint: folder)
    module: Any = SimpleNamespace(
        model=LlamaForCausalLM.from_pretrained(source),
        model_spec=ModelSpec(source=source),
        lora_spec=LoraSpec(),
        device=torch.device("cpu"),
        trainer=SimpleNamespace(default_root_dir=str(tmp_path / "run"), precision_plugin=None, world_size=1),
    )
    link = EngineLink(module, spec, InferenceSpec(), max_steps=1)
    assert link.model_dir(None) == (tmp_path / "run/generator_base" if is_stored else Path(source))
    wanted = f"surogate grpo-infer infer.yaml --model {tmp_path / 'run/generator_base'}`"
    assert (wanted in link.base_hint) == is_told
    assert bool(link.base_hint) == is_told
