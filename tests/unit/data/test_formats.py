from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surogate.config.parts import DatasetSpec
from surogate.data.files import LocalFile, TextFile
from surogate.data.formats import Conversation, detect_type, document_text, to_conversation
from surogate.data.sources import SourceRow
from surogate.errors import ConfigError, DataError

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}


def convert(values: dict[str, Any], **spec: Any) -> Conversation:
    return to_conversation(SourceRow(values, "rows.jsonl:7"), DatasetSpec(**{"type": "conversation", **spec}))


def instruct(values: dict[str, Any], **spec: Any) -> list[dict[str, Any]]:
    return convert(values, type="instruction", **spec).messages


def test_an_instruction_with_input_is_one_question() -> None:
    messages = instruct({"instruction": "Add.", "input": "1 and 2", "output": 3})
    assert messages == [{"role": "user", "content": "Add.\n\n1 and 2"}, {"role": "assistant", "content": "3"}]


def test_named_columns_are_used() -> None:
    values = {"q": "hi", "a": "hello", "instruction": "no", "output": "no"}
    assert instruct(values, instruction_field="q", output_field="a") == [USER, ASSISTANT]


@pytest.mark.parametrize("answer", [None, "", " \n\t"])
def test_a_row_without_an_answer_has_no_assistant_turn(answer: str | None) -> None:
    assert instruct({"instruction": "hi", "output": answer}) == [USER]


def test_the_system_prompt_comes_from_a_field_or_is_fixed() -> None:
    values = {"instruction": "hi", "output": "hello", "persona": "Be kind."}
    system = {"role": "system", "content": "Be kind."}
    assert instruct(values, system_prompt_type="field", system_prompt_field="persona") == [system, USER, ASSISTANT]
    assert instruct(values, system_prompt_type="fixed", system_prompt="Be kind.") == [system, USER, ASSISTANT]


@pytest.mark.parametrize(("kind", "missing"), [("field", "system_prompt_field"), ("fixed", "system_prompt")])
def test_a_system_prompt_type_without_its_value_is_refused(kind: Any, missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        instruct({"instruction": "hi", "output": "hello"}, system_prompt_type=kind)


def test_a_prompt_format_is_filled_literally() -> None:
    # Rows may hold braces and even placeholders of their own; neither is code or a format.
    values = {"instruction": "say {input} {x!r}", "input": "{instruction}", "output": "o"}
    spec = {"prompt_format": "[{system}|{instruction}|{input}|{other}]", "system_prompt": "S"}
    assert instruct(values, **spec)[0]["content"] == "[S|say {input} {x!r}|{instruction}|{other}]"
    assert len(instruct(values, **spec)) == 2, "the system prompt is in the text already"


def test_the_format_without_input_serves_rows_without_one() -> None:
    spec = {"prompt_format": "{instruction} / {input}", "prompt_format_no_input": "{instruction} alone"}
    assert instruct({"instruction": "a", "input": "b", "output": "o"}, **spec)[0]["content"] == "a / b"
    assert instruct({"instruction": "a", "input": "", "output": "o"}, **spec)[0]["content"] == "a alone"


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"output_field": "anser"}, "output_field is 'anser', but the row has only the columns instruction, output"),
        ({"instruction_field": "q"}, "instruction_field is 'q'"),
        ({"input_field": "context"}, "input_field is 'context'"),
        ({"type": "conversation"}, "messages_field is 'messages'"),
        ({"type": "conversation", "messages_field": "output", "tools_field": "t"}, "'output' is text, but not JSON"),
    ],
)
def test_an_unknown_column_is_refused_with_the_existing_ones_and_the_place(spec: dict, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as error:
        convert({"instruction": "hi", "output": "hello"}, **{"type": "instruction", **spec})
    assert str(error.value).startswith("rows.jsonl:7: ")


def test_messages_keep_what_templates_read_and_lose_null_columns() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    messages = convert({"messages": [{**USER, "tool_calls": None}, call, {**ASSISTANT, "reasoning_content": "so"}]})
    assert messages.messages == [
        USER,
        {"role": "assistant", "tool_calls": call["tool_calls"]},
        {**ASSISTANT, "reasoning_content": "so"},
    ]
    assert messages.origin == "rows.jsonl:7"


def test_sharegpt_rows_need_no_mapping() -> None:
    rows = [{"from": "system", "value": "s"}, {"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    converted = convert({"conversations": rows}, messages_field="conversations")
    assert converted.messages == [{"role": "system", "content": "s"}, USER, ASSISTANT]


def test_other_property_names_are_mapped() -> None:
    rows = [{"who": "human", "says": "hi"}, {"who": "bot", "says": "hello", "why": "polite"}]
    mappings = {"role": "who", "content": "says", "reasoning_content": "why"}
    converted = convert({"messages": rows}, message_property_mappings=mappings)
    assert converted.messages == [USER, {**ASSISTANT, "reasoning_content": "polite"}]


def test_system_and_tools_come_from_their_columns_and_json_text_is_parsed() -> None:
    values = {"messages": json.dumps([USER, ASSISTANT]), "sys": "s", "functions": '[{"name": "f"}]'}
    converted = convert(values, system_field="sys", tools_field="functions")
    assert converted.messages == [{"role": "system", "content": "s"}, USER, ASSISTANT]
    assert converted.tools == [{"name": "f"}]
    assert convert({**values, "functions": None}, system_field="sys", tools_field="functions").tools is None


@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "function", "function": {"name": "f"}, "strict": None}],
        ['{"type": "function", "function": {"name": "f"}}'],
        '[{"type": "function", "function": {"name": "f"}}]',
    ],
)
def test_tools_are_a_list_or_json_text_as_a_whole_or_one_by_one(tools: Any) -> None:
    converted = convert({"messages": [USER], "t": tools}, tools_field="t")
    assert converted.tools == [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize("tools", ["not json", "7", {"name": "f"}, [7], [{"type": "function"}], [{"name": ["f"]}]])
def test_tools_that_are_none_are_refused_with_their_place(tools: Any) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:7: "):
        convert({"messages": [USER], "t": tools}, tools_field="t")
    with pytest.raises(DataError, match=r"rows\.jsonl:7: "):
        convert({"messages": [USER, {"role": "assistant", "tool_calls": tools}]})


def test_tool_calls_may_be_json_text() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": None}}}
    message = {"role": "assistant", "content": "", "tool_calls": json.dumps([call])}
    assert convert({"messages": [USER, message]}).messages[1]["tool_calls"] == [call]


def test_a_turn_is_left_unlearned_by_train_false_or_weight_0() -> None:
    turns = [{**ASSISTANT, "train": False}, {**ASSISTANT, "weight": 0}, {**ASSISTANT, "train": True, "weight": 1}]
    messages = convert({"messages": [USER, *turns]}).messages[1:]
    assert [message.get("train") for message in messages] == [False, False, True]
    assert all("weight" not in message for message in messages)
    mapped = convert({"messages": [{**ASSISTANT, "learn": False}]}, message_property_mappings={"train": "learn"})
    assert mapped.messages == [{**ASSISTANT, "train": False}]


@pytest.mark.parametrize(
    "mark", [{"train": "false"}, {"train": 0}, {"weight": 0.5}, {"weight": False}, {"weight": [0]}]
)
def test_a_mark_that_could_be_misread_is_refused(mark: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl:7: {next(iter(mark))} of a message must be"):
        convert({"messages": [{**ASSISTANT, **mark}]})


def test_with_a_completion_column_only_the_completion_is_learned() -> None:
    spec = {"messages_field": "prompt", "completion_field": "completion"}
    prompt = [USER, ASSISTANT, USER]
    expected = [USER, {**ASSISTANT, "train": False}, USER, ASSISTANT]
    assert convert({"prompt": prompt, "completion": "hello"}, **spec).messages == expected
    assert convert({"prompt": prompt, "completion": [ASSISTANT]}, **spec).messages == expected


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"role": "wizard", "content": "x"}, "unknown role 'wizard'; allowed are system"),
        ({"speaker": "user", "content": "x"}, "needs role and content; this one has speaker, content"),
        ({"role": "user"}, "needs role and content"),
        ("hello", "must have role and content, got 'hello'"),
    ],
)
def test_a_message_that_cannot_be_understood_is_refused_with_its_place(message: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=f"rows.jsonl:7: .*{sentence}"):
        convert({"messages": [message]})


@pytest.mark.parametrize("blank", ["", "  ", None])
def test_a_blank_last_answer_supervises_nothing(blank: str | None) -> None:
    assert convert({"messages": [USER, {"role": "assistant", "content": " \n"}]}).messages == [USER]
    spec = {"messages_field": "prompt", "completion_field": "completion"}
    assert convert({"prompt": [USER], "completion": blank}, **spec).messages == [USER]
    thought = {"role": "assistant", "content": "", "reasoning_content": "so"}
    assert convert({"messages": [USER, thought]}).messages == [USER, thought]


def test_a_prompt_and_a_completion_of_messages_are_one_conversation() -> None:
    values = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}
    detected = detect_type(list(values), DatasetSpec())
    messages = to_conversation(SourceRow(values, "rows.jsonl:7"), detected).messages
    assert messages == [USER, {**ASSISTANT, "train": False}, USER, ASSISTANT]
    fields = {"instruction_field": "prompt", "output_field": "completion"}
    assert instruct(values, **fields, system_prompt="S")[0] == {"role": "system", "content": "S"}
    with pytest.raises(DataError, match=r"rows.jsonl:7: prompt_format is for text"):
        instruct(values, **fields, prompt_format="{instruction}")


def test_content_in_parts_of_text_is_flattened() -> None:
    parts = [{"type": "text", "text": "h", "image": None}, {"type": "text", "text": "i"}]
    assert convert({"messages": [{"role": "user", "content": parts}, ASSISTANT]}).messages == [USER, ASSISTANT]


@pytest.mark.parametrize(
    ("values", "spec"),
    [
        ({"instruction": "hi", "output": ["hello"]}, {"type": "instruction"}),
        ({"instruction": {"a": 1}, "output": "hello"}, {"type": "instruction"}),
        ({"instruction": "hi", "input": [1], "output": "hello"}, {"type": "instruction"}),
        ({"instruction": "hi", "output": True}, {"type": "instruction"}),
        ({"instruction": "hi", "output": "o", "s": ["x"]}, {"type": "instruction", "system_prompt_field": "s"}),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, {}),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}]}, {}),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, {}),
        ({"messages": [USER], "answer": {"a": 1}}, {"completion_field": "answer"}),
        ({"messages": [USER], "s": ["x"]}, {"system_field": "s"}),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(values: dict[str, Any], spec: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:7: .* must be "):
        convert(values, **spec)


@pytest.mark.parametrize("role", [7, ["user"], {"a": 1}, None])
def test_a_role_that_is_no_text_is_refused(role: Any) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:7: unknown role"):
        convert({"messages": [{"role": role, "content": "hi"}]})


@pytest.mark.parametrize(
    ("field", "columns"),
    [
        ("messages_field", ["messages", "conversations"]),
        ("instruction_field", ["instruction", "output"]),
        ("output_field", ["instruction", "output"]),
        ("input_field", ["instruction", "input", "output"]),
        ("system_prompt_field", ["instruction", "output"]),
        ("tools_field", ["messages"]),
        ("text_field", ["text"]),
    ],
)
def test_a_named_column_that_is_absent_is_never_replaced_by_a_usual_one(field: str, columns: list[str]) -> None:
    with pytest.raises(DataError, match=f"{field} is 'typo', but the data set has only the columns {columns[0]}"):
        detect_type(columns, DatasetSpec(path="rows.jsonl", **{field: "typo"}))


def test_named_instruction_columns_decide_over_usual_ones() -> None:
    found = detect_type(["messages", "question", "label"], DatasetSpec(output_field="label"))
    assert (found.type, found.instruction_field, found.output_field) == ("instruction", "question", "label")


@pytest.mark.parametrize(
    ("columns", "spec", "sentence"),
    [
        (["messages"], {"system_prompt_type": "fixed"}, "system_prompt_type belongs to type instruction.*conversation"),
        (["messages"], {"prompt_format": "{input}"}, "prompt_format belongs to type instruction.*conversation"),
        (["question", "answer", "t"], {"tools_field": "t"}, "tools_field belongs to type conversation.*instruction"),
    ],
)
def test_a_key_of_another_type_than_the_detected_one_is_refused(
    columns: list[str], spec: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        detect_type(columns, DatasetSpec(**spec))


@pytest.mark.parametrize(
    ("columns", "kind", "fields"),
    [
        (["id", "messages"], "conversation", {"messages_field": "messages"}),
        (["conversations"], "conversation", {"messages_field": "conversations"}),
        (["instruction", "input", "output"], "instruction", {"output_field": "output"}),
        (["question", "answer"], "instruction", {"instruction_field": "question", "output_field": "answer"}),
        (["prompt", "chosen", "rejected"], "preference", {}),
        (["text"], "text", {}),
    ],
)
def test_auto_finds_the_type_from_the_columns(columns: list[str], kind: str, fields: dict[str, str]) -> None:
    found = detect_type(columns, DatasetSpec())
    assert found.type == kind
    assert {name: getattr(found, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("columns", "spec", "kind"),
    [
        (["messages", "text"], {}, "text"),
        (["messages", "text"], {"messages_field": "messages", "system_field": "text"}, "conversation"),
        (["messages", "body"], {"text_field": "body"}, "text"),
        (["messages"], {}, "conversation"),
        (["text", "instruction", "output"], {"output_field": "text"}, "instruction"),
    ],
)
def test_pretraining_prefers_the_document_unless_columns_of_another_type_are_named(
    columns: list[str], spec: dict[str, Any], kind: str
) -> None:
    assert detect_type(columns, DatasetSpec(**spec), prefers_text=True).type == kind


def test_a_named_text_column_makes_a_row_a_document_without_preference_too() -> None:
    assert detect_type(["messages", "body"], DatasetSpec(text_field="body")).type == "text"
    assert detect_type(["messages", "text"], DatasetSpec()).type == "conversation"


def test_auto_takes_system_and_tools_beside_messages_where_a_row_has_them() -> None:
    spec = detect_type(["messages", "system", "tools"], DatasetSpec())
    tool = {"type": "function", "function": {"name": "f"}}
    full = to_conversation(SourceRow({"messages": [USER], "system": "s", "tools": [tool]}, ""), spec)
    assert (full.messages, full.tools) == ([{"role": "system", "content": "s"}, USER], [tool])
    assert to_conversation(SourceRow({"messages": [USER]}, ""), spec).messages == [USER]


def test_auto_takes_the_columns_that_the_user_named_first() -> None:
    found = detect_type(["messages", "chat"], DatasetSpec(messages_field="chat"))
    assert found.messages_field == "chat"


def test_auto_gives_up_with_the_columns_it_saw() -> None:
    with pytest.raises(DataError, match="does not recognise the columns a, b"):
        detect_type(["a", "b"], DatasetSpec())


def test_a_type_that_is_set_is_kept() -> None:
    spec = DatasetSpec(type="instruction")
    assert detect_type(["messages"], spec) is spec


@pytest.mark.parametrize("kind", ["text", "preference"])
def test_what_is_no_conversation_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"rows\.jsonl:7: type {kind} is no conversation"):
        convert({"text": "x"}, type=kind)


def document(values: dict[str, Any], **spec: Any) -> str | TextFile:
    return document_text(SourceRow(values, "rows.jsonl:7"), DatasetSpec(**{"type": "text", **spec}))


def test_a_document_is_the_text_of_its_column_as_it_stands(tmp_path: Path) -> None:
    file = TextFile(LocalFile(tmp_path / "a.txt", "a.txt"))
    assert document({"text": " a\r\n"}) == " a\r\n"
    assert document({"body": "", "text": "x"}, text_field="body") == ""
    assert document({"text": file}) is file


@pytest.mark.parametrize("value", [None, 7, True, ["a"], {"a": 1}, b"bytes"])
def test_a_document_that_is_no_text_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl:7: 'text' must be text, got {type(value).__name__}"):
        document({"text": value})


def test_a_row_without_the_column_of_the_document_is_refused() -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:7: text_field is 'body', but the row has only the columns text"):
        document({"text": "x"}, text_field="body")
