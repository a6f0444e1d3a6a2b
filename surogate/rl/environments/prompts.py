"""Prompts from a file, folder, URL or hub data set, with the columns that a reward may ask for.

What is not here: how files are read (data/sources.py). The one idea: a row is a prompt, as text or as messages, and
everything else in it is a column for the reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jsonargparse.typing import PositiveInt

from surogate.config.parts import DatasetSpec
from surogate.data.files import TextFile
from surogate.data.sources import SourceRow, open_source
from surogate.errors import ConfigError, DataError
from surogate.locations import resolve
from surogate.rl.types import Message

_PROMPT_COLUMNS = ("prompt", "question", "problem", "instruction")
_MESSAGE_COLUMNS = ("messages", "conversations")
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True)
class PromptArgs:
    """Arguments of every environment that can read its prompts."""

    path: str | None = None
    """Rows of jsonl, json, csv or parquet: a file, a folder, `pkg://package/file`, a URL or a hub id."""
    subset: str | None = None
    """Of a hub data set or folder."""
    split: str = "train"
    """Of a hub data set or folder."""
    num_examples: PositiveInt | None = None
    """Rows that are read. Default: all."""
    prompt_field: str | None = None
    """Column with the prompt as text. Default: prompt, question, problem or instruction, whichever there is."""
    messages_field: str | None = None
    """Column with the prompt as messages, instead of prompt_field; a reply at their end becomes the column `reply`."""
    prompt: Literal["chat", "plain"] = "chat"
    """chat: a prompt of text is a user's message; plain: it is tokenised as it stands."""
    system_prompt: str | None = None
    """A first message before each chat prompt that has none; '' for no such message. Default: the environment's."""

    usual_system_prompt: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if self.prompt_field is not None and self.messages_field is not None:
            raise ValueError("prompt_field and messages_field are both set; a prompt is one or the other.")
        if self.prompt == "plain" and (self.system_prompt or self.messages_field is not None):
            raise ValueError("prompt is plain, and system_prompt and messages_field belong to prompt: chat.")
        if self.path is None:
            self._check_without_path()

    def _check_without_path(self) -> None:
        """Refuse what the built-in prompts of an environment do not have.

        Raises:
            ValueError: they do not have it.
        """
        if self.prompt == "plain":
            raise ValueError("prompt is plain, and the built-in problems are asked in chat; set path.")

    @property
    def first_message(self) -> str | None:
        """Text of the system's message, None for no such message."""
        return (self.usual_system_prompt if self.system_prompt is None else self.system_prompt) or None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and the columns of its row."""

    prompt: str | list[Message]
    columns: dict[str, Any]


def check_path(args: PromptArgs, env_id: str) -> None:
    """Look whether there is something at a path, without reading it; a hub id or a URL is not looked up.

    Raises:
        ConfigError: there is nothing.
    """
    if args.path is not None:
        try:
            resolve(args.path, ConfigError, urls=True)
        except ConfigError as error:
            raise ConfigError(f"environment {env_id!r}: args.path {error}") from None


def read_prompts(args: PromptArgs) -> list[Prompt]:
    """Read all prompts.

    Args:
        args: with a path.

    Raises:
        DataError: the data cannot be read, a column is missing, or a prompt is none; with the row's place.
    """
    assert args.path is not None
    source = open_source(DatasetSpec(path=args.path, subset=args.subset, split=args.split, samples=args.num_examples))
    columns = source.columns()
    field, is_messages = _field(args, columns, source.name)
    return [_prompt(row, field, is_messages, args) for row in source.rows()]


def chat(text: str, system_prompt: str | None = None) -> list[Message]:
    """Return a user's message, after the system's where there is one."""
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    return [*system, {"role": "user", "content": text}]


def _field(args: PromptArgs, columns: Sequence[str], name: str) -> tuple[str, bool]:
    asked = args.prompt_field or args.messages_field
    known = (*_MESSAGE_COLUMNS, *_PROMPT_COLUMNS) if args.prompt == "chat" else _PROMPT_COLUMNS
    found = [asked] if asked else [column for column in known if column in columns]
    if not found or found[0] not in columns:
        what = f"no column {asked!r}" if asked else f"none of the columns {', '.join(known)}"
        raise DataError(
            f"{name}: there is {what}; its columns are {', '.join(columns)}. Set prompt_field or messages_field to one."
        )
    return found[0], found[0] == args.messages_field or (not asked and found[0] in _MESSAGE_COLUMNS)


def _prompt(row: SourceRow, field: str, is_messages: bool, args: PromptArgs) -> Prompt:
    columns = {name: str(value) if isinstance(value, TextFile) else value for name, value in row.values.items()}
    value = columns.pop(field, None)
    if is_messages:
        messages = _messages(value, row.origin, field)
        if messages[-1]["role"] == "assistant":
            columns["reply"] = messages.pop()["content"]
        if not messages:
            raise DataError(f"{row.origin}: {field} holds nothing but a reply; there must be a user's message before.")
        if args.first_message is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": args.first_message})
        return Prompt(messages, columns)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.origin}: {field} is {value!r}; a prompt must be text that is not empty.")
    return Prompt(chat(value, args.first_message) if args.prompt == "chat" else value, columns | {field: value})


def _messages(value: Any, origin: str, field: str) -> list[Message]:
    fits = (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(
            isinstance(message, dict) and message.get("role") in _ROLES and isinstance(message.get("content"), str)
            for message in value
        )
    )
    if not fits:
        raise DataError(
            f"{origin}: {field} must be a list of messages, each with a role ({', '.join(_ROLES)}) and a content that "
            "is text."
        )
    return [dict(message) for message in value]
