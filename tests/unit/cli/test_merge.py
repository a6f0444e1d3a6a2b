"""The verb: where the base, the tokenizer and the output come from. The merge itself is tested in models/."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from surogate.cli.merge import main
from surogate.errors import ConfigError, ModelError
from surogate.models.inference import find_model, load_for_inference


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_word_tokenizer(save_tiny_model(tmp_path / "base"), ["river"])


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    make_adapter(base, tmp_path / "run" / "adapter")
    (tmp_path / "run" / "surogate.yaml").write_text(f"# What `surogate sft` was asked for\nmodel: {base}\n")
    return tmp_path / "run"


def make_adapter(base: Path, folder: Path) -> None:
    torch.manual_seed(1)
    model = LlamaForCausalLM.from_pretrained(base)
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(str(folder), save_embedding_layers=False)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(1, 9)[None]).logits


def test_a_run_is_merged_into_its_model_folder_and_said_how_well(run: Path, capsys: Any) -> None:
    expected = logits(load_for_inference(find_model(str(run))))
    assert main([str(run)]) == 0
    assert "2 layers merged" in capsys.readouterr().out
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(run / "model")), expected)
    assert logits(load_for_inference(find_model(str(run / "model")))).equal(expected)
    assert find_model(str(run)).adapters == (run / "adapter",)  # the run itself still is base and adapter
    assert main([str(run), "--dtype", "bfloat16"]) == 0  # an earlier merge gives way
    assert AutoModelForCausalLM.from_pretrained(run / "model").dtype == torch.bfloat16


def test_an_adapter_needs_an_output_and_may_be_given_another_base(run: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--output DIR"):
        main([str(run / "adapter")])
    config = run / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="--model BASE"):
        main([str(run / "adapter"), "--output", str(tmp_path / "merged")])
    assert main([str(run / "adapter"), "--output", str(tmp_path / "merged"), "--model", str(base)]) == 0
    assert (tmp_path / "merged" / "tokenizer.json").exists()


def test_what_holds_no_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere is not a folder"):
        main([str(tmp_path / "nowhere")])
    with pytest.raises(ModelError, match="nothing to merge"):
        main([str(base), "--output", str(tmp_path / "merged")])


def test_a_folder_that_is_taken_is_refused_before_anything_is_loaded(run: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").touch()
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="--force"):
        main([str(run), "--output", str(taken)])


def test_force_replaces_a_folder(run: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").touch()
    assert main([str(run), "--output", str(taken), "--force"]) == 0
    assert not (taken / "thesis.txt").exists() and (taken / "config.json").exists()


@pytest.mark.parametrize("part", ["base", "run", "adapter"])
def test_no_force_replaces_what_is_merged(base: Path, run: Path, part: str) -> None:
    target = {"base": base, "run": run, "adapter": run / "adapter"}[part]
    with pytest.raises(ModelError, match="which is merged here"):
        main([str(run), "--output", str(target), "--force"])
    assert (base / "config.json").exists() and (run / "adapter/adapter_config.json").exists()


def test_help_answers_without_torch_and_shows_an_example() -> None:
    code = (
        "import sys\nfrom surogate.cli.merge import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "surogate merge output" in done.stdout
