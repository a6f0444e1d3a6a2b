"""SampleAnswers: what a model in training answers to a few held-out prompts, at the start and at every validation.

The one idea: the same prompts every time, answered with the likeliest tokens, so that what changes is the model. No
random number is drawn, so a run with samples trains exactly as one without.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from typing_extensions import override

from surogate.batches import TokenRow
from surogate.errors import HardwareError
from surogate.metrics.records import read_records
from surogate.run_folder import RunFolder

_OPENING_LEN = 16
"""Tokens that a text without a prompt is cut after."""
_COLUMNS = ("step", "prompt", "answer", "reference")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A held-out row as a question.

    Attributes:
        prompt_ids: up to the first token that the model is to write.
        reference_ids: what stands there instead.
        ends: tokens that end an answer.
    """

    prompt_ids: list[int]
    reference_ids: list[int]
    ends: set[int]


class SampleAnswers(pl.Callback):
    """Write samples.jsonl, a line an answer, and a table for loggers that have tables.

    Args:
        folder: output_dir of the run.
        num_prompts: held-out prompts, spread over the validation sets.
        max_new_tokens: longest answer.
    """

    def __init__(self, folder: str, num_prompts: int = 3, max_new_tokens: int = 64) -> None:
        self._path = RunFolder(folder).samples_jsonl
        self.num_prompts, self.max_new_tokens = num_prompts, max_new_tokens
        self._asked: list[_Asked] | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise HardwareError(
                "sample_prompts: a model that is sharded over ranks cannot answer on one of them. "
                "Set sample_prompts: 0, or zero_level: 1."
            )

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        kept = [row for row in read_records(self._path) if row["step"] <= trainer.global_step]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("".join(map(_to_line, kept)), encoding="utf-8")
        if trainer.global_step == 0:
            self._answer(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and trainer.global_step > 0 and not trainer.sanity_checking:
            self._answer(trainer, pl_module)

    def _answer(self, trainer: pl.Trainer, module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self._asked is None:
            self._asked = list(self._questions(data))
            if not self._asked:
                _log.warning("sample_prompts: no held-out row has a prompt and room for an answer, so none is asked.")
        step = trainer.global_step
        if not self._asked or any(row["step"] == step for row in read_records(self._path)):
            return
        rows = [{"step": step, **self._row(asked, data.tokenizer, module)} for asked in self._asked]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_to_line, rows)))
        for logger in trainer.loggers:
            if hasattr(logger, "log_table"):
                table = [[row[column] for column in _COLUMNS] for row in rows]
                logger.log_table("samples", columns=list(_COLUMNS), data=table, step=step)

    def _row(self, asked: _Asked, tokenizer: Any, module: Any) -> dict[str, str]:
        ids = module.continue_ids(asked.prompt_ids, asked.ends, self.max_new_tokens, 0.0)
        return {
            "prompt": tokenizer.decode(asked.prompt_ids),
            "answer": tokenizer.decode(ids, skip_special_tokens=True).strip(),
            "reference": tokenizer.decode(asked.reference_ids, skip_special_tokens=True).strip(),
        }

    def _questions(self, data: Any) -> Iterator[_Asked]:
        stores = list(data.validation_stores.values())
        tokenizer = data.tokenizer
        special, eos = set(tokenizer.all_special_ids), {tokenizer.eos_token_id} - {None}
        for number in range(self.num_prompts if stores else 0):
            store = stores[number % len(stores)]
            place = (number // len(stores)) * len(stores) * len(store) // self.num_prompts
            # The next row that can be asked, from evenly spread places on.
            for row in range(place, min(place + 100, len(store))):
                asked = _question(store[row], self.max_new_tokens, eos, special)
                if asked is not None:
                    yield asked
                    break


def _question(row: TokenRow, max_new_tokens: int, eos: set[int], special: set[int]) -> _Asked | None:
    """Cut a row before the first token that is supervised; None where nothing is left on one side."""
    mask = np.asarray(row.loss_mask)
    if not mask.any():
        return None
    start = int(mask.argmax())
    if start < 2:  # a text, supervised from its first token on
        start = _OPENING_LEN
    rest = mask[start:]
    stop = start + (len(rest) if rest.all() else int(rest.argmin()))
    if start >= stop:
        return None
    ids = row.input_ids.tolist()
    ends = eos | {token for token in special if token == ids[stop - 1]}  # the end of a turn, where a template has one
    return _Asked(ids[:start], ids[start : min(stop, start + max_new_tokens)], ends)


def _to_line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
