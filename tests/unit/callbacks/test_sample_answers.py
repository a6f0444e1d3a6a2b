from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy

from surogate.batches import TokenRow
from surogate.callbacks.sample_answers import SampleAnswers
from surogate.data.row_store import RowStore
from surogate.errors import HardwareError

EOS, END = 0, 9


class Tokenizer:
    eos_token_id = EOS
    all_special_ids = (EOS, END)

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return " ".join(str(token) for token in ids if not (skip_special_tokens and token in (EOS, END)))


class Module:
    """Answers with the number of tokens that it was asked with, and remembers how it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], set[int], int, float]] = []

    def continue_ids(self, ids: list[int], ends: set[int], max_new_tokens: int, temperature: float) -> list[int]:
        self.asked.append((ids, ends, max_new_tokens, temperature))
        return [len(ids), END]


class Log:
    def __init__(self) -> None:
        self.tables: list[tuple[str, int, list[list[Any]]]] = []

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int) -> None:
        assert columns == ["step", "prompt", "answer", "reference"]
        self.tables.append((key, step, data))


def row(prompt: list[int], answer: list[int], rest: list[int] | None = None) -> TokenRow:
    ids = [*prompt, *answer, *(rest or [])]
    mask = [False] * len(prompt) + [True] * len(answer) + [False] * len(rest or [])
    return TokenRow(np.array(ids, dtype=np.int32), np.array(mask))


def trainer(rows: list[TokenRow], step: int = 0, **changes: Any) -> Any:
    stores = {"a": RowStore.build(rows)} if rows else {}
    values = {
        "is_global_zero": True,
        "global_step": step,
        "sanity_checking": False,
        "loggers": [],
        "strategy": SingleDeviceStrategy(),
        "datamodule": SimpleNamespace(tokenizer=Tokenizer(), validation_stores=stores),
    }
    return SimpleNamespace(**{**values, **changes})


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


ROWS = [row([1, 2, 3], [4, 5, END], [6, 7, 8]), row([2, 2], [5, 5]), row([3, 3, 3, 3], [7, END])]


def test_a_row_is_asked_up_to_its_first_answer_and_the_rest_is_the_reference(tmp_path: Path):
    module, log = Module(), Log()
    callback = SampleAnswers(str(tmp_path), num_prompts=2, max_new_tokens=5)
    callback.on_train_start(trainer(ROWS, loggers=[log]), module)  # type: ignore[arg-type]
    assert written(tmp_path) == [
        {"step": 0, "prompt": "1 2 3", "answer": "3", "reference": "4 5"},
        {"step": 0, "prompt": "2 2", "answer": "2", "reference": "5 5"},
    ]
    assert module.asked[0] == ([1, 2, 3], {EOS, END}, 5, 0.0)
    assert module.asked[1][1] == {EOS}, "only a special token ends an answer"
    assert log.tables == [("samples", 0, [[0, "1 2 3", "3", "4 5"], [0, "2 2", "2", "5 5"]])]


def test_a_text_without_a_prompt_is_continued_after_its_opening(tmp_path: Path):
    module = Module()
    callback = SampleAnswers(str(tmp_path), num_prompts=1, max_new_tokens=3)
    callback.on_train_start(trainer([row([1], list(range(10, 40)))]), module)  # type: ignore[arg-type]
    assert module.asked[0][0] == [1, *range(10, 25)]
    assert written(tmp_path)[0]["reference"] == "25 26 27"


def test_the_same_prompts_are_asked_at_each_validation_and_once_a_step(tmp_path: Path):
    module: Any = Module()
    callback = SampleAnswers(str(tmp_path), num_prompts=3)
    callback.on_train_start(trainer(ROWS), module)
    for step in (5, 5, 10):
        callback.on_validation_end(trainer(ROWS, step), module)
    callback.on_validation_end(trainer(ROWS, 12, sanity_checking=True), module)
    callback.on_validation_end(trainer(ROWS, 13, is_global_zero=False), module)
    assert [row["step"] for row in written(tmp_path)] == [0, 0, 0, 5, 5, 5, 10, 10, 10]
    assert len({row["prompt"] for row in written(tmp_path)}) == 3


def test_a_run_that_goes_back_forgets_later_answers_and_does_not_ask_before_training_again(tmp_path: Path):
    module: Any = Module()
    callback = SampleAnswers(str(tmp_path), num_prompts=1)
    callback.on_train_start(trainer(ROWS), module)
    for step in (5, 10):
        callback.on_validation_end(trainer(ROWS, step), module)
    again = SampleAnswers(str(tmp_path), num_prompts=1)
    again.on_train_start(trainer(ROWS, 7), module)
    assert [row["step"] for row in written(tmp_path)] == [0, 5]
    again.on_validation_end(trainer(ROWS, 10), module)
    assert [row["step"] for row in written(tmp_path)] == [0, 5, 10]


@pytest.mark.parametrize("rows", [[], [row([1, 2, 3], [])], [row([1], [2, 3])]])
def test_where_no_row_can_be_asked_the_log_says_so_once(tmp_path: Path, rows: list[TokenRow], caplog: Any):
    module: Any = Module()
    callback = SampleAnswers(str(tmp_path))
    callback.on_train_start(trainer(rows), module)
    callback.on_validation_end(trainer(rows, 5), module)
    assert written(tmp_path) == [] and caplog.text.count("sample_prompts") == 1


def test_a_sharded_model_is_refused_before_it_trains(tmp_path: Path):
    callback = SampleAnswers(str(tmp_path))
    with pytest.raises(HardwareError, match="sample_prompts: 0"):
        callback.setup(trainer([], strategy=ModelParallelStrategy()), None, "fit")  # type: ignore[arg-type]


def test_a_damaged_line_is_dropped_by_the_next_start(tmp_path: Path):
    (tmp_path / "samples.jsonl").write_text('{"step": "x"}\n{"step": 3}\n{"answer": "4"}\n')
    SampleAnswers(str(tmp_path)).on_train_start(trainer(ROWS, 3), Module())  # type: ignore[arg-type]
    assert written(tmp_path) == [{"step": 3}]
