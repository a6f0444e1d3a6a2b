"""Rows of any layout as conversations: instruction, conversation, and detection from the column names.

What is not here: reading files (sources.py) and rendering (chat.py). The one idea: all supervised chat data is a list
of messages with the standard roles; everything else is a way of spelling one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Number
from typing import Any

from surogate.config.not_yet import DATASET_FIELDS
from surogate.config.parts import DatasetSpec
from surogate.data.sources import SourceRow
from surogate.errors import ConfigError, DataError

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")

_ROLE_SPELLINGS = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "observation": "tool"}
_PROPERTY_SPELLINGS = {"role": "from", "content": "value"}
_MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
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
        messages: dicts with `role` (one of ROLES) and `content`, and what else the row had; `train: false` marks a turn
            that is not supervised.
        tools: JSON schemas of the functions on offer, or None.
        origin: where the row stands.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    origin: str = ""


def detect_type(columns: Sequence[str], spec: DatasetSpec) -> DatasetSpec:
    """Settle `type: auto` from the column names.

    Returns:
        The spec with a concrete type and the fields that were found.

    Raises:
        DataError: the columns fit no known layout.
    """
    if spec.type != "auto":
        return spec
    named = _set_by_the_user(spec)
    for key in named:
        if key.endswith("_field") and getattr(spec, key) not in columns:
            raise DataError(
                f"{spec.path}: {key} is {getattr(spec, key)!r}, but the data set has only the columns "
                f"{_listed(columns)}."
            )
    found = _detected(columns, spec, named)
    stray = [key for key in named if key not in DATASET_FIELDS[found.type]]
    if stray:
        type_ = next(type_ for type_, keys in DATASET_FIELDS.items() if stray[0] in keys)
        raise DataError(
            f"{spec.path}: {stray[0]} belongs to type {type_}, but the columns {_listed(columns)} were detected as "
            f"type {found.type}. Remove {stray[0]}, or set type: {type_} and name its columns."
        )
    return found


def _set_by_the_user(spec: DatasetSpec) -> list[str]:
    default = DatasetSpec()
    keys = [key for of_type in DATASET_FIELDS.values() for key in of_type]
    return [key for key in keys if getattr(spec, key) != getattr(default, key)]


def _detected(columns: Sequence[str], spec: DatasetSpec, named: Sequence[str]) -> DatasetSpec:
    """Match the columns against the known layouts; a column that the user named stands in for the usual ones."""
    turns = [spec.messages_field] if "messages_field" in named else _MESSAGE_COLUMNS
    conversations = [replace(spec, type="conversation", messages_field=column) for column in turns if column in columns]
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
    if spec.text_field in columns:
        return replace(spec, type="text")
    raise DataError(
        f"{spec.path}: type auto does not recognise the columns {_listed(columns)}. Set type: conversation with "
        "messages_field, or type: instruction with instruction_field and output_field."
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
    if spec.type == "text":
        raise ConfigError(f"{spec.path}: type text has no question and no answer; plain text is for `surogate pt`.")
    raise ConfigError(f"{spec.path}: type {spec.type} cannot be trained on here; use instruction or conversation.")


def _from_instruction(row: SourceRow, spec: DatasetSpec) -> Conversation:
    instruction = _column(row, spec.instruction_field, "instruction_field")
    if isinstance(instruction, list):
        return _from_prompt_messages(row, spec)
    instruction = _text(instruction, row, spec.instruction_field)
    answer = _text(_column(row, spec.output_field, "output_field"), row, spec.output_field)
    default_input = spec.input_field == DatasetSpec.input_field
    extra = row.values.get(spec.input_field) if default_input else _column(row, spec.input_field, "input_field")
    extra = _text(extra, row, spec.input_field)
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
        raise ConfigError(f"{spec.path}: system_prompt_type field needs system_prompt_field, the name of a column.")
    if spec.system_prompt_type == "fixed" and spec.system_prompt is None:
        raise ConfigError(f"{spec.path}: system_prompt_type fixed needs system_prompt, its text.")
    if spec.system_prompt_field and spec.system_prompt_type != "fixed":
        return _text(_column(row, spec.system_prompt_field, "system_prompt_field"), row, spec.system_prompt_field)
    return spec.system_prompt or ""


def _with_system(messages: list[Message], system: str) -> list[Message]:
    if not system or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _from_messages(row: SourceRow, spec: DatasetSpec) -> Conversation:
    raw = _json_list(_column(row, spec.messages_field, "messages_field"), row, spec.messages_field)
    messages = [_message(message, row, spec) for message in raw]
    if spec.completion_field:
        # A prompt's own assistant turns are context; only the completion is what the model must learn.
        messages = [{**message, "train": False} if message["role"] == "assistant" else message for message in messages]
        messages += _completion(row, spec)
    while messages and _is_blank_answer(messages[-1]):  # it would teach the model to say nothing
        messages.pop()
    if spec.system_field:
        messages = _with_system(
            messages, _text(_column(row, spec.system_field, "system_field"), row, spec.system_field)
        )
    tools = _column(row, spec.tools_field, "tools_field") if spec.tools_field else None
    return Conversation(messages, _json_list(tools, row, "tools") if tools else None, row.origin)


def _completion(row: SourceRow, spec: DatasetSpec) -> list[Message]:
    completion = _column(row, spec.completion_field or "", "completion_field")
    if isinstance(completion, list):
        return [_message(message, row, spec) for message in completion]
    return [{"role": "assistant", "content": _text(completion, row, spec.completion_field or "")}]


def _is_blank_answer(message: Message) -> bool:
    only_text = message.keys() <= {"role", "content", "train"}
    return message["role"] == "assistant" and only_text and not message.get("content", "").strip()


def _message(message: Any, row: SourceRow, spec: DatasetSpec) -> Message:
    if not isinstance(message, dict):
        raise DataError(f"{row.origin}: a message must have role and content, got {message!r:.80}.")
    values = dict(message)
    for ours, usual in _PROPERTY_SPELLINGS.items():
        theirs = spec.message_property_mappings.get(ours) or (ours if ours in values else usual)
        if theirs in values:
            values[ours] = values.pop(theirs)
    for ours, theirs in spec.message_property_mappings.items():
        if ours not in _PROPERTY_SPELLINGS and theirs in values:
            values[ours] = values.pop(theirs)
    if "role" not in values or not ("content" in values or "tool_calls" in values):
        raise DataError(
            f"{row.origin}: a message needs role and content; this one has {_listed(message)}. "
            "Name them with message_property_mappings, for example {role: from, content: value}."
        )
    role = _ROLE_SPELLINGS.get(values["role"], values["role"]) if isinstance(values["role"], str) else None
    if role not in ROLES:
        raise DataError(
            f"{row.origin}: unknown role {values['role']!r:.80}; allowed are {', '.join((*ROLES, *_ROLE_SPELLINGS))}."
        )
    if values.get("content") is not None:
        values["content"] = _content(values["content"], row)
    # Parquet and arrow give every message every column; a null one was never there.
    return {name: value for name, value in values.items() if value is not None} | {"role": role}


def _content(content: Any, row: SourceRow) -> str:
    """Flatten the parts of a message's content."""
    if not isinstance(content, list):
        return _text(content, row, "content")
    texts: list[Any] = [
        part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
    ]
    for part, text in zip(content, texts, strict=True):
        if not isinstance(text, str):
            raise DataError(
                f"{row.origin}: a part of a message's content must be {{type: text, text: ...}}, got {part!r:.80}. "
                "Only text can be trained on."
            )
    return "".join(texts)


def _text(value: Any, row: SourceRow, column: str) -> str:
    """Read a value as text; nothing is the empty text, and a list must not be trained on as Python spells it."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, Number) and not isinstance(value, bool):
        return str(value)
    raise DataError(
        f"{row.origin}: {column!r} must be text or a number, got {type(value).__name__} {value!r:.80}. "
        "Convert it to text first; messages with role and content are type: conversation."
    )


def _json_list(value: Any, row: SourceRow, column: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"{row.origin}: column {column!r} is text, but not JSON: {error.msg}.") from error
    if not isinstance(value, list):
        raise DataError(f"{row.origin}: column {column!r} must be a list, got {type(value).__name__}.")
    return value


def _column(row: SourceRow, name: str, key: str) -> Any:
    if name not in row.values:
        raise DataError(f"{row.origin}: {key} is {name!r}, but the row has only the columns {_listed(row.values)}.")
    return row.values[name]


def _listed(names: Any) -> str:
    return ", ".join(map(str, names)) or "(none)"
