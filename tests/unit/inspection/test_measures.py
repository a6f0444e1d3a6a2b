from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.word_tokenizer import save_word_tokenizer

from surogate.batches import TokenRow
from surogate.config.parts import BatchSpec, ChatSpec, DatasetSpec
from surogate.data.datamodule import ChatDataModule, TextDataModule
from surogate.data.row_store import RowStore
from surogate.inspection.measures import CHEAP_ROWS, DataSettings, cheap_findings, inspect
from surogate.inspection.report import Report

NO_END = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_word_tokenizer(tmp_path_factory.mktemp("tokenizer"), [f"row{i}" for i in range(100)]))


@pytest.fixture
def write_rows(tmp_path: Path) -> Any:
    def write(name: str, numbers: Sequence[int], answer_len: int = 4) -> DatasetSpec:
        rows = [{"instruction": f"row{i}", "output": "word " * answer_len} for i in numbers]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DatasetSpec(path=str(path))

    return write


def looked_at(
    tokenizer: str,
    datasets: list[DatasetSpec],
    validation: Sequence[DatasetSpec] = (),
    chat: ChatSpec = ChatSpec(),  # noqa: B008
    **options: Any,
) -> tuple[Report, dict[str, str]]:
    """The report of some data, and the cheap findings as text -> level."""
    batch = BatchSpec(sequence_len=32, per_device_train_batch_size=1, gradient_accumulation_steps=1)
    kind = options.pop("kind", ChatDataModule)
    data = kind(tokenizer, datasets, list(validation), options.pop("split", 0.0), batch, chat)
    data.setup()
    settings = DataSettings(datasets=datasets, validation_datasets=validation, batch=batch, chat=chat)
    return inspect(data, settings, samples=2), {str(finding): finding.level for finding in cheap_findings(data)}


def levels(report: Report) -> dict[str, str]:
    return {str(finding): finding.level for finding in report.findings}


def test_good_data_gives_its_numbers_and_no_finding(tokenizer: str, write_rows: Any) -> None:
    specs = [write_rows("a", range(40)), write_rows("b", range(40, 50), answer_len=14)]
    report, cheap = looked_at(tokenizer, specs)
    assert report.findings == [] and cheap == {} and not report.has_problems
    a, b = report.sources
    assert (a.name, a.role, a.kind, a.rows, a.documents, a.tokens) == ("a", "train", "instruction", 40, 40, 40 * 9)
    assert (a.loss_tokens, a.mean_share, a.full_rows) == (40 * 5, pytest.approx(5 / 9), 0)
    assert a.shares.counts == (0, 0, 0, 0, 0, 40, 0, 0, 0, 0)
    assert sum(a.lengths.counts) == 40 and a.percentile(0) == a.percentile(50) == a.percentile(100) == 9
    assert a.ends == (40, 40) and b.ends == (10, 10)
    assert (a.epochs, b.epochs) == (1.0, 1.0)
    assert [sample.source for sample in report.samples] == ["a", "a", "b", "b"]


def test_packing_is_what_the_loader_does(tokenizer: str, write_rows: Any) -> None:
    spec = write_rows("a", range(41))
    report, _ = looked_at(tokenizer, [spec])
    assert report.packing is not None
    # Three rows of 9 tokens in 32; what is left of 41 rows makes one pack of two.
    assert (report.packing.packs, report.packing.steps) == (14, 14)
    assert report.packing.efficiency == pytest.approx(41 * 9 / (14 * 32))
    assert report.packing.tokens_per_step == pytest.approx(41 * 9 / 14)


def test_rows_that_are_validated_and_trained_on_are_a_problem_but_do_not_stop_a_run(
    tokenizer: str, write_rows: Any
) -> None:
    report, cheap = looked_at(tokenizer, [write_rows("a", range(30))], [write_rows("v", range(28, 38))])
    text = "v: 2 of 10 conversations (20%) of the validation are also trained on, so it measures memory."
    (found,) = report.findings
    assert str(found).startswith(text) and found.level == "problem" and report.has_problems
    assert list(cheap.values()) == ["warning"] and next(iter(cheap)).startswith(text)


def test_validating_on_the_training_file_itself_is_found(tokenizer: str, write_rows: Any) -> None:
    spec = write_rows("a", range(30))
    report, _ = looked_at(tokenizer, [spec], [spec])
    assert "a: 30 of 30 conversations (100%) of the validation" in str(report.findings[0])


def test_what_is_held_out_is_no_leak(tokenizer: str, write_rows: Any) -> None:
    report, cheap = looked_at(tokenizer, [write_rows("a", [*range(30), *range(30)])], split=0.2)
    assert [source.role for source in report.sources] == ["train", "validation"]
    assert "problem" not in [*levels(report).values(), *cheap.values()]


def test_a_single_text_whose_end_is_held_out_gives_no_finding(tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("word " * 500)
    spec = DatasetSpec(path=str(tmp_path / "book.txt"), type="text")
    report, cheap = looked_at(tokenizer, [spec], kind=TextDataModule, chat=ChatSpec(loss_scale="all"), split=0.2)
    train, validation = report.sources
    assert train.documents == validation.documents == 1 and train.rows > 5
    assert report.findings == [] and cheap == {}
    assert train.full_rows == train.rows


def test_repeated_rows_are_named_within_and_across_sources(tokenizer: str, write_rows: Any) -> None:
    specs = [write_rows("a", [0, 1, 2, 3, 1, 0]), write_rows("b", [3, 9, 10])]
    report, cheap = looked_at(tokenizer, specs)
    found = levels(report)
    within = next(text for text in found if "repeat one" in text)
    assert within.startswith("a: 2 of 6 conversations (33%) repeat one of the same source")
    assert "a.jsonl:5 repeats" in within and "a.jsonl:2)" in within
    assert any(text.startswith("b: 1 of 3 conversations (33%) also stand in a source before") for text in found)
    assert cheap == {}, "repeats are looked for by inspect only"


def test_cut_and_left_out_rows_are_counted_and_the_first_is_named(tokenizer: str, write_rows: Any) -> None:
    specs = [write_rows("short", range(30)), write_rows("long", range(30, 34), answer_len=60)]
    chat = ChatSpec(truncation_strategy="right")
    report, cheap = looked_at(tokenizer, specs, chat=chat)
    found = levels(report)
    cut = next(text for text in found if "max_length" in text and "first" in text)
    assert cut.startswith("long: 4 of 4 rows (100%) are longer than max_length") and "132 tokens are lost" in cut
    text = "long: every supervised turn is cut before its end"
    assert [level for finding, level in found.items() if finding.startswith(text)] == ["warning"]
    assert [level for finding, level in cheap.items() if finding.startswith(text)] == ["warning"]


def test_a_template_without_an_end_token_is_warned_about_and_not_refused(tokenizer: str, write_rows: Any) -> None:
    report, cheap = looked_at(tokenizer, [write_rows("a", range(30))], chat=ChatSpec(template=NO_END))
    assert set(levels(report).values()) == set(cheap.values()) == {"warning"}
    assert "does not learn to stop" in next(iter(cheap))


@pytest.mark.parametrize(
    "chat",
    [
        ChatSpec(loss_scale="all"),
        ChatSpec(use_chat_template=False),
        ChatSpec(loss_scale="last_round", max_length=9),
        ChatSpec(response_prefix="word "),
    ],
)
def test_unusual_settings_are_no_problem(tokenizer: str, write_rows: Any, chat: ChatSpec) -> None:
    report, cheap = looked_at(tokenizer, [write_rows("a", range(30))], chat=chat)
    assert not report.has_problems and cheap == {}


def test_rows_supervised_from_end_to_end_on_request_are_no_finding(tokenizer: str, write_rows: Any) -> None:
    report, _ = looked_at(tokenizer, [write_rows("a", range(30))], chat=ChatSpec(loss_scale="all"))
    assert report.findings == [] and report.sources[0].full_rows == 30


def test_a_single_row_is_no_problem(tokenizer: str, write_rows: Any) -> None:
    report, cheap = looked_at(tokenizer, [write_rows("a", [1])])
    assert not report.has_problems and cheap == {}


def test_rows_supervised_from_end_to_end_are_warned_about_unless_asked_for(tokenizer: str, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "assistant", "content": f"row{i} word"}]} for i in range(30)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = DatasetSpec(path=str(path))
    report, _ = looked_at(tokenizer, [spec], chat=ChatSpec(use_chat_template=False))
    assert list(levels(report).values()) == ["warning"]
    assert "30 of 30 rows (100%) are supervised from end to end" in str(report.findings[0])


def test_weights_show_how_often_a_source_is_drawn(tokenizer: str, write_rows: Any) -> None:
    small, large = write_rows("small", range(5)), write_rows("large", range(5, 100))
    specs = [DatasetSpec(path=small.path, weight=3), DatasetSpec(path=large.path, weight=1)]
    report, _ = looked_at(tokenizer, specs)
    assert [source.weight for source in report.sources] == [3, 1]
    assert [source.epochs for source in report.sources] == [pytest.approx(15), pytest.approx(25 / 95)]
    assert any("draws every row 15.0 times an epoch" in str(finding) for finding in report.findings)


def made_of(rows: list[TokenRow], tokenizer: Any, end_token_id: int | None) -> Any:
    """A data module with one training source of some rows."""
    store = RowStore.build(rows)
    store.info.update(type="conversation", num_rendered=len(rows), too_long=0, lost_tokens=0, bad=0)
    return SimpleNamespace(
        train_stores={"rows": store},
        validation_stores={},
        tokenizer=tokenizer,
        renderer=SimpleNamespace(end_token_id=lambda: end_token_id),
    )


def row_of(ids: list[int], supervised: list[int]) -> TokenRow:
    mask = np.zeros(len(ids), dtype=bool)
    mask[supervised] = True
    return TokenRow(np.array(ids, dtype=np.int32), mask)


def test_end_tokens_that_are_no_targets_are_a_problem(llama3: Any) -> None:
    bos, eot = llama3.bos_token_id, llama3.eos_token_id
    (found,) = cheap_findings(made_of([row_of([bos, 50, 51, eot], [2])] * 3, llama3, eot))
    assert found.level == "problem" and "none of 3 supervised turns holds its end token" in found.text


def test_a_second_bos_is_a_problem_and_a_stray_one_a_warning(llama3: Any) -> None:
    bos, eot = llama3.bos_token_id, llama3.eos_token_id
    good, doubled = row_of([bos, 50, 51, eot], [2, 3]), row_of([bos, bos, 51, eot], [2, 3])
    (found,) = cheap_findings(made_of([doubled] * 20, llama3, eot))
    assert found.level == "problem" and found.text.startswith(
        "20 of 20 rows (100%) start with BOS twice (first: row 0)"
    )
    (found,) = cheap_findings(made_of([good] * 150 + [doubled], llama3, eot))
    assert found.level == "warning" and "(first: row 150)" in found.text


def test_rows_without_the_bos_that_the_tokenizer_adds_are_warned_about(llama3: Any) -> None:
    eot = llama3.eos_token_id
    (found,) = cheap_findings(made_of([row_of([50, 51, eot], [1, 2])] * 3, llama3, eot))
    assert found.level == "warning" and found.text.startswith("no row starts with BOS")


def test_ids_beyond_the_tokenizer_are_a_problem(smollm2: Any) -> None:
    eos = smollm2.eos_token_id
    (found,) = cheap_findings(made_of([row_of([5, len(smollm2), eos], [1, 2])], smollm2, eos))
    assert found.level == "problem" and found.text.startswith("1 token ids belong to no token")


def test_unknown_tokens_are_a_problem_only_where_they_prevail(train_bpe: Any) -> None:
    tokenizer = train_bpe(["<s>", "</s>", "<unk>"], eos="</s>", unk_token="<unk>")
    for unknown, level in ((150, "problem"), (90, "warning"), (1, "note")):
        ids = [2] * unknown + [50] * (199 - unknown) + [1]
        (found,) = cheap_findings(made_of([row_of(ids, [198, 199])], tokenizer, 1))
        assert found.level == level and found.text.startswith(f"{unknown} of 200 tokens")


def test_cheap_findings_look_into_a_bounded_number_of_rows(llama3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row_of([llama3.bos_token_id, 50, llama3.eos_token_id], [1, 2])] * 5000
    data = made_of(rows, llama3, llama3.eos_token_id)
    read, inner = [], RowStore.__getitem__
    monkeypatch.setattr(RowStore, "__getitem__", lambda self, row: read.append(row) or inner(self, row))
    assert cheap_findings(data) == []
    assert len(read) == CHEAP_ROWS and min(read) == 0 and max(read) > 4900


def test_special_tokens_spelt_out_in_a_text_are_noted(smollm2: Any, tmp_path: Path) -> None:
    smollm2.save_pretrained(tmp_path / "tokenizer")
    texts = ["A line of text.", "Another <|im_end|> and more."]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    spec = DatasetSpec(path=str(tmp_path / "rows.jsonl"), type="text")
    report, _ = looked_at(str(tmp_path / "tokenizer"), [spec], kind=TextDataModule, chat=ChatSpec(loss_scale="all"))
    notes = [finding for finding in report.findings if "spell out special tokens" in finding.text]
    assert [note.level for note in notes] == ["note"]
    assert "1 of 2 rows (50%) spell out special tokens (first: " in notes[0].text and "rows.jsonl:2)" in notes[0].text
