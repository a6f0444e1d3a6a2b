"""An adapter of a quantised base: the reference is what trained, and each target is measured as it was written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support.tiny import fit, random_rows, save_tiny_model, step_batch
from support.word_tokenizer import save_word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from surogate.batches import PackedRow
from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.errors import ModelError
from surogate.models import stored_merge
from surogate.models.drift import HeldOut
from surogate.models.drift_table import DriftTable
from surogate.models.inference import FoundModel
from surogate.models.merge import MERGE_RECORD
from surogate.models.stored_base import StoredBase
from surogate.models.stored_merge import Wanted, merge_stored
from surogate.modes import SftModule
from surogate.precision import Fp8Precision, Nf4Precision, Nvfp4Precision, RecipePrecision

TOLERANCE = 2e-5
"""Of losses and logits, float32."""

HELD_OUT = HeldOut(rows=random_rows(12, seed=99), origin="rows of a test")

PLUGINS: dict[str, Any] = {
    "nf4": Nf4Precision,
    "nf4, the first layer skipped": lambda: Nf4Precision(skip_first_layers=1),
    "fp8": lambda: Fp8Precision(block_size=64),
    "nvfp4": Nvfp4Precision,
}
KINDS: dict[str, dict[str, Any]] = {
    "nf4": {},
    "nf4, the first layer skipped": {"target_modules": ["q_proj", "up_proj", "lm_head"]},
    "fp8": {"use_dora": True},
    "nvfp4": {"modules_to_save": ["lm_head"]},
}


class Trained(NamedTuple):
    found: FoundModel
    base: StoredBase
    module: SftModule
    tokenizer: Any


def losses(module: SftModule) -> float:
    """The mean loss on the held-out rows of a model as it stands after training."""
    total, tokens = 0.0, 0
    model = module.model.eval()
    model.set_attn_implementation("sdpa")
    for row in map(PackedRow.from_rows, ([one] for one in HELD_OUT.rows)):
        with torch.no_grad():
            logits = model(torch.from_numpy(row.input_ids_T)[None]).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(row.labels_T), reduction="sum")
        total, tokens = total + loss.item(), tokens + int((row.labels_T >= 0).sum())
    return total / tokens


def train(base: Path, folder: Path, plugin: RecipePrecision, **lora: Any) -> SftModule:
    torch.manual_seed(0)
    optim = OptimSpec(name="adamw", learning_rate=2e-2, schedule="constant")
    module = SftModule(ModelSpec(source=str(base)), LoraSpec(rank=4, alpha=8.0, dropout=0.0, **lora), optim)
    fit(module, [step_batch([[random_rows(6, seed)]]) for seed in range(12)], plugins=[plugin])
    module.save_adapter(folder)
    return module


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    shape = {"initializer_range": 0.1, "hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}
    return save_word_tokenizer(save_tiny_model(folder, tie_word_embeddings=False, **shape), ["river"])


@pytest.fixture(scope="module", params=PLUGINS)
def trained(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_with(request.param, base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def nf4(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_with("nf4", base, tmp_path_factory.mktemp("nf4"))


def trained_with(name: str, base: Path, folder: Path) -> Trained:
    plugin = PLUGINS[name]()
    module = train(base, folder, plugin, **KINDS[name])
    found = FoundModel(base=str(base), adapters=(folder,), tokenizer=str(base))
    stored = StoredBase(storage=plugin.storage, skip=plugin.skip, original=str(base))
    return Trained(found, stored, module, AutoTokenizer.from_pretrained(base))


def merged(trained: Trained, folder: Path, shown: list[DriftTable] | None = None, **wanted: Any) -> DriftTable:
    tables: list[DriftTable] = [] if shown is None else shown
    merge_stored(
        *(trained.found, trained.base, HELD_OUT, folder, trained.tokenizer), Wanted(**wanted), show=tables.append
    )
    return tables[0]


def test_the_reference_is_what_trained_and_dequantised_weights_are_it(trained: Trained, tmp_path: Path) -> None:
    table = merged(trained, tmp_path / "merged", target="dequantized")
    assert table.loss == pytest.approx(losses(trained.module), rel=TOLERANCE)
    exact = table.targets["dequantized"]
    assert exact.mean_kl < 1e-7 and exact.top1_agreement == 1 and abs(exact.loss_change) < TOLERANCE
    assert table.without_adapter.mean_kl > 0.01
    for target in ("original", "requantized"):
        assert 1e-6 < table.targets[target].mean_kl < 0.5 * table.without_adapter.mean_kl, target  # type: ignore[index]

    ids = torch.arange(1, 20)[None]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not hasattr(plain.config, "quantization_config")
    with torch.no_grad():
        expected = trained.module.model.eval()(ids).logits
        torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_the_original_target_is_the_plain_merge_and_the_record_holds_the_table(nf4: Trained, tmp_path: Path) -> None:
    table = merged(nf4, tmp_path / "merged", target="original")
    start = AutoModelForCausalLM.from_pretrained(nf4.found.base).state_dict()
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    lora = dict(nf4.module.model.named_parameters())
    name = "model.layers.1.mlp.down_proj"
    down, up = (lora[f"base_model.model.{name}.lora_{side}.default.weight"] for side in "AB")
    torch.testing.assert_close(written[f"{name}.weight"], start[f"{name}.weight"] + 2 * up @ down)
    record = json.loads((tmp_path / "merged" / MERGE_RECORD).read_text())
    assert record["target"] == "original" and record["refused"] is None
    assert record["drift"]["targets"]["original"]["mean_kl"] == table.targets["original"].mean_kl
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert (tmp_path / "merged" / "tokenizer.json").exists()


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_requantised_model_is_read_in_the_format_of_the_run(
    trained: Trained, tmp_path: Path, dtype: str | None
) -> None:
    table = merged(trained, tmp_path / "merged", target="requantized", dtype=dtype)
    described = json.loads((tmp_path / "merged" / "config.json").read_text())["quantization_config"]
    assert described["quant_method"] in ("bitsandbytes", "fp8", "compressed-tensors")
    again = stored_merge._load_written(tmp_path / "merged", False)
    stored = [name for name, module in again.named_modules() if isinstance(module, stored_merge.FrozenQuantLinear)]
    of_run = [n for n, m in trained.module.model.named_modules() if isinstance(m, stored_merge.FrozenQuantLinear)]
    assert len(stored) == len([name for name in of_run if "original_module" not in name])
    assert table.targets["requantized"].mean_kl < 0.5 * table.without_adapter.mean_kl


def test_only_sixteen_bits_separate_a_rounded_merge_from_what_trained(nf4: Trained, tmp_path: Path) -> None:
    table = merged(nf4, tmp_path / "merged", dtype="bfloat16")
    assert table.recommended == "dequantized" and table.dtype == "bfloat16"
    assert 0 < table.targets["dequantized"].mean_kl < 1e-3
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16


def test_a_target_that_is_too_far_is_written_by_force_alone(nf4: Trained, base: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=5, hidden_size=64, intermediate_size=128, num_key_value_heads=4)
    lost = nf4._replace(base=replace(nf4.base, original=str(other)))
    tables: list[DriftTable] = []
    with pytest.raises(ModelError, match=r"--target original: .* nothing was written.*--target dequantized.*--force"):
        merged(lost, tmp_path / "merged", tables, target="original")
    assert "too far" in str(tables[0]) and tables[0].refusal("original")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    merged(lost, tmp_path / "merged", target="original", force=True)
    assert json.loads((tmp_path / "merged" / MERGE_RECORD).read_text())["refused"] == tables[0].refusal("original")
    merged(lost, tmp_path / "merged")  # the recommended one is not refused


def test_a_folder_that_is_taken_is_refused_before_anything_is_measured(nf4: Trained, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ModelError, match="is not an earlier merge"):
        merged(nf4, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_fails_on_the_way_leaves_nothing(nf4: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ModelError("no")

    monkeypatch.setattr(stored_merge, "write_model", fail)
    with pytest.raises(ModelError, match="no"):
        merged(nf4, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_seen_because_the_written_one_is_measured(
    nf4: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = stored_merge.write_model

    def write_wrong(model: Any, *args: Any) -> None:
        model.lm_head.weight.data.mul_(4)
        write(model, *args)

    monkeypatch.setattr(stored_merge, "write_model", write_wrong)
    with pytest.raises(ModelError, match="nothing was written"):
        merged(nf4, tmp_path / "merged", target="dequantized")


def test_adapters_below_are_part_of_the_base_that_was_quantised(nf4: Trained, tmp_path: Path) -> None:
    plain = train(Path(nf4.found.base), tmp_path / "first", RecipePrecision())
    assert plain.lora_spec.adapter_path is None
    second = train(Path(nf4.found.base), tmp_path / "second", Nf4Precision(), adapter_path=str(tmp_path / "first"))
    found = replace(nf4.found, adapters=(tmp_path / "second" / "stacked_on", tmp_path / "second"))
    stacked = Trained(found, nf4.base, second, nf4.tokenizer)
    shutil.rmtree(tmp_path / "first")
    table = merged(stacked, tmp_path / "merged", target="requantized")
    assert table.loss == pytest.approx(losses(second), rel=TOLERANCE)
    assert table.targets["dequantized"].mean_kl < 1e-7


def test_fp8_in_tiles_that_do_not_divide_cannot_be_written_again(base: Path, tmp_path: Path) -> None:
    plugin = Fp8Precision(block_size=256)
    module = train(base, tmp_path / "adapter", plugin)
    found = FoundModel(base=str(base), adapters=(tmp_path / "adapter",), tokenizer=str(base))
    stored = StoredBase(storage=plugin.storage, original=str(base))
    table = merged(Trained(found, stored, module, AutoTokenizer.from_pretrained(base)), tmp_path / "merged")
    reason = table.impossible["requantized"]
    assert reason.startswith("No linear layer of the merged model can be written in fp8") and "--format" not in reason
    assert table.targets["dequantized"].mean_kl < 1e-7
