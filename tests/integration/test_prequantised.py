"""Checkpoints that are quantised already train as they are: their own bytes, an adapter on top, an exact resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file
from support.quantised import (
    BLOCK,
    BNB,
    FP8,
    Tensors,
    Write,
    compressed_config,
    of_bitsandbytes,
    of_compressed_tensors,
    of_transformers_fp8,
    save_gpt_oss,
    save_quantised,
)
from support.smollm2 import GGUF
from support.tiny import Recorder, fit, quiet_trainer, random_rows, step_batch
from support.word_tokenizer import save_word_tokenizer
from torch import Tensor
from torch.utils.data import DataLoader

from surogate.cli.main import main
from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.errors import ModelError
from surogate.models.inference import find_model, load_for_inference
from surogate.models.load import load_model
from surogate.modes import SftModule
from surogate.precision import Nf4Precision
from surogate.quant.experts import FrozenQuantExperts
from surogate.quant.linear import FrozenQuantLinear


def modelopt_nvfp4(weight: Tensor) -> Tensors:
    parts = of_compressed_tensors("NVFP4A16")(weight)
    return {
        ".weight": parts[".weight_packed"],
        ".weight_scale": parts[".weight_scale"],
        ".weight_scale_2": 1 / parts[".weight_global_scale"],
    }


MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
FORMATS: dict[str, tuple[Write, dict[str, Any]]] = {
    "bnb-nf4": (of_bitsandbytes(nested=True), BNB),
    "bnb-fp4": (of_bitsandbytes("fp4", storage=torch.bfloat16), BNB),
    "fp8": (of_transformers_fp8(), FP8),
    "ct-fp8": (of_compressed_tensors("FP8", **BLOCK), compressed_config("FP8", **BLOCK)),
    "ct-nvfp4": (of_compressed_tensors("NVFP4A16"), compressed_config("NVFP4A16")),
    "ct-mxfp4": (of_compressed_tensors("MXFP4A16"), compressed_config("MXFP4A16")),
    "modelopt-nvfp4": (modelopt_nvfp4, MODELOPT),
}


def save(folder: Path, name: str, **changes: Any) -> Path:
    if name == "gpt-oss":
        return save_gpt_oss(folder)
    write, config = FORMATS[name]
    return save_quantised(folder, write, config, **changes)


def batches(count: int = 3) -> list[Any]:
    rows = random_rows(4 * count)
    return [step_batch([[rows[i : i + 2]], [rows[i + 2 : i + 4]]]) for i in range(0, 4 * count, 4)]


def module(folder: Path, **lora: Any) -> SftModule:
    pl.seed_everything(1, verbose=False)
    optim = OptimSpec(learning_rate=1e-2)
    return SftModule(ModelSpec(source=str(folder)), LoraSpec(**{"rank": 4, "dropout": 0.1, **lora}), optim)


def stored_layers(trained: SftModule) -> dict[str, Any]:
    kinds = (FrozenQuantLinear, FrozenQuantExperts)
    return {name: layer for name, layer in trained.model.named_modules() if isinstance(layer, kinds)}


@pytest.mark.parametrize("name", [*FORMATS, "gpt-oss"])
def test_every_format_trains_on_its_own_bytes_as_the_dequantised_model_does(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "stored", name)
    trained = module(folder)
    steps = fit(trained, batches())
    layers = stored_layers(trained)
    assert len(layers) == (2 if name == "gpt-oss" else 14)
    in_file = {tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in parts_of(folder).values()}
    for layer in layers.values():
        codes = layer.stored.codes if isinstance(layer, FrozenQuantLinear) else layer.gate_up[0].codes
        assert any(codes.numpy().tobytes() in content for content in in_file)

    dense: Any = load_model(ModelSpec(source=str(folder)))
    dense.save_pretrained(tmp_path / "dense")
    expected = fit(module(tmp_path / "dense"), batches())
    assert [step["loss"] for step in steps] == pytest.approx([step["loss"] for step in expected], rel=1e-4)
    assert steps[-1]["loss"] != pytest.approx(steps[0]["loss"], rel=1e-3)


def parts_of(folder: Path) -> dict[str, Tensor]:
    tensors = load_file(folder / "model.safetensors")
    return {name: t for name, t in tensors.items() if name.endswith(("_proj.weight", "_packed", "_blocks"))}


def test_the_base_never_exists_dequantised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deferred = []

    def load(*args: Any, **kwargs: Any) -> Any:
        model = load_model(*args, **kwargs)
        deferred.append(all(parameter.is_meta for parameter in model.parameters()))
        return model

    monkeypatch.setattr("surogate.modes.model_building.load_model", load)
    fit(module(save(tmp_path, "ct-nvfp4")), batches(1))
    assert deferred == [True]


class SaveAtTwo(Recorder):
    """Saves a checkpoint after the second step."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, module, *args)
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.folder / "two.ckpt")


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")  # a list has no state
@pytest.mark.parametrize("name", ["bnb-nf4", "fp8", "ct-nvfp4", "gpt-oss"])
def test_a_resumed_run_takes_the_same_steps_bit_for_bit(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", name)
    whole, saver, checkpoint = module(folder), SaveAtTwo(tmp_path), tmp_path / "two.ckpt"
    expected = fit(whole, batches(4), saver)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert state and all("lora_" in key for key in state)

    second, rest = Recorder(), module(folder)
    loader = DataLoader(batches(4)[2:] + batches(4)[:2], batch_size=None)  # Lightning goes on counting at the third
    quiet_trainer(second).fit(rest, loader, ckpt_path=str(checkpoint), weights_only=True)
    assert second.steps == expected[2:]
    got = dict(rest.named_parameters())
    for key, parameter in whole.named_parameters():
        assert torch.equal(parameter, got[key]), key


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_adapters_that_need_the_base_to_start_still_train_on_its_bytes(lora: dict[str, Any], tmp_path: Path) -> None:
    folder = save(tmp_path, "fp8", tie_word_embeddings=False)
    trained = module(folder, **lora)
    fit(trained, batches(1))
    assert len(stored_layers(trained)) == 14


def test_layers_that_an_initialisation_changed_do_not_go_back_to_the_bytes_of_the_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = module(save(tmp_path, "fp8"), init_lora_weights="pissa", target_modules=["q_proj"], dropout=0.0)
    fit(trained, batches(1))
    names = {name.split(".layers.")[1] for name in stored_layers(trained)}
    assert len(names) == 12 and not any("q_proj" in name for name in names)
    assert "layers that the start changes (init_lora_weights, adapter_path) stay so" in caplog.text


def test_a_quantised_head_stays_in_few_bits_and_the_loss_is_that_of_the_dequantised_one(tmp_path: Path) -> None:
    write, config = of_transformers_fp8(), {**FP8, "modules_to_not_convert": []}
    shape = {"tie_word_embeddings": False, "vocab_size": 128}
    folder = save_quantised(tmp_path / "stored", write, config, modules="lm_head", **shape)
    trained = module(folder, dropout=0.0)
    steps = fit(trained, batches(1))
    assert [name.rpartition(".")[2] for name in stored_layers(trained)] == ["lm_head"]
    load_model(ModelSpec(source=str(folder))).save_pretrained(tmp_path / "dense")
    expected = fit(module(tmp_path / "dense", dropout=0.0), batches(1))
    assert steps[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-5)


def test_only_an_adapter_can_train(tmp_path: Path) -> None:
    folder = save(tmp_path, "bnb-nf4")
    with pytest.raises(ModelError, match=r"quantised \(bitsandbytes\), so only an adapter can train. Set lora: true"):
        fit(module(folder, enabled=False), batches(1))


def test_what_is_quantised_is_not_quantised_again(tmp_path: Path) -> None:
    folder = save(tmp_path, "fp8")
    with pytest.raises(ModelError, match=r"is quantised already \(fp8\) and trains as it is.*stored in nf4.*qlora key"):
        fit(module(folder), batches(1), plugins=[Nf4Precision()])


def test_the_command_line_trains_answers_and_merges_on_a_quantised_base(tmp_path: Path, capsys: Any) -> None:
    base = save_word_tokenizer(save(tmp_path / "base", "ct-nvfp4"), [f"w{i}" for i in range(80)])
    rows = [{"instruction": f"w{i} w{i + 1}", "output": f"w{i + 2} w{i + 3}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    values = {
        "model": str(base),
        "output_dir": str(run),
        "datasets": [{"path": str(tmp_path / "rows.jsonl")}],
        "sequence_len": 64,
        "max_steps": 2,
        "learning_rate": 0.01,
    }
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    assert main(["sft", str(tmp_path / "run.yaml")]) == 0
    assert "14 linear layers in nvfp4" in capsys.readouterr().err
    assert main(["generate", str(run), "--prompt", "w1 w2", "--max_new_tokens", "3"]) == 0
    assert main(["merge", str(run)]) == 0
    merged = load_for_inference(find_model(str(run / "model")))
    assert not hasattr(merged.config, "quantization_config")
    with_adapter, ids = load_for_inference(find_model(str(run))), torch.arange(9)[None]
    torch.testing.assert_close(merged(ids).logits, with_adapter(ids).logits, atol=0.2, rtol=0.05)


@pytest.mark.slow
def test_a_gguf_file_becomes_a_checkpoint_of_4_bits_and_trains(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "nf4"
    assert main(["quantize", GGUF, "--format", "nf4", "--output", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "210 linear layers in nf4" in printed and "(4.14 bits a weight)" in printed
    trained = module(folder)
    steps = fit(trained, batches(1) * 3)
    assert len(stored_layers(trained)) == 210 and steps[2]["loss"] < steps[0]["loss"]
