"""`surogate merge` of runs whose base was quantised: their own rows, formats and settings are found again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.quantised import BNB, of_bitsandbytes, store_again
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer
from transformers import AutoModelForCausalLM

from surogate.cli.main import main
from surogate.models.inference import find_model, load_for_inference

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # lightning 2.6.6 under torch 2.13

VALUES: dict[str, Any] = {
    "model": "model",
    "output_dir": "run",
    "datasets": [{"path": "rows.jsonl", "type": "instruction"}],
    "max_steps": 20,
    "save_steps": 0,
    "sequence_len": 64,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "validation_split_ratio": 0.3,
    "learning_rate": 2e-2,
    "lora_rank": 4,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny model and rows."""
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "model", vocab_size=160, hidden_size=64, intermediate_size=128, initializer_range=0.1)
    save_word_tokenizer(tmp_path / "model", [*["Mix", "the", "flour", "with", "eggs"], *(f"w{i}" for i in range(140))])
    write_rows(tmp_path / "rows.jsonl", range(60))
    return tmp_path


def write_rows(path: Path, numbers: range) -> None:
    rows = [{"instruction": f"w{i} w{i + 1}", "output": f"w{i + 2} w{i + 3}"} for i in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(**changes: Any) -> None:
    Path("run.yaml").write_text(json.dumps({**VALUES, **changes}))
    assert main(["sft", "run.yaml"]) == 0


def record(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "merge.json").read_text())


def test_a_run_is_merged_into_what_it_trained_on_and_measured_on_its_own_rows(folder: Path, capsys: Any) -> None:
    train(qlora_bnb=True, qlora_bnb_block_size=128)
    validation_loss = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()][-1]["val/loss"]
    capsys.readouterr()
    assert main(["merge", "run"]) == 0
    out, err = capsys.readouterr()
    assert "the base in nf4, blocks of 128, double quantised" in out and "validation rows of the run" in out
    assert "Recommended: dequantized, because it is what trained" in out
    assert out.splitlines()[-1] == "run/model: the adapter merged into model (dequantized), in float32"
    drift = record("run/model")["drift"]
    assert drift["loss"] == pytest.approx(validation_loss, rel=1e-4)
    assert drift["targets"]["dequantized"]["loss"] == pytest.approx(validation_loss, rel=1e-4)
    assert drift["num_rows"] > 10 and "built-in" not in err
    AutoModelForCausalLM.from_pretrained("run/model")


@pytest.mark.parametrize("key", ["qlora_bnb", "qlora_fp4"])
def test_a_requantised_merge_is_chatted_with_and_merged_from_the_adapters_own_folder(
    folder: Path, capsys: Any, key: str
) -> None:
    train(**{key: True, "skip_quant_last_layers": 1})
    assert main(["merge", "run/adapter", "--output", "served", "--target", "requantized", "--max-rows", "3"]) == 0
    assert "on 3 validation rows of the run" in capsys.readouterr().out
    assert find_model("served").base == "served"
    ids = torch.arange(1, 12)[None]
    with torch.no_grad():
        got = load_for_inference(find_model("served"))(ids).logits
        unmerged = load_for_inference(find_model("run"))(ids).logits
    assert torch.nn.functional.cosine_similarity(got.flatten(), unmerged.flatten(), dim=0) > 0.9
    kept = json.loads(Path("served/config.json").read_text())["quantization_config"]
    assert "model.layers.1.mlp.up_proj" in kept.get("llm_int8_skip_modules", kept.get("ignore"))
    assert main(["generate", "served", "--prompt", "w1 w2", "--max_new_tokens", "3"]) == 0


def test_other_rows_can_be_named_and_rows_that_are_gone_are_replaced_by_texts(folder: Path, capsys: Any) -> None:
    train(qlora_bnb=True)
    write_rows(folder / "more.jsonl", range(80, 90))
    assert main(["merge", "run", "--rows", "more.jsonl", "--output", "merged"]) == 0
    assert "on 10 rows of more.jsonl (" in capsys.readouterr().out
    Path("rows.jsonl").unlink()
    assert main(["merge", "run", "--output", "merged"]) == 0
    out, err = capsys.readouterr()
    assert "8 built-in texts" in out and "rows.jsonl" in err and "--rows" in err
    assert main(["merge", "run", "--rows", "nowhere.jsonl", "--output", "merged"]) == 3


def test_an_adapter_of_a_quantised_checkpoint_needs_no_run(folder: Path, capsys: Any) -> None:
    shutil.copytree("model", "small")
    store_again(folder / "small", of_bitsandbytes(), BNB)
    train(model="small")
    shutil.copytree("run/adapter", "alone")
    capsys.readouterr()
    assert main(["merge", "alone", "--output", "merged", "--original", "model"]) == 0
    out, err = capsys.readouterr()
    assert "there is no run beside the adapter" in err and "8 built-in texts" in out
    assert {"original", "dequantized", "requantized"} == set(record("merged")["drift"]["targets"])
    assert main(["merge", "run", "--output", "merged"]) == 0
    assert "original       not possible" in capsys.readouterr().out


def test_a_run_that_merges_at_its_end_merges_into_what_it_trained_on(folder: Path, caplog: Any) -> None:
    with caplog.at_level("INFO", "surogate"):
        train(qlora_bnb=True, merge_adapter=True)
    assert "(dequantized), in float32" in caplog.text and "Recommended: dequantized" in caplog.text
    assert list(record("run/model")["drift"]["targets"]) == ["dequantized"]
    assert record("run/model")["drift"]["targets"]["dequantized"]["mean_kl"] < 1e-7


def test_options_of_quantised_bases_are_refused_elsewhere(folder: Path, capsys: Any) -> None:
    train()
    for options in (["--target", "requantized"], ["--rows", "rows.jsonl"], ["--max-rows", "3"]):
        assert main(["merge", "run", *options]) == 2
        assert (
            f"{options[0]} is for adapters that trained on a quantised base, and model is none"
            in capsys.readouterr().err
        )
    assert main(["merge", "run", "--original", "model"]) == 2
    assert main(["merge", "run", "--target", "original"]) == 0
    assert "layers merged" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora", "use_rslora": True}]
)
def test_an_adapter_that_changed_the_base_before_it_was_quantised_is_taken_apart(
    folder: Path, changes: dict[str, Any]
) -> None:
    train(qlora_bnb=True, **changes)
    validation_loss = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()][-1]["val/loss"]
    assert main(["merge", "run"]) == 0
    drift = record("run/model")["drift"]
    assert drift["loss"] == pytest.approx(validation_loss, rel=1e-3)
    assert drift["targets"]["dequantized"]["mean_kl"] < 1e-7
    assert drift["targets"]["original"]["mean_kl"] < 0.5 * drift["without_adapter"]["mean_kl"]


def test_a_dora_adapter_cannot_be_taken_apart(folder: Path, capsys: Any) -> None:
    train(qlora_bnb=True, init_lora_weights="pissa", use_dora=True, max_steps=2)
    assert main(["merge", "run"]) == 4
    assert "DoRA's magnitudes belong to both halves" in capsys.readouterr().err
