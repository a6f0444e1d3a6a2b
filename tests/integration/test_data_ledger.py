"""The proof that the data position is one ledger for the run: killed and continued on 2 -> 1 -> 2 ranks, it sees the
same global batches in the same order, and every row exactly once an epoch.

Run as a script, this file is one such training run (DDP starts it again for its second rank).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from support.word_tokenizer import COMMON_WORDS, save_word_tokenizer

from surogate.batches import StepBatch
from surogate.config.parts import BatchSpec, DatasetSpec
from surogate.data.datamodule import ChatDataModule

NUM_ROWS = {"left": 37, "right": 23}
NUM_EPOCHS = 3
PACKS_PER_STEP = 4

FIRST_ROW_TOKEN = len(COMMON_WORDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets and a tokenizer in which the first word of each row is the row's own token."""
    folder = tmp_path_factory.mktemp("ledger")
    rng = random.Random(0)
    names = [f"{name}{i}" for name, count in NUM_ROWS.items() for i in range(count)]
    for name in NUM_ROWS:
        rows = [{"instruction": row, "output": " ".join(["word"] * rng.randint(3, 30))} for row in names if name in row]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_word_tokenizer(folder / "tokenizer", names)
    return folder


class Recorder(pl.LightningModule):
    """Trains one weight and writes down the packs it is given."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.folder = folder
        self.steps: list[dict[str, Any]] = []

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.weight.square().sum())
        optimizer.step()
        packs = [_rows_of(micro_batch.input_ids_BT[0]) for micro_batch in batch.micro_batches]
        self.steps.append({"at": [batch.ledger["epoch"], batch.ledger["step"]], "packs": packs})
        with (self.folder / f"rank{self.global_rank}.jsonl").open("a") as log:
            log.write(json.dumps(self.steps[-1]) + "\n")

    def validation_step(self, batch: StepBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        assert not batch.ledger

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _rows_of(input_ids_T: torch.Tensor) -> list[int]:
    """The rows of a pack by the tokens that are theirs alone."""
    return [token for token in input_ids_T.tolist() if token >= FIRST_ROW_TOKEN]


class SaveAndDie(pl.Callback):
    """Saves after given steps, and kills its process after another."""

    def __init__(self, folder: Path, save_at: Sequence[int], die_at: int | None) -> None:
        self.folder, self.save_at, self.die_at = folder, save_at, die_at

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step in self.save_at:
            trainer.save_checkpoint(self.folder / f"step_{trainer.global_step}.ckpt")
        if trainer.global_step == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)


def train(
    folder: Path,
    name: str,
    *,
    ranks: int = 1,
    accumulation: int = PACKS_PER_STEP // 2,
    resume: str | None = None,
    save_at: Sequence[int] = (),
    die_at: int | None = None,
    num_workers: int = 0,
    validation_split_ratio: float = 0.0,
    **trainer_options: Any,
) -> list[dict[str, Any]]:
    """Train to the end, or until the process kills itself; return the steps that this rank saw."""
    data = ChatDataModule(
        tokenizer=str(folder / "tokenizer"),
        datasets=[DatasetSpec(path=str(folder / f"{source}.jsonl")) for source in NUM_ROWS],
        validation_split_ratio=validation_split_ratio,
        batch=BatchSpec(
            sequence_len=64,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=accumulation,
            num_workers=num_workers,
        ),
    )
    (folder / name).mkdir(exist_ok=True)
    recorder = Recorder(folder / name)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if validation_split_ratio else 0,
        callbacks=[SaveAndDie(folder / name, save_at, die_at)],
        **{"max_epochs": NUM_EPOCHS, **trainer_options},
    )
    trainer.fit(recorder, datamodule=data, ckpt_path=folder / resume if resume else None, weights_only=False)
    return recorder.steps


def train_in_subprocess(folder: Path, name: str, **options: Any) -> list[dict[str, Any]]:
    """Run `train` as a command of its own; return the global batches that its ranks saw together."""
    command = [sys.executable, __file__, json.dumps({"folder": str(folder), "name": name, **options})]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:3])),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == (-signal.SIGKILL if options.get("die_at") else 0), done.stderr
    ranks = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((folder / name).glob("rank*.jsonl"))
    ]
    return [_global_batch(shares) for shares in zip(*ranks, strict=False)]  # one rank may die a step before the other


def _global_batch(shares: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put the ranks' micro-batches of one pack each back into the order of the global batch."""
    assert len({tuple(share["at"]) for share in shares}) == 1, "the ranks stand at different steps"
    assert len({len(share["packs"]) for share in shares}) == 1, "the ranks have different numbers of micro-batches"
    packs = [
        pack for packs_of_ranks in zip(*(share["packs"] for share in shares), strict=True) for pack in packs_of_ranks
    ]
    return {"at": shares[0]["at"], "packs": [pack for pack in packs if pack]}


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> list[dict[str, Any]]:
    steps = train(folder, "uninterrupted", accumulation=PACKS_PER_STEP)
    return [_global_batch([step]) for step in steps]


def test_every_row_comes_exactly_once_an_epoch(uninterrupted: list[dict[str, Any]]) -> None:
    for epoch in range(NUM_EPOCHS):
        seen = Counter(
            row for step in uninterrupted if step["at"][0] == epoch for pack in step["packs"] for row in pack
        )
        assert len(seen) == sum(NUM_ROWS.values())
        assert set(seen.values()) == {1}


def test_epochs_are_shuffled_differently_and_mix_the_sources(uninterrupted: list[dict[str, Any]]) -> None:
    first, second = ([s["packs"] for s in uninterrupted if s["at"][0] == epoch] for epoch in (0, 1))
    assert first != second
    boundary = FIRST_ROW_TOKEN + NUM_ROWS["left"]
    assert all({row < boundary for pack in packs for row in pack} == {True, False} for packs in first)


def test_a_run_killed_and_continued_on_two_one_and_two_ranks_sees_the_same_global_batches(
    folder: Path, uninterrupted: list[dict[str, Any]]
) -> None:
    steps_per_epoch = sum(step["at"][0] == 0 for step in uninterrupted)
    first, second = 2, steps_per_epoch + 2
    assert second + 2 < 2 * steps_per_epoch, "both stops should lie inside an epoch"
    parts = [
        {"ranks": 2, "save_at": [first], "die_at": first + 2},
        {"ranks": 1, "resume": f"0/step_{first}.ckpt", "save_at": [second], "die_at": second + 1},
        {"ranks": 2, "resume": f"1/step_{second}.ckpt"},
    ]
    seen = [train_in_subprocess(folder, str(i), num_workers=2, **options) for i, options in enumerate(parts)]
    assert seen[0][:first] + seen[1][: second - first] + seen[2] == uninterrupted
    assert len(seen[0]) > first and len(seen[1]) > second - first, "steps behind the checkpoints were lost and replayed"


@pytest.mark.parametrize("by_steps", [False, True], ids=["ends by epochs", "ends by steps"])
def test_a_run_continues_from_a_checkpoint_of_any_step(
    folder: Path, uninterrupted: list[dict[str, Any]], by_steps: bool
) -> None:
    # An epoch's first, second-last and last step are among them: there Lightning's own progress is at its trickiest.
    ends = {"max_epochs": -1, "max_steps": len(uninterrupted)} if by_steps else {}
    every_step = range(1, len(uninterrupted) + 1)
    name = f"saves {by_steps}"
    train(folder, name, accumulation=PACKS_PER_STEP, save_at=every_step, **ends)
    for step in every_step:
        seen = train(folder, f"from {step}", accumulation=PACKS_PER_STEP, resume=f"{name}/step_{step}.ckpt", **ends)
        assert [_global_batch([share]) for share in seen] == uninterrupted[step:], f"continued from step {step}"


def test_validation_in_between_does_not_move_the_position(folder: Path) -> None:
    options: dict[str, Any] = {"validation_split_ratio": 0.2, "val_check_interval": 2, "check_val_every_n_epoch": None}
    whole = train(folder, "validated", save_at=[2, 3], **options)
    for step in (2, 3):
        assert train(folder, f"validated {step}", resume=f"validated/step_{step}.ckpt", **options) == whole[step:]


def test_the_number_of_steps_is_known_before_training(folder: Path, uninterrupted: list[dict[str, Any]]) -> None:
    data = ChatDataModule(
        tokenizer=str(folder / "tokenizer"),
        datasets=[DatasetSpec(path=str(folder / f"{source}.jsonl")) for source in NUM_ROWS],
        validation_split_ratio=0.0,
        batch=BatchSpec(sequence_len=64, per_device_train_batch_size=1, gradient_accumulation_steps=PACKS_PER_STEP),
    )
    data.setup()
    assert data.num_steps(NUM_EPOCHS) == len(uninterrupted)


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    train(Path(arguments.pop("folder")), **arguments)
