"""What trained, what was saved and what was merged are one model, for every kind of adapter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.tiny import fit, random_rows, save_tiny_model, step_batch
from support.word_tokenizer import save_word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.errors import ModelError
from surogate.models import merge as merging
from surogate.models.inference import FoundModel, load_for_inference
from surogate.models.merge import MERGE_RECORD, merge, merge_trained
from surogate.modes import SftModule

TOLERANCE = 1e-5
"""Largest difference of logits relative to the largest, float32; the adapters below change them by 0.06 to 1."""

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa and dora": {"init_lora_weights": "pissa", "use_dora": True},
    "olora and rslora": {"init_lora_weights": "olora", "use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "embeddings trained whole": {"modules_to_save": ["embed_tokens"]},
    "tied head trained whole": {"modules_to_save": ["lm_head"]},
    "tied head adapted": {"target_modules": ["q_proj", "lm_head"]},
}

IDS = torch.arange(1, 13)[None]


class Trained(NamedTuple):
    kind: str
    base: Path
    adapter: Path
    module: SftModule
    logits: torch.Tensor


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


def found_of(trained: Trained, *adapters: Path) -> FoundModel:
    return FoundModel(base=str(trained.base), adapters=adapters or (trained.adapter,), tokenizer="")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"))  # with tied embeddings


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    words = [*merging._PROBES[0].split(), *merging._PROBES[1].split()]
    return AutoTokenizer.from_pretrained(save_word_tokenizer(tmp_path_factory.mktemp("tokenizer"), words))


def train(base: Path, folder: Path, kind: str, **changes: Any) -> Trained:
    torch.manual_seed(0)
    optim = OptimSpec(name="adamw", learning_rate=1e-2, schedule="constant")
    module = SftModule(ModelSpec(source=str(base)), LoraSpec(rank=4, alpha=8.0, dropout=0.0, **changes), optim)
    fit(module, [step_batch([[random_rows(6, seed)]]) for seed in range(2)])
    module.save_adapter(folder)
    module.model.set_attn_implementation("sdpa")
    return Trained(kind, base, folder, module, logits(module.model))


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(base, tmp_path_factory.mktemp("adapter"), request.param, **KINDS[request.param])


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_a_saved_adapter_on_the_untouched_base_is_the_model_that_trained(trained: Trained) -> None:
    plain = AutoModelForCausalLM.from_pretrained(trained.base)
    assert distance(logits(plain), trained.logits) > 0.03
    theirs = PeftModel.from_pretrained(plain, trained.adapter)
    assert distance(logits(theirs), trained.logits) < TOLERANCE
    assert distance(logits(load_for_inference(found_of(trained))), trained.logits) < TOLERANCE


def test_a_merged_folder_alone_is_the_model_that_trained(trained: Trained, tokenizer: Any, tmp_path: Path) -> None:
    report = merge(found_of(trained), None, tmp_path / "merged", tokenizer)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert distance(logits(merged), trained.logits) < TOLERANCE
    assert report.dtype == "float32" and report.rounding_error == 0 and report.top1_agreement == 1
    assert report.untied == ("tied" in trained.kind or "embeddings" in trained.kind)
    assert merged.config.tie_word_embeddings is not report.untied
    assert report.num_layers == (3 if "adapted" in trained.kind else 14)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == tokenizer.chat_template


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(base, tmp_path_factory.mktemp("plain"), "plain")


def test_what_a_run_trained_is_merged_into_its_base_read_anew(plain: Trained, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "of a run before").touch()
    module = plain.module
    merge_trained(module.model, module.model_spec, module.lora_spec, tmp_path / "model", tokenizer)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert distance(logits(merged), plain.logits) < TOLERANCE
    assert merged.config.use_cache
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "of a run before").exists()


def test_adapters_trained_one_on_the_other_are_merged_in_their_order(
    plain: Trained, tokenizer: Any, tmp_path: Path
) -> None:
    second = train(plain.base, tmp_path / "second", "stacked", adapter_path=str(plain.adapter), use_dora=True)
    merge(found_of(plain, plain.adapter, second.adapter), "float32", tmp_path / "merged", tokenizer)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert distance(logits(merged), second.logits) < TOLERANCE
    assert distance(logits(merged), plain.logits) > 0.01
    spec = second.module.lora_spec
    merge_trained(second.module.model, second.module.model_spec, spec, tmp_path / "again", tokenizer)
    assert distance(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), second.logits) < TOLERANCE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_lose_what_the_report_says(plain: Trained, tokenizer: Any, tmp_path: Path, dtype: str) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(plain.base).to(getattr(torch, dtype)).save_pretrained(base)
    found = FoundModel(base=str(base), adapters=(plain.adapter,), tokenizer="")
    report = merge(found, None, tmp_path / "merged", tokenizer)

    exact_model = load_for_inference(found)  # on a CPU in float32
    exact = exact_model.state_dict()
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert all(torch.equal(value, exact[name].to(getattr(torch, dtype))) for name, value in written.items())
    rounded_model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():  # both in float32, so that only the weights' rounding is seen
        probes = merging._probe_ids(tokenizer, exact_model)
        got, expected = (torch.cat([m(ids).logits[0] for ids in probes]) for m in (rounded_model, exact_model))
    assert report.logit_difference == pytest.approx(distance(got, expected), rel=1e-2)
    adapted = [name for name in start if "_proj" in name]
    error = sum((written[name].float() - exact[name]).square().sum() for name in adapted) ** 0.5
    update = sum((exact[name] - start[name]).square().sum() for name in adapted) ** 0.5
    assert report.rounding_error == pytest.approx((error / update).item(), rel=1e-3) and report.rounding_error > 1e-3
    assert report.dtype == dtype and 0 < report.mean_kl < 1e-3 < report.update_kl

    in_float32 = merge(found, "float32", tmp_path / "merged", tokenizer)  # an earlier merge gives way
    assert in_float32.rounding_error == 0 and in_float32.logit_difference < TOLERANCE
    assert json.loads((tmp_path / "merged" / MERGE_RECORD).read_text())["dtype"] == "float32"


def test_an_adapter_is_not_rounded_to_the_dtype_of_its_base(plain: Trained, tmp_path: Path) -> None:
    from surogate.models import lora

    half = AutoModelForCausalLM.from_pretrained(plain.base, dtype=torch.bfloat16)
    loaded = lora.load_adapter(half, plain.adapter).state_dict()
    expected = plain.module.model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items() if "lora_" in name)


def test_a_merge_that_went_wrong_leaves_nothing(
    plain: Trained, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = merging.write_model

    def write_wrong(model: Any, *args: Any) -> None:
        model.model.norm.weight.data[0] += 0.1
        write(model, *args)

    monkeypatch.setattr(merging, "write_model", write_wrong)
    with pytest.raises(ModelError, match=r"logits differ .* nothing was written"):
        merge(found_of(plain), None, tmp_path / "merged", tokenizer)
    assert not list(tmp_path.iterdir())


def test_only_an_earlier_merge_is_replaced_unasked(plain: Trained, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ModelError, match=r"is not an earlier merge.*--output.*--force"):
        merge(found_of(plain), None, tmp_path, tokenizer)
    assert (tmp_path / "thesis.txt").exists()


def test_a_base_without_an_adapter_and_a_broken_adapter_are_refused(
    plain: Trained, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="nothing to merge"):
        merge(FoundModel(base=str(plain.base), tokenizer=""), None, tmp_path / "merged", tokenizer)
    broken = get_peft_model(AutoModelForCausalLM.from_pretrained(plain.base), LoraConfig(target_modules=["q_proj"]))
    broken.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.data.fill_(torch.nan)
    broken.save_pretrained(str(tmp_path / "broken"), save_embedding_layers=False)
    with pytest.raises(ModelError, match="not a number"):
        merge(found_of(plain, tmp_path / "broken"), None, tmp_path / "merged", tokenizer)


def test_generation_settings_that_transformers_would_not_write_are_kept(
    plain: Trained, tokenizer: Any, tmp_path: Path
) -> None:
    AutoModelForCausalLM.from_pretrained(plain.base).save_pretrained(tmp_path / "base")
    settings = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": [3, 4]}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(settings))
    found = FoundModel(base=str(tmp_path / "base"), adapters=(plain.adapter,), tokenizer="")
    merge(found, None, tmp_path / "merged", tokenizer)
    kept = GenerationConfig.from_pretrained(tmp_path / "merged").to_dict()
    assert {key: kept[key] for key in settings} == settings and kept["do_sample"]


def test_the_report_is_plain(plain: Trained, tokenizer: Any, tmp_path: Path) -> None:
    report = merge(found_of(plain), "bfloat16", tmp_path / "merged", tokenizer)
    text = str(report)
    assert f"14 layers merged into {plain.base}, in bfloat16" in text
    assert f"by {report.rounding_error:.2%} of what" in text and "KL" in text and "float32" not in text
    rough = replace(report, mean_kl=0.2 * report.update_kl)
    assert "merge with --dtype float32" in str(rough)
