"""What `surogate chat` and `surogate generate` share: their options, and an answerer that holds model and tokenizer."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

log = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """Add the options of both verbs to a parser."""
    parser.add_argument(
        "location", metavar="RUN_OR_MODEL", help="folder of a run or adapter, or a model: folder, .gguf, pkg://, hub id"
    )
    parser.add_argument("--adapter", metavar="DIR", help="adapter to use instead of the run's own")
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
    """

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from surogate.data.chat import ChatRenderer
        from surogate.data.tokenizers import load_tokenizer
        from surogate.models.inference import find_model, load_for_inference

        found = find_model(options.location, options.adapter)
        self.tokenizer = load_tokenizer(found.tokenizer, found.trust_remote_code)
        chat = found.chat if options.system is None else replace(found.chat, system=options.system)
        if chat.use_chat_template and not (chat.template or self.tokenizer.chat_template):
            log.warning("%s has no chat template: prompts are continued as plain text", options.location)
            chat = replace(chat, use_chat_template=False)
        self._renderer = ChatRenderer(self.tokenizer, chat)
        self._model = load_for_inference(found)
        self._max_new_tokens: int = options.max_new_tokens
        self._temperature: float = options.temperature
        ends = {self.tokenizer.eos_token_id, self._renderer.end_token_id()}
        self._ends = {token for token in ends if token is not None}
        torch.manual_seed(options.seed)

    def answer(self, messages: Sequence[dict[str, Any]], *, stream: bool = False) -> str:
        """Return the next message of a conversation, printing it while it is written with `stream`."""
        from transformers import TextStreamer

        from surogate.models.inference import generate_ids

        ids = generate_ids(
            self._model,
            self._renderer.prompt_ids(messages),
            self._ends,
            max_new_tokens=self._max_new_tokens,
            temperature=self._temperature,
            streamer=TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None,
        )
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _not_negative(text: str) -> float:
    if (value := float(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value
