"""QLoRA through the command line: stored bases train, resume bit for bit, and refuse what would mix two runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer
from transformers import AutoModelForCausalLM

from surogate.cli.main import main
from surogate.models.inference import find_model, load_for_inference
from surogate.quant.convert import Skip, convert_
from surogate.quant.fp4 import Nvfp4Format
from surogate.quant.fp8 import Fp8Format
from surogate.quant.linear import FrozenQuantLinear
from surogate.quant.nf4 import Nf4Format
from surogate.quant.stored import StorageFormat

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # lightning 2.6.6 under torch 2.13

FORMATS: dict[str, StorageFormat] = {
    "qlora_bnb": Nf4Format(),
    "qlora_fp8": Fp8Format(),
    "qlora_fp4": Nvfp4Format(),
}
VALUES: dict[str, Any] = {
    "model": "model",
    "datasets": [{"path": "rows.jsonl", "type": "instruction"}],
    "max_steps": 6,
    "save_steps": 3,
    "sequence_len": 64,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "validation_split_ratio": 0.2,
    "learning_rate": 1e-2,
    "lora_rank": 4,
    "lora_dropout": 0.1,
}
LOGIT_TOLERANCE = 1e-4
SAME_BATCH_TOLERANCE = 1e-5
"""Of losses on one and on two ranks, float32."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny model and rows."""
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "model", vocab_size=160)
    save_word_tokenizer(tmp_path / "model", [f"w{i}" for i in range(140)])
    rows = [{"instruction": f"w{i} w{i + 1}", "output": f"w{i + 2} w{i + 3}"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def train(output: str, **changes: Any) -> int:
    Path(f"{output}.yaml").write_text(json.dumps({**VALUES, "output_dir": output, **changes}))
    return main(["sft", f"{output}.yaml"])


def losses(output: str) -> list[float]:
    records = [json.loads(line) for line in Path(output, "metrics.jsonl").read_text().splitlines()]
    return [record["train/loss"] for record in records if "train/loss" in record]


def adapter(output: str) -> dict[str, torch.Tensor]:
    return load_file(Path(output, "adapter", "adapter_model.safetensors"))


class Plain:
    """The values of a model that is loaded."""

    def read(self, parameter: torch.Tensor) -> torch.Tensor:
        return parameter.detach()

    def read_stored(self, parameter: torch.Tensor) -> None:
        return None


def dequantised_base(storage: StorageFormat) -> Any:
    """What a user without Surogate would put the adapter on: the base with each weight rounded by the format."""
    model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32).requires_grad_(False)
    convert_(model, storage, Skip(), device=torch.device("cpu"), source=Plain())
    for name, module in list(model.named_modules()):
        if isinstance(module, FrozenQuantLinear):
            dense = torch.nn.Linear(module.in_features, module.out_features, bias=False)
            dense.weight.data = module.weight
            model.set_submodule(name, dense)
    return model


@pytest.mark.parametrize("key", FORMATS)
def test_a_stored_base_trains_and_its_adapter_fits_the_dequantised_base_in_peft(
    folder: Path, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="surogate"):
        assert train("run", **{key: True}) == 0
    assert f"Stored 14 linear layers in {FORMATS[key].name}" in caplog.text
    assert losses("run")[-1] < losses("run")[0]
    elsewhere = PeftModel.from_pretrained(dequantised_base(FORMATS[key]), "run/adapter").eval()
    ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32), "run/adapter")
    convert_(ours.eval(), FORMATS[key], Skip(), device=torch.device("cpu"), source=Plain())
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(elsewhere(ids).logits, ours(ids).logits, atol=LOGIT_TOLERANCE, rtol=LOGIT_TOLERANCE)
        with ours.disable_adapter():
            without_adapter = ours(ids).logits
    assert not torch.allclose(elsewhere(ids).logits, without_adapter, atol=0.1)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("key", FORMATS)
def test_a_stopped_run_ends_bit_for_bit_like_one_that_was_not(folder: Path, key: str, recompute: bool) -> None:
    changes: dict[str, Any] = {key: True, "recompute": recompute, "lr_scheduler_type": "constant"}
    assert train("whole", **changes) == 0
    assert train("parts", **changes, max_steps=3) == 0
    assert train("parts", **changes) == 0
    assert losses("parts") == losses("whole") and len(losses("whole")) == 6
    expected, got = adapter("whole"), adapter("parts")
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"qlora_bnb": False, "qlora_fp8": True},
        {"qlora_bnb_block_size": 128},
        {"skip_quant_first_layers": 1},
        {"recipe": "fp8_hybrid", "recipe_emulate": True},
    ],
    ids=str,
)
def test_a_run_goes_on_only_in_the_numbers_it_was_trained_in(
    folder: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    assert train("run", qlora_bnb=True, max_steps=3) == 0
    assert train("run", **{"qlora_bnb": True, **changes}) == 5
    assert "precision." in _last(capsys)
    assert train("run", **{"qlora_bnb": True, **changes, "max_steps": 3}) == 5  # nor is another run "finished"
    assert train("run", qlora_bnb=True) == 0


@pytest.mark.parametrize("init", [True, "pissa"])
def test_a_run_answers_with_the_weights_it_was_trained_on(folder: Path, init: bool | str) -> None:
    """Also where its adapter has been moved away: how the base was stored goes with it."""
    assert train("run", qlora_bnb=True, init_lora_weights=init, learning_rate=0.05) == 0
    Path("run/adapter").rename("moved")
    answering = load_for_inference(find_model("model", "moved"))
    plain = load_for_inference(replace(find_model("model"), adapters=()))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert not torch.allclose(answering(ids).logits, plain(ids).logits, atol=0.1)
    if init is True:
        weight = answering.model.layers[0].mlp.up_proj.weight
        delta = _update("moved", "model.layers.0.mlp.up_proj")
        original = plain.model.layers[0].mlp.up_proj.weight
        expected = Nf4Format().quantize(original.detach()).dequantize(torch.float32) + delta
        torch.testing.assert_close(weight, expected, atol=1e-5, rtol=1e-5)


def _update(adapter_folder: str, layer: str) -> torch.Tensor:
    """What an adapter adds to a layer's weight."""
    tensors = load_file(Path(adapter_folder, "adapter_model.safetensors"))
    a, b = (tensors[f"base_model.model.{layer}.lora_{part}.weight"] for part in "AB")
    return b @ a * (32.0 / 4)


def test_a_base_that_changed_since_the_checkpoint_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("run", qlora_fp4=True, max_steps=3) == 0
    save_tiny_model(folder / "model", seed=1, vocab_size=160)
    assert train("run", qlora_fp4=True) == 5
    assert "training on would mix two models" in _last(capsys)


def test_an_adapter_is_not_put_on_a_base_that_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("run", qlora_fp4=True, max_steps=3) == 0
    save_tiny_model(folder / "model", seed=1, vocab_size=160)
    for command in (["merge", "run"], ["generate", "run", "--prompt", "w1"]):
        assert main(command) == 4
        assert "changed since run/adapter was trained on them" in _last(capsys)


def test_an_engineer_names_the_plugin_in_a_nested_configuration(folder: Path) -> None:
    assert train("flat", qlora_bnb=True, qlora_bnb_block_size=128, skip_quant_last_layers=1) == 0
    nested = yaml.safe_load(Path("flat/config.yaml").read_text())
    plugin = nested["trainer"]["plugins"][0]
    assert plugin["class_path"] == "surogate.precision.Nf4Precision"
    assert plugin["init_args"]["block_size"] == 128 and plugin["init_args"]["skip_last_layers"] == 1
    Path("flat").rename("first")
    assert main(["fit", "--config", "first/config.yaml"]) == 0
    assert losses("flat") == losses("first")
    plugin["init_args"]["skip_modules"] = ["q_porj"]
    Path("bad.yaml").write_text(yaml.safe_dump(nested).replace("flat", "bad"))
    assert main(["fit", "--config", "bad.yaml"]) == 2


def test_two_ranks_train_as_one_does(folder: Path) -> None:
    same: dict[str, Any] = {"qlora_bnb": True, "lora_dropout": 0.0, "optimizer": "adamw", "max_steps": 4}
    assert train("one", **same) == 0
    values = {**VALUES, **same, "output_dir": "two", "gpus": 2, "gradient_accumulation_steps": 1}
    Path("two.yaml").write_text(json.dumps(values))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "surogate", "sft", "two.yaml"]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert losses("two") == pytest.approx(losses("one"), abs=SAME_BATCH_TOLERANCE)


def _last(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err
