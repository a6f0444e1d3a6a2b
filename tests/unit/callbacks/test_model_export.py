from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny import fit, random_rows, save_tiny_model, step_batch
from support.word_tokenizer import save_word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from surogate.callbacks.model_export import ModelExport
from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.errors import CheckpointError
from surogate.models import export as exporting
from surogate.models.export import save_model
from surogate.modes import SftModule


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(save_word_tokenizer(tmp_path / "tokenizer", ["river"]))


def export(folder: Path, module: Any, tokenizer: Any, rank: int = 0, **arguments: Any) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=rank == 0, datamodule=SimpleNamespace(tokenizer=tokenizer))
    ModelExport(str(folder), **arguments).on_fit_end(trainer, module)


@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_is_the_model_that_trained(tmp_path: Path, tokenizer: Any, tied: bool) -> None:
    base = save_tiny_model(tmp_path / "base", tie_word_embeddings=tied)
    GenerationConfig(eos_token_id=[3, 4], max_new_tokens=7).save_pretrained(base)
    optim = OptimSpec(name="adamw", learning_rate=1e-2, schedule="constant")
    module = SftModule(ModelSpec(source=str(base)), LoraSpec(enabled=False), optim)
    fit(module, [step_batch([[random_rows(6)]])])
    export(tmp_path / "run", module, tokenizer)

    folder = tmp_path / "run" / "model"
    loaded, ids = AutoModelForCausalLM.from_pretrained(folder), torch.arange(1, 13)[None]
    with torch.no_grad():
        module.model.eval().set_attn_implementation("sdpa")
        assert torch.equal(loaded(ids).logits, module.model(ids).logits)
        assert not torch.allclose(loaded(ids).logits, AutoModelForCausalLM.from_pretrained(base)(ids).logits, atol=0.1)
    config = json.loads((folder / "config.json").read_text())
    assert config["use_cache"] and config["tie_word_embeddings"] == tied and config["architectures"]
    assert "surogate" not in json.dumps(config)  # the trainer's attention stays with the trainer
    assert not loaded.is_gradient_checkpointing
    assert loaded.generation_config.eos_token_id == [3, 4] and loaded.generation_config.max_new_tokens == 7
    assert not module.model.config.use_cache  # what trains is left as it was
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template


def test_with_merge_the_module_merges_and_its_report_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def save_merged_model(folder: Path, tokenizer: Any) -> str:
        assert (folder, tokenizer) == (tmp_path / "model", "words")
        return "14 layers merged"

    with caplog.at_level("INFO"):
        export(tmp_path, SimpleNamespace(save_merged_model=save_merged_model), "words", merge=True)
    assert "14 layers merged" in caplog.text


def test_every_rank_gives_its_share_of_a_model_and_only_the_first_merges_and_writes(tmp_path: Path) -> None:
    asked: list[Path] = []
    export(tmp_path, SimpleNamespace(save_model=lambda folder, _: asked.append(folder)), None, rank=1)
    assert asked == [tmp_path / "model"]
    export(tmp_path, None, None, rank=1, merge=True)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_model_and_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: Any, folder: Path, tokenizer: Any, state: Any) -> None:
        (folder / "half").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "first").touch()
    monkeypatch.setattr(exporting, "write_model", fail)
    with pytest.raises(CheckpointError, match="model could not be written: No space left on device"):
        save_model(None, tmp_path / "model", None)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/first"]
