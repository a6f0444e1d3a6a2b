"""Rows of any layout as conversations: instruction, conversation, and detection from the column names.

What is not here: reading files (sources.py) and rendering (chat.py). The one idea: all supervised chat data is a list
of messages with the standard roles; everything else is a way of spelling one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    for column in (spec.messages_field, *_MESSAGE_COLUMNS):
        if column in columns:
            return replace(spec, type="conversation", messages_field=column)
    for question, answer in ((spec.instruction_field, spec.output_field), *_INSTRUCTION_COLUMNS):
        if question in columns and answer in columns:
            return replace(spec, type="instruction", instruction_field=question, output_field=answer)
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
    answer = _column(row, spec.output_field, "output_field")
    default_input = spec.input_field == DatasetSpec.input_field
    extra = row.values.get(spec.input_field) if default_input else _column(row, spec.input_field, "input_field")
    system = _system_prompt(row, spec)
    template = spec.prompt_format if extra or not spec.prompt_format_no_input else spec.prompt_format_no_input
    if template:
        # Not str.format: prompts and rows are full of braces of their own.
        parts = {"{instruction}": instruction, "{input}": extra, "{system}": system}
        prompt = _fill(template, {name: str(value or "") for name, value in parts.items()})
        system = None if "{system}" in template else system
    else:
        prompt = f"{instruction}\n\n{extra}" if extra else str(instruction or "")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    if answer not in (None, ""):  # without one the row supervises nothing, and is counted as such
        messages.append({"role": "assistant", "content": str(answer)})
    return Conversation(messages, origin=row.origin)


def _fill(template: str, parts: dict[str, str]) -> str:
    """Replace each placeholder once, so that a placeholder inside a row's own text stays as it is."""
    for name, value in parts.items():
        if name in template:
            before, after = template.split(name, 1)
            return _fill(before, parts) + value + _fill(after, parts)
    return template


def _system_prompt(row: SourceRow, spec: DatasetSpec) -> str | None:
    if spec.system_prompt_type == "field" and not spec.system_prompt_field:
        raise ConfigError(f"{spec.path}: system_prompt_type field needs system_prompt_field, the name of a column.")
    if spec.system_prompt_type == "fixed" and spec.system_prompt is None:
        raise ConfigError(f"{spec.path}: system_prompt_type fixed needs system_prompt, its text.")
    if spec.system_prompt_field and spec.system_prompt_type != "fixed":
        return _column(row, spec.system_prompt_field, "system_prompt_field")
    return spec.system_prompt


def _from_messages(row: SourceRow, spec: DatasetSpec) -> Conversation:
    raw = _json_list(_column(row, spec.messages_field, "messages_field"), row, spec.messages_field)
    messages = [_message(message, row, spec) for message in raw]
    if spec.completion_field:
        completion = _column(row, spec.completion_field, "completion_field")
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        # A prompt's own assistant turns are context; only the completion is what the model must learn.
        messages = [{**message, "train": False} if message["role"] == "assistant" else message for message in messages]
        messages += [_message(message, row, replace(spec, message_property_mappings={})) for message in completion]
    system = _column(row, spec.system_field, "system_field") if spec.system_field else None
    if system and not any(message["role"] == "system" for message in messages):
        messages.insert(0, {"role": "system", "content": system})
    tools = _column(row, spec.tools_field, "tools_field") if spec.tools_field else None
    return Conversation(messages, _json_list(tools, row, "tools") if tools else None, row.origin)


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
    role = _ROLE_SPELLINGS.get(values["role"], values["role"])
    if role not in ROLES:
        raise DataError(
            f"{row.origin}: unknown role {values['role']!r}; allowed are {', '.join((*ROLES, *_ROLE_SPELLINGS))}."
        )
    # Parquet and arrow give every message every column; a null one was never there.
    return {name: value for name, value in values.items() if value is not None} | {"role": role}


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
