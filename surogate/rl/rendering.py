"""Rendering: what a tokenizer makes of texts, as plain values that two processes can compare.

What is not here: what is sampled after a prompt (policy.py). The one idea: prompts become tokens once, in the
orchestrator. Whoever else handles them must mean the same by them: the trainer, whose adapter is used with the
trainer's tokenizer later, and the engine, which ends a completion where its own model ends texts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surogate.errors import ConfigError, DataError, ModelError
from surogate.rl.types import Message

_TEXT = "What is 7 + 5?\nA naïve guess: 13."
_CONVERSATION: list[Message] = [
    {"role": "user", "content": "What is 7 + 5?"},
    {"role": "assistant", "content": "12"},
    {"role": "user", "content": "And 3 more?"},
]


def prompt_tokens(tokenizer: Any, prompt: str | list[Message], options: Mapping[str, Any]) -> list[int]:
    """Return the tokens of a prompt: text as it is, messages by the chat template and with the start of a reply.

    Args:
        tokenizer: the model's.
        prompt: text or messages.
        options: of the chat template.

    Raises:
        DataError: there are messages, and no chat template.
    """
    if not isinstance(prompt, str):
        if tokenizer.chat_template is None:
            raise DataError(
                "The tokenizer has no chat template, and the environment asks in messages. Use an environment with "
                "plain text prompts, or a tokenizer with a template."
            )
        return list(
            tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False, **dict(options))
        )
    # As a text of the training data begins: with the tokenizer's own first token, where it has one. But a tokenizer
    # that ends texts by itself would have the policy go on after the end.
    ids = list(tokenizer(prompt).input_ids)
    is_ended = tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id]
    return ids[:-1] if is_ended and len(ids) > 1 and not prompt.endswith(tokenizer.eos_token) else ids


def check_template_options(tokenizer: Any, options: Mapping[str, Any]) -> None:
    """Refuse options that the chat template does not mention; it would ignore them without a word.

    Args:
        tokenizer: the model's.
        options: sampling.chat_template_kwargs.

    Raises:
        ConfigError: it has no template, or one that does not mention an option.
    """
    if not options:
        return
    if tokenizer.chat_template is None:
        raise ConfigError(
            "sampling.chat_template_kwargs is set, and the tokenizer has no chat template to take it. Remove it."
        )
    words = set(re.findall(r"\w+", str(tokenizer.get_chat_template())))
    unknown = [name for name in options if name not in words]
    if unknown:
        raise ConfigError(
            f"sampling.chat_template_kwargs has {', '.join(unknown)}, and the model's chat template knows no such "
            "option. Correct its name, or remove it."
        )


def rendering(tokenizer: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a tokenizer writes a text and a conversation, and the digest of its vocabulary.

    Args:
        tokenizer: the model's.
        options: of the chat template.
    """
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    has_template = tokenizer.chat_template is not None
    return {
        "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "tokens of a plain text": prompt_tokens(tokenizer, _TEXT, {}),
        "chat template": prompt_tokens(tokenizer, _CONVERSATION, options) if has_template else None,
        "end token": tokenizer.eos_token_id,
    }


def check_same_rendering(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Refuse an orchestrator whose prompts are other tokens than the trainer's tokenizer would write.

    Args:
        mine: rendering of the trainer's tokenizer.
        theirs: of the orchestrator's.

    Raises:
        ModelError: they differ; it names the first thing in which they do.
    """
    for name, value in mine.items():
        if theirs[name] != value:
            raise ModelError(
                f"The orchestrator and the trainer do not write the same prompts: the {name} of their tokenizers "
                "differ. Name one model in model.name of orch.yaml and in model (or tokenizer) of train.yaml."
            )


def check_engine_tokens(tokenizer: Any, engine_tokenizer: Any, folder: Path) -> None:
    """Refuse a tokenizer whose tokens mean something else to the engine, or that ends texts where the engine does not.

    Args:
        tokenizer: of the trainer; it may know more tokens than the engine's.
        engine_tokenizer: of the folder.
        folder: that the engine serves.

    Raises:
        ModelError: they do not fit.
    """
    vocabulary = tokenizer.get_vocab()
    moved = [token for token, index in engine_tokenizer.get_vocab().items() if vocabulary.get(token) != index]
    if moved:
        raise ModelError(
            f"The run's tokenizer and that of {folder}, which the engine serves, give {len(moved)} tokens other "
            f"numbers, for example {sorted(moved)[0]!r}, so prompts would be other words to the model. Remove "
            "tokenizer from train.yaml, or name one made from the model's own."
        )
    ends = {engine_tokenizer.eos_token_id, *_configured_ends(folder)}
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        raise ModelError(
            f"The run's tokenizer ends a text with {tokenizer.eos_token!r}, and the engine, which serves {folder}, "
            "does not stop there, so every completion would run to max_tokens. Remove tokenizer from train.yaml, or "
            f"add {tokenizer.eos_token_id} to eos_token_id in the model's generation_config.json."
        )


def _configured_ends(folder: Path) -> set[int]:
    """Return the end tokens of generation_config.json, or of config.json where there is none, as vLLM reads them."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            ends = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
            return set(ends) if isinstance(ends, list) else set() if ends is None else {ends}
    return set()
