"""One message of a conversation, in whatever spelling, as a dict with a standard role and content; and its functions.

What is not here: which column holds messages (formats.py) and rendering them (chat.py). The one idea: what a template
would leave out or stumble over is refused here, where the row's place is known.
"""

from __future__ import annotations

from typing import Any

from surogate.config.parts import DatasetSpec
from surogate.data.columns import list_of, listed, text_of
from surogate.data.sources import SourceRow
from surogate.data.text_rows import parse_json
from surogate.errors import DataError

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")

_ROLE_SPELLINGS = {
    **{"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"},
    **{"observation": "tool", "function": "tool"},
}
_PROPERTY_SPELLINGS = {"role": "from", "content": "value"}


def read_message(message: Any, row: SourceRow, spec: DatasetSpec) -> Message:
    """Read a message, with `message_property_mappings` or in a usual spelling.

    Returns:
        A dict with `role` (one of ROLES), `content`, and what else the message had; `train: false` where it must not be
        learned, which may also be spelt `weight: 0`.

    Raises:
        DataError: it has no role or content, or a value of the wrong kind.
    """
    if not isinstance(message, dict):
        raise DataError(f"{row.origin}: a message must have role and content, got {message!r:.80}.")
    values = _renamed(message, spec.message_property_mappings)
    if "role" not in values or not ("content" in values or "tool_calls" in values):
        raise DataError(
            f"{row.origin}: a message needs role and content; this one has {listed(message)}. "
            "Name them with message_property_mappings, for example {role: from, content: value}."
        )
    values["role"] = _role(values["role"], row)
    if values.get("content") is not None:
        values["content"] = _content(values["content"], row)
    if values.get("tool_calls"):
        values["tool_calls"] = functions(values["tool_calls"], row, "tool_calls")
    values["train"] = _is_trained(values.pop("weight", None), values.get("train"), row)
    # Parquet and arrow give every message every column; a null one was never there.
    return {name: value for name, value in values.items() if value is not None}


def _renamed(message: Message, mappings: dict[str, str]) -> Message:
    values = dict(message)
    for ours, usual in _PROPERTY_SPELLINGS.items():
        theirs = mappings.get(ours) or (ours if ours in values else usual)
        if theirs in values:
            values[ours] = values.pop(theirs)
    for ours, theirs in mappings.items():
        if ours not in _PROPERTY_SPELLINGS and theirs in values:
            values[ours] = values.pop(theirs)
    return values


def _role(role: Any, row: SourceRow) -> str:
    known = _ROLE_SPELLINGS.get(role, role) if isinstance(role, str) else None
    if known not in ROLES:
        raise DataError(
            f"{row.origin}: unknown role {role!r:.80}; allowed are {', '.join((*ROLES, *_ROLE_SPELLINGS))}."
        )
    return str(known)


def _content(content: Any, row: SourceRow) -> str:
    """Flatten the parts of a message's content."""
    if not isinstance(content, list):
        return text_of(content, row, "content")
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    for part, text in zip(content, texts, strict=True):
        if not isinstance(text, str):
            raise DataError(
                f"{row.origin}: a part of a message's content must be {{type: text, text: ...}}, got {part!r:.80}. "
                "Only text can be trained on."
            )
    return "".join(text for text in texts if text is not None)


def _is_trained(weight: Any, train: Any, row: SourceRow) -> bool | None:
    if train is not None and not isinstance(train, bool):
        raise DataError(f"{row.origin}: train of a message must be true or false, got {train!r:.80}.")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise DataError(f"{row.origin}: weight of a message must be 0 or 1, got {weight!r:.80}.")
    return False if weight == 0 else train


def functions(value: Any, row: SourceRow, name: str) -> list[dict[str, Any]]:
    """Read tools or tool calls: a list of objects, which may be JSON text as a whole or one by one.

    Raises:
        DataError: one of them does not name its function.
    """
    found = []
    for entry in list_of(value, row, name):
        if isinstance(entry, str):
            entry = parse_json(entry, f"{row.origin}: an entry of {name!r} is text, but not JSON")
        function = entry.get("function", entry) if isinstance(entry, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f"{row.origin}: an entry of {name!r} must be an object that names its function, got {entry!r:.80}."
            )
        found.append({key: inner for key, inner in entry.items() if inner is not None})
    return found
