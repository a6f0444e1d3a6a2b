"""Conversations to tokens: which text a chat template makes of them, and which of its tokens are supervised.

What lives here: rendering, the loss mask, tokenising. Not here: reading rows into messages (formats.py), length limits
and packing (datamodule.py, packing.py).

The one idea: **the loss mask comes from rendering prefixes.** An assistant turn is what the template adds between the
prompt a model would be given (the messages before it, with the generation prompt) and the end token of that turn. No
marker in the template is needed, and every supervised token follows exactly the text that precedes it at inference.
Tokens are never told apart by id: where pad == eos, the end token is supervised like any other.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError

from surogate.batches import TokenRow
from surogate.config.parts import ChatSpec
from surogate.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

Message = dict[str, Any]

_SYSTEM_ROLES = ("system", "developer")
_NO_END = (
    "the chat template ends an assistant turn without a special token (it ends with %r; the tokenizer's eos is %r), so "
    "the model cannot learn to stop; put eos_token behind the content in template:"
)
_NO_THINKING = (
    "the chat template leaves out the reasoning_content of message %d, and the model learns to answer without it; "
    "set template: to one that renders it if that is not meant"
)


@dataclass(frozen=True, slots=True)
class RenderedTurn:
    """One supervised assistant turn, rendered as the last of its conversation.

    Attributes:
        text: the conversation up to and with this turn's end token.
        start: the character at which the supervised answer starts; it goes to the end of `text`.
    """

    text: str
    start: int


class ChatRenderer:
    """Renders conversations with a chat template and marks what the model must learn to write.

    With `use_chat_template: false` a conversation is the plain concatenation of its messages' contents: after the BOS
    that the tokenizer itself would add, prompts are unsupervised, and each answer is followed by the EOS text and
    supervised with it.

    Args:
        tokenizer: the model's own.
        spec: template, system prompt and what is supervised.

    Raises:
        ConfigError: `response_prefix` together with `loss_scale: all`.
        DataError: there is no chat template, or `template` is neither a file nor Jinja text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, spec: ChatSpec) -> None:
        if spec.response_prefix and spec.loss_scale == "all":
            raise ConfigError(
                "response_prefix leaves text unsupervised, loss_scale: all supervises everything; "
                "remove one of them (loss_scale: default supervises the assistant turns)"
            )
        self._tokenizer = tokenizer
        self._spec = spec
        self.template = read_template(spec.template) if spec.template else None
        """Jinja text of the configuration, where it overrides the tokenizer's own."""
        if spec.use_chat_template and not (self.template or tokenizer.chat_template):
            raise DataError(
                f"the tokenizer of '{tokenizer.name_or_path}' has no chat template; set template: to Jinja text or to "
                "the path of a .jinja file, or use_chat_template: false to concatenate the messages as they are"
            )
        specials = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._specials = tuple(specials.union(tokenizer.all_special_tokens))
        self._plain_bos = tokenizer.bos_token if adds_bos(tokenizer) else ""
        self.warnings: dict[str, str] = {}
        """What was warned of so far, by kind."""

    def encode(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> list[TokenRow]:
        """Tokenise a conversation and mark its supervised tokens.

        A conversation is one row, cut after its last supervised token. Where the template renders a turn differently
        once more follow (drops its thinking, changes its end token), each supervised turn becomes a row of its own,
        rendered as the last turn, which is how the model will be asked for it.

        A turn with `train: false` is not supervised; nor is an assistant turn that opens the conversation, because it
        answers no prompt. A conversation without a supervised turn is one row with an empty mask.

        Args:
            messages: dicts with role, content and what else the template reads (tool_calls, reasoning_content, ...).
            tools: JSON schemas of the functions that the assistant may call.

        Raises:
            DataError: the template refuses the conversation, leaves out a tool call, or starts an answer differently
                from its own generation prompt; the message shows the first differing place.
        """
        cleaned = self._clean(messages)
        if self._spec.loss_scale == "all":
            if any(message.get("train") is False for message in messages):
                raise DataError("a message has train: false, but loss_scale: all supervises every token; set default")
            text = self._render(cleaned, tools)
            return [self._tokenise(text, [(0, len(text))])]
        turns = [self._render_turn(cleaned, i, tools) for i in self._supervised(messages, cleaned)]
        if not turns:
            return [self._tokenise(self._render(cleaned, tools), [])]
        last = turns[-1].text
        if all(last.startswith(turn.text) for turn in turns):
            return [self._tokenise(last, [(turn.start, len(turn.text)) for turn in turns])]
        return [self._tokenise(turn.text, [(turn.start, len(turn.text))]) for turn in turns]

    def prompt_text(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> str:
        """Render what a model is given to answer: generation prompt and response_prefix included."""
        prompt = self._render(self._clean(messages), tools, generation_prompt=True)
        return prompt + self._opening(prompt)

    def prompt_ids(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Tokenise `prompt_text`."""
        return self._ids(self.prompt_text(messages, tools))

    def warn_once(self, kind: str, warning: str) -> None:
        """Warn, unless that was done of the same kind."""
        if kind not in self.warnings:
            self.warnings[kind] = warning
            log.warning("%s", warning)

    def end_token_id(self) -> int | None:
        """Return the token that ends an answer of this template, None where it has none."""
        turn = self._render_turn([{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], 1, None)
        return self._ids(turn.text)[-1] if turn.text.endswith(self._specials) else None

    def _clean(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages as templates expect them, with the system prompt of the configuration."""
        if not messages:
            raise DataError("the conversation has no messages; give at least one with role and content")
        cleaned = [_clean_message(message) for message in messages]
        if self._spec.system is not None and all(message["role"] not in _SYSTEM_ROLES for message in cleaned):
            cleaned.insert(0, {"role": "system", "content": self._spec.system})
        return cleaned

    def _supervised(self, messages: Sequence[Message], cleaned: list[Message]) -> list[int]:
        """List the positions in `cleaned` of the turns to supervise."""
        inserted = len(cleaned) - len(messages)
        assistant = [i + inserted for i, message in enumerate(messages) if message["role"] == "assistant"]
        if self._spec.loss_scale == "last_round":
            assistant = assistant[-1:]
        opens = 1 if self._spec.use_chat_template else 0
        return [i for i in assistant if i >= opens and messages[i - inserted].get("train") is not False]

    def _render(self, messages: list[Message], tools: Any, *, generation_prompt: bool = False) -> str:
        if not self._spec.use_chat_template:
            return self._concatenate(messages)
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages,
                tools=tools or None,
                chat_template=self.template,
                add_generation_prompt=generation_prompt,
                tokenize=False,
            )
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"the chat template refuses a conversation of {roles}: {error}; "
                "change the messages, or set template: to one that takes them"
            ) from error
        return str(rendered)

    def _concatenate(self, messages: list[Message]) -> str:
        eos = self._tokenizer.eos_token or ""
        texts = [f"{message['content']}{eos if message['role'] == 'assistant' else ''}" for message in messages]
        return self._plain_bos + "".join(texts)

    def _render_turn(self, messages: list[Message], i: int, tools: Any) -> RenderedTurn:
        prompt = self._render(messages[:i], tools, generation_prompt=True)
        rendered = self._render(messages[: i + 1], tools)
        if not rendered.startswith(prompt):
            raise DataError(_unstable(prompt, rendered, i))
        answer = rendered[len(prompt) :]
        answer = answer[: self._answer_len(answer, messages[i])]
        _check_names(messages[i].get("tool_calls"), answer, f"the tool call of message {i + 1}")
        _check_names(tools, prompt, "the tools of the conversation")
        if str(messages[i].get("reasoning_content", "")).strip() not in answer:
            self.warn_once("thinking", _NO_THINKING % (i + 1))
        opening = self._opening(prompt)
        head = prompt + opening
        return RenderedTurn(head + answer.removeprefix(opening), len(head))

    def _opening(self, prompt: str) -> str:
        """Return the response_prefix, empty where the generation prompt ends with it already."""
        opening = self._spec.response_prefix or ""
        return "" if prompt.endswith(opening) else opening

    def _answer_len(self, answer: str, message: Message) -> int:
        """Count the characters of an answer with its end token, without what the template puts behind it."""
        ends: list[tuple[int, int]] = []
        rest = answer.rstrip()
        while rest.endswith(self._specials):
            size = max(len(token) for token in self._specials if rest.endswith(token))
            ends.append((len(rest) - size, len(rest)))
            rest = rest[:-size].rstrip()
        if not ends:
            self.warn_once("end", _NO_END % (answer[-20:], self._tokenizer.eos_token))
            return len(answer)
        content = message["content"].strip() if isinstance(message["content"], str) else ""
        found = answer.find(content)
        if content and found >= 0 and not message.get("tool_calls"):
            # Some templates end the last turn twice ("<|end|>\n<|endoftext|>"): generation stops at the first.
            after = [end for start, end in ends if start >= found + len(content)]
            return after[-1] if after else ends[0][1]
        return ends[0][1]

    def _ids(self, text: str) -> list[int]:
        # The template brings BOS: add_special_tokens would put a second one in front.
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _tokenise(self, text: str, spans: list[tuple[int, int]]) -> TokenRow:
        """Tokenise a text and supervise the character spans, which are in order and apart.

        The row must start with exactly the ids that the model is given as a prompt. Offsets cannot tell: they leave out
        leading spaces, and a pre-tokenizer may cut "\n\n" differently once a word follows. So the text is tokenised
        whole and in pieces, and where they differ the pieces are taken.
        """
        cuts = sorted({0, len(text)}.union(*spans))
        pieces = [self._ids(text[a:b]) for a, b in pairwise(cuts)]
        edges = np.cumsum([0] + [len(piece) for piece in pieces]).tolist()
        ids, whole = list(chain(*pieces)), self._ids(text)
        if ids != whole:
            # A tokenizer that puts a space in front of every text would put one inside this row, piece by piece.
            heads = [self._ids(text[:cut]) for cut in cuts]
            if all(whole[: len(head)] == head for head in heads):
                ids, edges = whole, [len(head) for head in heads]
        token_at = dict(zip(cuts, edges, strict=True))
        mask = np.zeros(len(ids), dtype=bool)
        for start, end in spans:
            mask[token_at[start] : token_at[end]] = True
        mask[:1] = False
        return TokenRow(np.array(ids, dtype=np.int32), mask)


def read_template(template: str) -> str:
    """Return the Jinja text that `template:` means: itself, or the content of the file it names."""
    if "{" in template:
        return template
    path = Path(template).expanduser()
    if not path.is_file():
        raise DataError(f"template: '{template}' is neither Jinja text nor an existing .jinja file")
    return path.read_text(encoding="utf-8")


def adds_bos(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Tell whether the tokenizer itself puts BOS in front of a text."""
    return tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]


def _clean_message(message: Message) -> Message:
    """Drop `train` and the nulls that columnar files fill in; give templates text and dicts where they expect them.

    Null content would be rendered as "None", and arguments that are JSON text would be encoded twice.
    """
    if not isinstance(message.get("role"), str):
        raise DataError(f"a message has no role, only {sorted(message)}; message_property_mappings can name its column")
    cleaned = {key: value for key, value in message.items() if value is not None and key != "train"}
    cleaned.setdefault("content", "")
    if cleaned.get("tool_calls"):
        cleaned["tool_calls"] = [_clean_call(call) for call in cleaned["tool_calls"]]
    return cleaned


def _clean_call(call: dict[str, Any]) -> dict[str, Any]:
    if isinstance(call.get("function"), dict):
        return {**call, "function": _clean_call(call["function"])}
    if not isinstance(call.get("arguments"), str):
        return call
    try:
        return {**call, "arguments": json.loads(call["arguments"])}
    except json.JSONDecodeError as error:
        raise DataError(f"the arguments of a tool call are not JSON: {call['arguments']!r} ({error})") from error


def _check_names(functions: list[dict[str, Any]] | None, text: str, what: str) -> None:
    """Refuse a template that leaves out functions, which would teach the model to call nothing."""
    for function in functions or []:
        name = function.get("function", function).get("name", "")
        if name not in text:
            raise DataError(f"the chat template leaves out {what} ('{name}'); set template: to one that renders it")


def _unstable(prompt: str, rendered: str, i: int) -> str:
    at = next((k for k, pair in enumerate(zip(prompt, rendered, strict=False)) if pair[0] != pair[1]), len(rendered))
    around = slice(max(at - 20, 0), at + 20)
    return (
        f"the chat template starts message {i + 1} (assistant) differently from its own generation prompt, at "
        f"character {at}: the prompt has {prompt[around]!r}, the conversation has {rendered[around]!r}; "
        "set template: to one that keeps them alike, or train: false for this message"
    )
