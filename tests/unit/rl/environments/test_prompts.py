from __future__ import annotations

import json
from pathlib import Path

import pytest

from surogate.errors import DataError
from surogate.rl.environments.prompts import Prompt, PromptArgs, read_prompts


@pytest.fixture
def rows(tmp_path: Path):
    def write(*values: dict, **args: object) -> list[Prompt]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        return read_prompts(PromptArgs(path=str(path), **args))

    return write


def test_a_text_prompt_is_a_users_message_and_the_rest_are_columns(rows):
    (prompt,) = rows({"question": "2 + 2?", "answer": "4", "level": 1}, system_prompt="Count.")
    assert prompt.prompt == [{"role": "system", "content": "Count."}, {"role": "user", "content": "2 + 2?"}]
    assert prompt.columns == {"question": "2 + 2?", "answer": "4", "level": 1}


def test_a_plain_prompt_stays_as_it_stands(rows):
    (prompt,) = rows({"prompt": " 2 + 2 =", "answer": 4}, prompt="plain")
    assert prompt.prompt == " 2 + 2 ="


def test_messages_are_a_prompt_and_a_reply_at_their_end_is_a_column(rows):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert rows({"messages": turns})[0] == Prompt(turns[:1], {"reply": "hello"})
    assert rows({"messages": turns[:1]}, system_prompt="S")[0].prompt[0] == {"role": "system", "content": "S"}
    system = {"role": "system", "content": "own"}
    assert rows({"messages": [system, *turns]}, system_prompt="S")[0].prompt == [system, turns[0]]


def test_fields_can_be_named_and_rows_limited(rows):
    data = [{"p": "one", "prompt": "x"}, {"p": "two", "prompt": "y"}, {"p": "three", "prompt": "z"}]
    prompts = rows(*data, prompt_field="p", num_examples=2)
    assert [prompt.prompt[-1]["content"] for prompt in prompts] == ["one", "two"]
    assert prompts[0].columns == {"p": "one", "prompt": "x"}


@pytest.mark.parametrize(
    ("row", "args", "message"),
    [
        ({"text": "x"}, {}, r"none of the columns .* its columns are text"),
        ({"prompt": "x"}, {"prompt_field": "q"}, "no column 'q'"),
        ({"prompt": " "}, {}, r"rows.jsonl:1: prompt is ' '; a prompt must be text"),
        ({"prompt": 3}, {}, r"rows.jsonl:1: prompt is 3"),
        ({"messages": []}, {}, r"rows.jsonl:1: messages must be a list of messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, {}, "each with a role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, {}, "nothing but a reply"),
    ],
)
def test_rows_that_hold_no_prompt_are_refused_with_their_place(rows, row: dict, args: dict, message: str):
    with pytest.raises(DataError, match=message):
        rows(row, **args)
