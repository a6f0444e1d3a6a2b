"""Rows of any layout as documents or conversations: text, instruction, conversation, and detection from the columns.

What is not here: reading files (sources.py), a single message (messages.py) and rendering (chat.py). The one idea: all
supervised chat data is a list of messages with the standard roles; everything else is a way of spelling one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from surogate.config.not_yet import DATASET_FIELDS
from surogate.config.parts import DatasetSpec
from surogate.data.columns import column, list_of, listed, text_of
from surogate.data.files import TextFile
from surogate.data.messages import Message, functions, read_message
from surogate.data.sources import SourceRow
from surogate.errors import ConfigError, DataError
from surogate.locations import without_credentials

_MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
_BESIDE_MESSAGES = ("system", "tools")
_INSTRUCTION_COLUMNS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order.

    Attributes:
        messages: dicts with `role` (one of messages.ROLES) and `content`, and what else the row had; `train: false`
            marks a turn that is not supervised.
        tools: JSON schemas of the functions on offer, or None.
        origin: where the row stands.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    origin: str = ""


def detect_type(columns: Sequence[str], spec: DatasetSpec, *, prefers_text: bool = False) -> DatasetSpec:
    """Settle `type: auto` from the column names.

    Args:
        columns: of the first row.
        spec: of the data set.
        prefers_text: take the column of the document where there is one, whatever else the row has.

    Returns:
        The spec with a concrete type and the fields that were found.

    Raises:
        DataError: the columns fit no known layout.
    """
    if spec.type != "auto":
        return spec
    name = without_credentials(spec.path)
    named = _set_by_the_user(spec)
    for key in named:
        if key.endswith("_field") and getattr(spec, key) not in columns:
            raise DataError(
                f"{name}: {key} is {getattr(spec, key)!r}, but the data set has only the columns {listed(columns)}."
            )
    found = _detected(columns, spec, named, prefers_text)
    stray = [key for key in named if key not in DATASET_FIELDS[found.type]]
    if stray:
        type_ = next(type_ for type_, keys in DATASET_FIELDS.items() if stray[0] in keys)
        raise DataError(
            f"{name}: {stray[0]} belongs to type {type_}, but the columns {listed(columns)} were detected as "
            f"type {found.type}. Remove {stray[0]}, or set type: {type_} and name its columns."
        )
    return found


def _set_by_the_user(spec: DatasetSpec) -> list[str]:
    default = DatasetSpec()
    keys = [key for of_type in DATASET_FIELDS.values() for key in of_type]
    return [key for key in keys if getattr(spec, key) != getattr(default, key)]


def _detected(columns: Sequence[str], spec: DatasetSpec, named: Sequence[str], prefers_text: bool) -> DatasetSpec:
    """Match the columns against the known layouts; a column that the user named stands in for the usual ones."""
    text = [replace(spec, type="text")] if spec.text_field in columns else []
    if text and (named == ["text_field"] or (prefers_text and not set(named) - {"text_field"})):
        return text[0]
    turns = [spec.messages_field] if "messages_field" in named else _MESSAGE_COLUMNS
    beside: dict[str, Any] = {
        f"{name}_field": name for name in _BESIDE_MESSAGES if name in columns and not getattr(spec, f"{name}_field")
    }
    conversations = [
        replace(spec, type="conversation", messages_field=turn, **beside) for turn in turns if turn in columns
    ]
    pairs = [
        (
            spec.instruction_field if "instruction_field" in named else question,
            spec.output_field if "output_field" in named else answer,
        )
        for question, answer in _INSTRUCTION_COLUMNS
    ]
    instructions = [
        replace(spec, type="instruction", instruction_field=question, output_field=answer)
        for question, answer in pairs
        if question in columns and answer in columns and question != answer
    ]
    if {"instruction_field", "output_field"} & set(named):
        found = instructions + conversations
    else:
        found = conversations + instructions
    if found:
        return found[0]
    if {"chosen", "rejected"} <= set(columns):
        return replace(spec, type="preference")
    if text:
        return text[0]
    raise DataError(
        f"{without_credentials(spec.path)}: type auto does not recognise the columns {listed(columns)}. Set type: "
        "conversation with messages_field, type: instruction with instruction_field and output_field, or type: text "
        "with text_field."
    )


def to_conversation(row: SourceRow, spec: DatasetSpec) -> Conversation:
    """Read a row as its type says.

    Args:
        row: the row.
        spec: with a concrete type.

    Raises:
        DataError: a column is missing, or a message cannot be understood.
        ConfigError: the spec contradicts itself, or its type is not for this verb.
    """
    if spec.type == "instruction":
        return _from_instruction(row, spec)
    if spec.type == "conversation":
        return _from_messages(row, spec)
    raise ConfigError(f"{row.origin}: type {spec.type} is no conversation; use type instruction or conversation.")


def document_text(row: SourceRow, spec: DatasetSpec) -> str | TextFile:
    """Return the document of a row of type text, which may be empty; a whole file is read when it is asked for.

    Raises:
        DataError: the column is missing, or holds something other than text.
    """
    text = column(row, spec.text_field, "text_field")
    if isinstance(text, str | TextFile):
        return text
    raise DataError(
        f"{row.origin}: {spec.text_field!r} must be text, got {type(text).__name__} {text!r:.80}. "
        "Name the column of the document with text_field, or remove the row."
    )


def _from_instruction(row: SourceRow, spec: DatasetSpec) -> Conversation:
    instruction = column(row, spec.instruction_field, "instruction_field")
    if isinstance(instruction, list):
        return _from_prompt_messages(row, spec)
    instruction = text_of(instruction, row, spec.instruction_field)
    answer = text_of(column(row, spec.output_field, "output_field"), row, spec.output_field)
    default_input = spec.input_field == DatasetSpec.input_field
    extra = row.values.get(spec.input_field) if default_input else column(row, spec.input_field, "input_field")
    extra = text_of(extra, row, spec.input_field)
    system = _system_prompt(row, spec)
    template = spec.prompt_format if extra or not spec.prompt_format_no_input else spec.prompt_format_no_input
    if template:
        # Not str.format: prompts and rows are full of braces of their own.
        prompt = _fill(template, {"{instruction}": instruction, "{input}": extra, "{system}": system})
        system = "" if "{system}" in template else system
    else:
        prompt = f"{instruction}\n\n{extra}" if extra else instruction
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    if answer.strip():  # without one the row supervises nothing, and is counted as such
        messages.append({"role": "assistant", "content": answer})
    return Conversation(messages, origin=row.origin)


def _from_prompt_messages(row: SourceRow, spec: DatasetSpec) -> Conversation:
    """Read a prompt and a completion that are lists of messages themselves."""
    for key in ("prompt_format", "prompt_format_no_input", "input_field"):
        if key in _set_by_the_user(spec):
            raise DataError(
                f"{row.origin}: {key} is for text, but column {spec.instruction_field!r} is a list of messages. "
                f"Remove {key}."
            )
    columns: dict[str, Any] = {"messages_field": spec.instruction_field, "completion_field": spec.output_field}
    conversation = _from_messages(row, replace(spec, type="conversation", **columns))
    return replace(conversation, messages=_with_system(conversation.messages, _system_prompt(row, spec)))


def _fill(template: str, parts: dict[str, str]) -> str:
    """Replace each placeholder once, so that a placeholder inside a row's own text stays as it is."""
    for name, value in parts.items():
        if name in template:
            before, after = template.split(name, 1)
            return _fill(before, parts) + value + _fill(after, parts)
    return template


def _system_prompt(row: SourceRow, spec: DatasetSpec) -> str:
    if spec.system_prompt_type == "field" and not spec.system_prompt_field:
        raise ConfigError(f"{row.origin}: system_prompt_type field needs system_prompt_field, the name of a column.")
    if spec.system_prompt_type == "fixed" and spec.system_prompt is None:
        raise ConfigError(f"{row.origin}: system_prompt_type fixed needs system_prompt, its text.")
    if spec.system_prompt_field and spec.system_prompt_type != "fixed":
        return text_of(column(row, spec.system_prompt_field, "system_prompt_field"), row, spec.system_prompt_field)
    return spec.system_prompt or ""


def _with_system(messages: list[Message], system: str) -> list[Message]:
    if not system or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _from_messages(row: SourceRow, spec: DatasetSpec) -> Conversation:
    raw = list_of(column(row, spec.messages_field, "messages_field"), row, spec.messages_field)
    messages = [read_message(message, row, spec) for message in raw]
    if spec.completion_field:
        # A prompt's own assistant turns are context; only the completion is what the model must learn.
        messages = [{**message, "train": False} if message["role"] == "assistant" else message for message in messages]
        messages += _completion(row, spec)
    while messages and _is_blank_answer(messages[-1]):  # it would teach the model to say nothing
        messages.pop()
    system, tools = (_beside_messages(row, spec, f"{name}_field") for name in _BESIDE_MESSAGES)
    messages = _with_system(messages, text_of(system, row, spec.system_field or ""))
    return Conversation(messages, functions(tools, row, spec.tools_field or "") if tools else None, row.origin)


def _beside_messages(row: SourceRow, spec: DatasetSpec, key: str) -> Any:
    """Return the value of a column that may be absent where it has its usual name and no one asked for it."""
    name = getattr(spec, key)
    return column(row, name, key) if name and name not in _BESIDE_MESSAGES else row.values.get(name)


def _completion(row: SourceRow, spec: DatasetSpec) -> list[Message]:
    completion = column(row, spec.completion_field or "", "completion_field")
    if isinstance(completion, list):
        return [read_message(message, row, spec) for message in completion]
    return [{"role": "assistant", "content": text_of(completion, row, spec.completion_field or "")}]


def _is_blank_answer(message: Message) -> bool:
    only_text = message.keys() <= {"role", "content", "train"}
    return message["role"] == "assistant" and only_text and not message.get("content", "").strip()
