from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.tiny import tiny_config
from support.word_tokenizer import save_word_tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from surogate.callbacks.adapter_export import AdapterExport
from surogate.errors import CheckpointError


def export(folder: Path, save_adapter: Any, tokenizer: Any = None) -> None:
    tokenizer = tokenizer or SimpleNamespace(save_pretrained=lambda path: None)
    trainer: Any = SimpleNamespace(is_global_zero=True, datamodule=SimpleNamespace(tokenizer=tokenizer))
    module: Any = SimpleNamespace(save_adapter=save_adapter)
    AdapterExport(str(folder)).on_fit_end(trainer, module)


def test_the_folder_loads_in_peft_and_transformers_and_gives_the_same_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = LlamaForCausalLM(tiny_config()).eval()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    tokenizer = AutoTokenizer.from_pretrained(save_word_tokenizer(tmp_path / "tokenizer", ["river"]))
    export(tmp_path, lambda path: model.save_pretrained(str(path), save_embedding_layers=False), tokenizer)

    loaded = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")
    ).eval()
    input_ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids).logits, model(input_ids).logits)
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert reloaded.decode(reloaded("river").input_ids) == "river"
    assert reloaded.chat_template == tokenizer.chat_template


def test_a_second_export_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    export(tmp_path, lambda path: (path / "first").touch())
    export(tmp_path, lambda path: (path / "second").touch())
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_full_disk_leaves_the_old_adapter_and_is_said_in_a_sentence(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        (path / "half").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    export(tmp_path, lambda path: (path / "first").touch())
    with pytest.raises(CheckpointError, match=r"adapter could not be written: No space left on device"):
        export(tmp_path, fail)
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["first"]
