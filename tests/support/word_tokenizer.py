"""A tokenizer of whole words, so that a test can give each row a token of its own and read it back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

COMMON_WORDS = ["<pad>", "<user>", "<assistant>", "<end>", "word"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def save_word_tokenizer(folder: Path, words: Sequence[str]) -> Path:
    """Write a tokenizer folder; the ids are the places in COMMON_WORDS and then in `words`."""
    vocabulary = {word: i for i, word in enumerate([*COMMON_WORDS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder
