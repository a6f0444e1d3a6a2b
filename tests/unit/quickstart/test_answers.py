"""Batched answers are those of one question at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from surogate.models.inference import find_model
from surogate.quickstart import answers

TEMPLATE = "{% for m in messages %}{{ m.content }}|{% endfor %}"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random byte-level model whose pad token is its end token, as SmolLM2's is."""
    folder = tmp_path_factory.mktemp("model")
    vocab = {token: i for i, token in enumerate(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(["<end>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", pad_token="<end>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(vocab), max_position_embeddings=128, initializer_range=0.5, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_padding_and_batching_change_no_answer(model_dir: Path, monkeypatch: pytest.MonkeyPatch):
    questions = ["a", "a longer question", "b?", "and one that is longer still", "c"]
    found = find_model(str(model_dir))
    monkeypatch.setattr(answers, "BATCH_SIZE", 3)
    together = answers.answer_all(found, questions)
    alone = [answers.answer_all(found, [question])[0] for question in questions]
    assert together == alone
    assert len(set(together)) > 1
