"""Adapters of bases whose checkpoints are quantised themselves: what can be merged into them, and what is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from support.quantised import (
    BNB,
    FP8,
    SHAPE,
    compressed_config,
    of_bitsandbytes,
    of_compressed_tensors,
    of_transformers_fp8,
    save_quantised,
)
from support.tiny import fit, random_rows, save_tiny_model, step_batch
from support.word_tokenizer import save_word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.errors import ModelError
from surogate.models.drift import HeldOut
from surogate.models.drift_table import DriftTable
from surogate.models.inference import FoundModel
from surogate.models.merge import MERGE_RECORD
from surogate.models.stored_base import StoredBase
from surogate.models.stored_merge import Wanted, merge_stored
from surogate.modes import SftModule
from surogate.precision import RecipePrecision

HELD_OUT = HeldOut(rows=random_rows(12, seed=99), origin="rows of a test")

CHECKPOINTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bitsandbytes": (of_bitsandbytes(nested=True), BNB),
    "fp8": (of_transformers_fp8(), FP8),
    "compressed-tensors": (of_compressed_tensors("NVFP4A16"), compressed_config("NVFP4A16")),
}
SMALL_STEP = 2e-5
"""Learning rate of an adapter whose updates are less than half a step of four bits."""


class Trained(NamedTuple):
    found: FoundModel
    original: str
    tokenizer: Any


def train(base: Path, original: Path, folder: Path, learning_rate: float = 2e-2) -> Trained:
    save_word_tokenizer(base, ["river"])
    torch.manual_seed(0)
    optim = OptimSpec(name="adamw", learning_rate=learning_rate, schedule="constant")
    lora = LoraSpec(rank=4, alpha=8.0, dropout=0.0)
    module = SftModule(ModelSpec(source=str(base), dtype="float32"), lora, optim)
    fit(module, [step_batch([[random_rows(6, seed)]]) for seed in range(8)], plugins=[RecipePrecision()])
    module.save_adapter(folder)
    found = FoundModel(base=str(base), adapters=(folder,), tokenizer=str(base))
    return Trained(found, str(original), AutoTokenizer.from_pretrained(base))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("original"), **SHAPE)


@pytest.fixture(scope="module", params=CHECKPOINTS)
def trained(request: pytest.FixtureRequest, original: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("quantised")
    return train(save_quantised(folder / "base", *CHECKPOINTS[request.param]), original, folder / "adapter")


def merged(trained: Trained, folder: Path, original: str | None = None, **wanted: Any) -> DriftTable:
    tables: list[DriftTable] = []
    base = StoredBase(storage=None, original=original)
    rows = (HELD_OUT, folder, trained.tokenizer)
    merge_stored(trained.found, base, *rows, Wanted(**wanted), show=tables.append)
    return tables[0]


def test_an_adapter_is_merged_into_what_a_quantised_checkpoint_stands_for(trained: Trained, tmp_path: Path) -> None:
    table = merged(trained, tmp_path / "merged", dtype="float32")
    assert table.recommended == "dequantized" and table.targets["dequantized"].mean_kl < 1e-7
    assert table.impossible["original"].endswith("--original names the model that it was made of")
    with pytest.raises(ModelError, match="--target original: not possible, the base is quantised itself"):
        merged(trained, tmp_path / "again", target="original")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert plain.dtype == torch.float32 and not hasattr(plain.config, "quantization_config")


def test_named_originals_are_merged_into_and_quantised_as_the_checkpoint_was(trained: Trained, tmp_path: Path) -> None:
    table = merged(trained, tmp_path / "merged", trained.original, target="requantized", force=True)
    assert set(table.targets) == {"original", "dequantized", "requantized"}
    before, after = (
        json.loads(Path(folder, "config.json").read_text())["quantization_config"]
        for folder in (trained.found.base, tmp_path / "merged")
    )
    assert after["quant_method"] == before["quant_method"]
    names_before, names_after = (
        set(load_file(Path(folder, "model.safetensors"))) for folder in (trained.found.base, tmp_path / "merged")
    )
    assert names_after - names_before <= {"lm_head.weight"}  # a tied head may be written or not


def test_a_small_update_is_lost_on_the_grid_of_four_bits_and_refused(original: Path, tmp_path: Path) -> None:
    base = save_quantised(tmp_path / "base", *CHECKPOINTS["bitsandbytes"])
    trained = train(base, original, tmp_path / "adapter", SMALL_STEP)
    lost = re.compile(r"--target requantized: its KL .* is \d\d\d?% of the base's without the adapter")
    with pytest.raises(ModelError, match=lost):
        merged(trained, tmp_path / "merged", target="requantized", dtype="float32")
    assert not (tmp_path / "merged").exists()
    table = merged(trained, tmp_path / "merged", target="requantized", dtype="float32", force=True)
    assert table.targets["requantized"].mean_kl > 0.5 * table.without_adapter.mean_kl
    assert json.loads((tmp_path / "merged" / MERGE_RECORD).read_text())["refused"]
    codes = "model.layers.0.self_attn.q_proj.weight"
    same = load_file(base / "model.safetensors")[codes] == load_file(tmp_path / "merged" / "model.safetensors")[codes]
    assert same.float().mean() > 0.99


def test_a_format_that_is_only_read_cannot_be_written_again(original: Path, tmp_path: Path) -> None:
    channel = {"strategy": "channel"}
    base = save_quantised(
        tmp_path / "base", of_compressed_tensors("FP8", **channel), compressed_config("FP8", **channel)
    )
    table = merged(train(base, original, tmp_path / "adapter"), tmp_path / "merged", dtype="float32")
    assert table.impossible["requantized"] == "the base is stored in a format that can be read and not written"
    assert table.targets["dequantized"].mean_kl < 1e-7


def test_no_force_replaces_the_original(original: Path, tmp_path: Path) -> None:
    found = FoundModel(base="base", adapters=(tmp_path / "adapter",), tokenizer="")
    base = StoredBase(storage=None, original=str(original))
    with pytest.raises(ModelError, match="which is merged here"):
        merge_stored(found, base, HELD_OUT, original, None, Wanted(force=True))
    assert (original / "config.json").exists()
