"""What `surogate chat` and `surogate generate` share: their options, and an answerer that holds model and tokenizer."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from surogate.errors import ModelError

if TYPE_CHECKING:
    from surogate.models.inference import FoundModel

log = logging.getLogger(__name__)


@cache
def _say_once(message: str) -> None:
    log.warning(message)


def add_options(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """Add the options of both verbs to a parser."""
    parser.add_argument(
        "location", metavar="RUN_OR_MODEL", help="folder of a run or adapter, or a model: folder, .gguf, pkg://, hub id"
    )
    parser.add_argument("--system", metavar="TEXT", help="system prompt; default the run's own")
    parser.add_argument("--max_new_tokens", type=_positive, default=max_new_tokens, help="default %(default)s")
    parser.add_argument(
        "--temperature", type=_not_negative, default=0.0, help="0 = the likeliest token each time; default %(default)s"
    )
    parser.add_argument("--seed", type=int, default=1234, help="of sampling; default %(default)s")


class Answerer:
    """A loaded model that answers conversations, as its run was trained to.

    Args:
        options: parsed options of `add_options`.
        adapter: folder of an adapter or run to use instead of the location's own.

    Raises:
        ModelError: the adapter is of another base, or was trained with another tokenizer.
    """

    def __init__(self, options: argparse.Namespace, adapter: str | None = None) -> None:
        import torch

        from surogate.models.inference import find_model

        self._options = options
        self._tokenizers: dict[str, Any] = {}
        found = find_model(options.location, adapter)
        self._own = found if adapter is None else _without_adapter(options.location, found)
        self._speak_as(found)
        torch.manual_seed(options.seed)

    def _speak_as(self, found: FoundModel) -> None:
        """Take on a model, its tokenizer and its chat settings."""
        from surogate.data.chat import ChatRenderer
        from surogate.models.adapter_switch import check_base

        tokenizer = self._tokenizer_of(found)
        for folder in found.adapters:
            check_base(folder, found.base)
        if tokenizer.get_vocab() != self._tokenizer_of(self._own).get_vocab():
            raise ModelError(
                f"adapter: {found.adapters[-1]} was trained with another tokenizer than that of {self._own.tokenizer}, "
                "so its token ids mean other words here."
            )
        system = self._options.system
        chat = found.chat if system is None else replace(found.chat, system=system)
        if chat.use_chat_template and not (chat.template or tokenizer.chat_template):
            _say_once(f"{self._options.location} has no chat template: prompts are continued as plain text")
            chat = replace(chat, use_chat_template=False)
        renderer = ChatRenderer(tokenizer, chat)
        self._model = self._load(found)
        self.tokenizer, self._renderer = tokenizer, renderer
        self._ends = {token for token in (tokenizer.eos_token_id, renderer.end_token_id()) if token is not None}

    def _tokenizer_of(self, found: FoundModel) -> Any:
        from surogate.data.tokenizers import load_tokenizer

        if found.tokenizer not in self._tokenizers:
            self._tokenizers[found.tokenizer] = load_tokenizer(found.tokenizer, found.trust_remote_code)
        return self._tokenizers[found.tokenizer]

    def _load(self, found: FoundModel) -> Any:
        from surogate.models.inference import load_for_inference

        return load_for_inference(found)

    def answer(self, messages: Sequence[dict[str, Any]], *, stream: bool = False) -> str:
        """Return the next message of a conversation, printing it while it is written with `stream`."""
        return self._continue(self._renderer.prompt_ids(messages), stream).strip()

    def go_on(self, text: str) -> str:
        """Return what follows a text, without any template."""
        return self._continue(list(self.tokenizer(text).input_ids), stream=False)

    def _continue(self, prompt_ids: list[int], stream: bool) -> str:
        from transformers import TextStreamer

        from surogate.models.inference import generate_ids

        ids = generate_ids(
            self._model,
            prompt_ids,
            self._ends,
            max_new_tokens=self._options.max_new_tokens,
            temperature=self._options.temperature,
            streamer=TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None,
        )
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def _without_adapter(location: str, found: FoundModel) -> FoundModel:
    """Return what a location holds by itself, or what was found with an adapter where it lacks its own."""
    from surogate.models.inference import find_model

    try:
        return find_model(location)
    except ModelError:
        return found


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _not_negative(text: str) -> float:
    if (value := float(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value
