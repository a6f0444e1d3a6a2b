"""The real SmolLM2-135M-Instruct with an adapter merged into it answers as PEFT does with base and adapter apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.smollm2 import GGUF, save_smollm2
from transformers import AutoModelForCausalLM

from surogate.config.parts import LoraSpec, ModelSpec
from surogate.data.tokenizers import load_tokenizer
from surogate.models import lora
from surogate.models.inference import FoundModel, load_for_inference
from surogate.models.load import load_model
from surogate.models.merge import LOGIT_TOLERANCE, built_in_rows, merge
from surogate.models.stored_base import StoredBase
from surogate.models.stored_merge import Wanted, merge_stored
from surogate.quant.nf4 import Nf4Format

COUNTRIES = (
    "France Italy Spain Norway Sweden Finland Denmark Iceland Ireland Poland Austria Hungary Greece Turkey Egypt Kenya "
    "Ghana Nigeria Morocco Ethiopia India China Japan Thailand Vietnam Nepal Mongolia Iran Iraq Israel Canada Mexico "
    "Cuba Peru Chile Brazil Argentina Bolivia Australia Fiji"
)
PROMPTS = [f"Question: What is the capital of {country}?\nAnswer:" for country in COUNTRIES.split()]
NEW_TOKENS = 12
BFLOAT16_TOLERANCE = 3e-2
"""Of logits relative to the largest: bitsandbytes multiplies in bfloat16 on a CPU."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a float32 safetensors folder, converted by transformers alone."""
    folder = save_smollm2(tmp_path_factory.mktemp("smollm2"))
    load_tokenizer(GGUF).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def found(base: Path, tmp_path_factory: pytest.TempPathFactory) -> FoundModel:
    """The model with an adapter that changes its answers and leaves them English."""
    spec = LoraSpec(rank=8, alpha=16.0, use_rslora=True)
    torch.manual_seed(torch.Generator().initial_seed())  # torch's own first seed, whatever tests ran before
    model = lora.inject(load_model(ModelSpec(source=str(base))), spec, str(base))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.012)
    folder = tmp_path_factory.mktemp("adapter")
    lora.save_adapter(model, folder)
    return FoundModel(base=str(base), adapters=(folder,), tokenizer=str(base))


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, prompts: Sequence[str] = PROMPTS) -> list[str]:
    """Greedy answers; prompts of one length go through the model together, so that nothing is padded."""
    by_len = defaultdict(list)
    for number, prompt in enumerate(prompts):
        ids = tokenizer(prompt).input_ids
        by_len[len(ids)].append((number, ids))
    texts = [""] * len(prompts)
    for group in by_len.values():
        batch = torch.tensor([ids for _, ids in group])
        output = model.eval().generate(
            input_ids=batch, attention_mask=torch.ones_like(batch), max_new_tokens=NEW_TOKENS, do_sample=False
        )
        for (number, _), ids in zip(group, output[:, batch.shape[1] :], strict=True):
            texts[number] = tokenizer.decode(ids)
    return texts


def test_forty_greedy_answers_of_the_merged_model_are_those_of_base_and_adapter(
    found: FoundModel, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(found.tokenizer)
    report = merge(found, "float32", tmp_path / "merged", tokenizer)
    assert report.num_layers == 210 and report.logit_difference < LOGIT_TOLERANCE
    merged = answers(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32), tokenizer)

    base = AutoModelForCausalLM.from_pretrained(found.base, dtype=torch.float32)
    alone = answers(base, tokenizer, PROMPTS[:8])
    both = answers(PeftModel.from_pretrained(base, found.adapters[0]), tokenizer)
    assert merged == both and len(both) == 40
    assert sum(before != after for before, after in zip(alone, both[:8], strict=True)) > 4


def test_a_merge_in_sixteen_bits_says_what_rounding_did(found: FoundModel, tmp_path: Path) -> None:
    report = merge(found, "bfloat16", tmp_path / "merged", load_tokenizer(found.tokenizer))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16
    assert 0.01 < report.rounding_error < 0.5 and report.top1_agreement > 0.9
    assert report.mean_kl < 0.01 < report.update_kl


def test_an_adapter_of_the_nf4_base_has_three_targets_and_transformers_loads_the_requantised_one(
    found: FoundModel, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(found.tokenizer)
    base, tables = StoredBase(storage=Nf4Format(), original=found.base), []
    rows, wanted = built_in_rows(tokenizer), Wanted(target="requantized", dtype="float32", force=True)
    merge_stored(found, base, rows, tmp_path / "merged", tokenizer, wanted, show=tables.append)
    (table,) = tables
    drifts = table.targets
    assert drifts["dequantized"].mean_kl < 1e-7
    # NF4 costs this model more than so small an adapter does, and the original weights say so.
    assert table.recommended == "original" and drifts["original"].loss < table.loss - 0.2
    assert 0.1 < drifts["requantized"].mean_kl < 1

    ours = load_for_inference(FoundModel(base=str(tmp_path / "merged"), tokenizer=""))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert theirs.is_loaded_in_4bit
    ids = torch.tensor([tokenizer(PROMPTS[0]).input_ids])
    with torch.no_grad():
        expected, got = ours(ids).logits, theirs(ids).logits
    assert ((got - expected).abs().max() / expected.abs().max()).item() < BFLOAT16_TOLERANCE
