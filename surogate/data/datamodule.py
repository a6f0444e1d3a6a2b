"""ChatDataModule: chat data as StepBatches, with one resumable position for the whole run.

What is not here: every single step of the way (the other modules of this package); this is where they are strung
together and where Lightning is met. The one idea: the ledger travels with each batch, and the one of the last batch
that was handed to training is the run's position. Where an epoch starts and ends is the ledger's business alone: each
new pass over the train loader goes on from it. Lightning's epoch counter runs along but decides nothing, because after
a restart at an epoch's end it is counted up only after the loader was opened.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from surogate.batches import StepBatch, TokenRow
from surogate.config.parts import BatchSpec, ChatSpec, DatasetSpec
from surogate.data.encoding import EncodedSource, LengthLimit, encode_source, held_out
from surogate.data.formats import Conversation, detect_type, to_conversation
from surogate.data.ledger import Ledger, Walk, WalkSpec
from surogate.data.row_store import RowStore
from surogate.data.sources import open_rows
from surogate.data.step_batches import Share, StepBatchDataset, StepBatchLoader, StepPlanSampler, plans_in_file_order
from surogate.data.tokenizers import load_tokenizer
from surogate.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

_say = rank_zero_only(log.info)

_SECONDS_BETWEEN_PROGRESS_LINES = 5.0


@dataclass(frozen=True, slots=True)
class StoredSource:
    """The rows of a source that are trained on, or validated on."""

    name: str
    store: RowStore
    num_bad_rows: int
    num_too_long_rows: int

    @classmethod
    def of(cls, encoded: EncodedSource, chosen: np.ndarray | None = None) -> StoredSource:
        """Store the rows of the chosen conversations, or of all."""
        rows = encoded.rows if chosen is None else compress(encoded.rows, chosen)
        store = RowStore.build(chain.from_iterable(rows))
        return cls(encoded.name, store, len(encoded.bad), len(encoded.too_long))

    def summary(self) -> dict[str, Any]:
        """Give the numbers for the run's records; what was left out is counted for the source as a whole."""
        tokens, loss_tokens = int(self.store.lengths.sum()), int(self.store.num_loss_tokens.sum())
        return {
            "name": self.name,
            "rows": len(self.store),
            "tokens": tokens,
            "supervised_tokens": loss_tokens,
            "supervised_share": loss_tokens / tokens,
            "bad_rows": self.num_bad_rows,
            "rows_over_max_length": self.num_too_long_rows,
            "fingerprint": self.store.fingerprint,
        }


class ChatDataModule(pl.LightningDataModule):
    """Chat data for training and validation.

    Args:
        tokenizer: its source, usually the model's.
        datasets: to train on.
        validation_datasets: to validate on.
        validation_split_ratio: share of each training set that is validated on instead, when there are no
            validation_datasets; 0 for no validation.
        batch: how rows become steps.
        chat: how conversations become tokens.
        trust_remote_code: run code that comes with the tokenizer's hub repository.
    """

    def __init__(
        self,
        tokenizer: str = "",
        datasets: list[DatasetSpec] = [],  # noqa: B006  (never changed; jsonargparse shows it as the default)
        validation_datasets: list[DatasetSpec] = [],  # noqa: B006
        validation_split_ratio: float = 0.1,
        batch: BatchSpec = BatchSpec(),  # noqa: B008
        chat: ChatSpec = ChatSpec(),  # noqa: B008
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        _check(tokenizer, datasets, validation_split_ratio, batch)
        self._tokenizer_source = tokenizer
        self._trust_remote_code = trust_remote_code
        self._datasets = datasets
        self._validation_datasets = validation_datasets
        self._validation_split_ratio = 0.0 if validation_datasets else validation_split_ratio
        self._batch = batch
        self._chat = chat
        self._limit = LengthLimit.of(chat, batch.sequence_len)
        self._tokenizer: PreTrainedTokenizerFast | None = None
        self._train: list[StoredSource] = []
        self._validation: list[StoredSource] = []
        self._walk: Walk | None = None
        self._trained: Ledger | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, after setup."""
        assert self._tokenizer is not None, "setup has not run"
        return self._tokenizer

    @property
    def validation_names(self) -> list[str]:
        """One name for each loader of val_dataloader, for metrics."""
        return [source.name for source in self._validation]

    @property
    def longest_row_len(self) -> int:
        """Tokens of the longest row, after setup."""
        return max(int(source.store.lengths.max()) for source in [*self._train, *self._validation])

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenise everything, on every rank alike; once.

        Raises:
            DataError: a file, a row or a template cannot be used.
            ModelError: the tokenizer cannot be loaded.
        """
        if self._walk is not None:
            return
        from surogate.data.chat import ChatRenderer

        self._tokenizer = load_tokenizer(self._tokenizer_source, self._trust_remote_code)
        renderer = ChatRenderer(self._tokenizer, self._chat)
        if renderer.template is not None:  # the one that is saved beside the adapter must be the one trained on
            self._tokenizer.chat_template = renderer.template

        def encode(conversation: Conversation) -> list[TokenRow]:
            return renderer.encode(conversation.messages, conversation.tools)

        for name, spec in _named(self._datasets):
            encoded = self._encode(name, spec, encode)
            held = held_out(encoded.conversations, self._validation_split_ratio, self._batch.eval_seed)
            self._train.append(StoredSource.of(encoded, ~held))
            if held.any():
                self._validation.append(StoredSource.of(encoded, held))
                _say("%s: %d rows held out for validation", name, len(self._validation[-1].store))
        for name, spec in _named(self._validation_datasets):
            self._validation.append(StoredSource.of(self._encode(name, spec, encode)))
        self._walk = self._walk_over(self._train, tuple(spec.weight for spec in self._datasets))

    def train_dataloader(self) -> StepBatchLoader:
        """Give the loader of this rank; each pass goes on from the ledger to the end of its epoch.

        Raises:
            CheckpointError: the restored ledger belongs to other data or settings.
            ConfigError: its global batch cannot be formed on this many ranks.
        """
        walk, share = self._built_walk, self._share()
        if self._trained is not None:
            walk.check(self._trained)
        packs_per_step = self._packs_per_step()
        if packs_per_step % share.packs_per_round:
            raise ConfigError(
                f"The checkpoint was made with {packs_per_step} packs in an optimizer step. {share.world_size} ranks x "
                f"per_device_train_batch_size {share.micro_batch_size} = {share.packs_per_round} does not divide that. "
                "Use a number of ranks and a per_device_train_batch_size whose product does."
            )
        accumulation = packs_per_step // share.packs_per_round
        if accumulation != self._batch.gradient_accumulation_steps:
            _say(
                "the checkpoint fixes %d packs a step: gradient_accumulation_steps is %d", packs_per_step, accumulation
            )
        sampler = StepPlanSampler(walk, self._position, share)
        return StepBatchLoader(self._dataset(self._train), sampler, self._num_workers())

    def val_dataloader(self) -> list[StepBatchLoader]:
        """Give one loader for each validation set; all ranks get the same number of batches."""
        return [
            StepBatchLoader(
                self._dataset([source]),
                plans_in_file_order(self._walk_over([source], (1.0,)), self._share()),
                self._num_workers(),
            )
            for source in self._validation
        ]

    def on_after_batch_transfer(self, batch: StepBatch, dataloader_idx: int) -> StepBatch:
        """Remember the position of the batch that training is handed."""
        if self.trainer is not None and self.trainer.training:
            self._trained = Ledger.from_dict(batch.ledger)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Give the ledger of the last batch that was handed to training."""
        return {"ledger": self._trained.to_dict()} if self._trained else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's ledger; train_dataloader checks that it fits."""
        if "ledger" in state_dict:
            self._trained = Ledger.from_dict(state_dict["ledger"])

    def num_steps(self, max_epochs: int) -> int:
        """Count the optimizer steps of that many epochs, exactly."""
        packs_per_step = self._packs_per_step()
        return sum(self._built_walk.num_steps(epoch, packs_per_step) for epoch in range(max_epochs))

    def data_summary(self) -> dict[str, Any]:
        """Describe the data for the run's records: what is there, what was left out, and how it is mixed."""
        walk = self._built_walk
        draws = sum(walk.draws)
        shares = [rows / draws for rows in walk.draws]
        return {
            "train": [
                source.summary() | {"epoch_share": share} for source, share in zip(self._train, shares, strict=True)
            ],
            "validation": [source.summary() for source in self._validation],
            "packs_per_step": self._packs_per_step(),
        }

    @property
    def _built_walk(self) -> Walk:
        assert self._walk is not None, "setup has not run"
        return self._walk

    def _encode(self, name: str, spec: DatasetSpec, encode: Callable[[Conversation], list[TokenRow]]) -> EncodedSource:
        rows = open_rows(spec)
        columns = list(rows[0].values)
        detected = detect_type(columns, spec)
        if spec.type == "auto":
            _say("%s: type %s, from the columns %s", name, detected.type, ", ".join(columns))
        conversations = _with_progress(name, [to_conversation(row, detected) for row in rows])
        encoded = encode_source(name, conversations, encode, self._limit, self._chat.max_bad_row_fraction)
        _say("%s", encoded.describe())
        return encoded

    def _walk_over(self, sources: Sequence[StoredSource], weights: tuple[float, ...]) -> Walk:
        spec = WalkSpec(
            sequence_len=self._batch.sequence_len,
            packing=self._batch.sample_packing,
            seed=self._batch.train_seed,
            weights=weights,
        )
        fingerprints = {source.name: source.store.fingerprint for source in sources}
        return Walk([source.store.lengths for source in sources], fingerprints, spec)

    def _dataset(self, sources: Sequence[StoredSource]) -> StepBatchDataset:
        return StepBatchDataset([source.store for source in sources], self.tokenizer.pad_token_id)

    def _share(self) -> Share:
        trainer = self.trainer
        world_size, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        return Share(world_size, rank, self._batch.per_device_train_batch_size)

    def _packs_per_step(self) -> int:
        if self._trained is not None:
            return self._trained.packs_per_step
        return self._share().packs_per_round * self._batch.gradient_accumulation_steps

    def _position(self) -> Ledger:
        if self._trained is None:
            return self._built_walk.start(0, self._packs_per_step())
        return self._built_walk.next_start(self._trained)

    def _num_workers(self) -> int:
        if self._batch.num_workers is not None:
            return self._batch.num_workers
        return 2 if torch.cuda.is_available() else 0


def _check(tokenizer: str, datasets: Sequence[DatasetSpec], validation_split_ratio: float, batch: BatchSpec) -> None:
    problems = []
    if not tokenizer:
        problems.append("tokenizer is empty; give the model's source")
    if not datasets:
        problems.append("datasets is empty; name at least one to train on")
    if not 0 <= validation_split_ratio < 1:
        problems.append(f"validation_split_ratio is {validation_split_ratio:g}; allowed is 0 to below 1")
    if batch.padding_side != "right":
        problems.append(
            "padding_side left is not supported; padding is a document of its own, so its side changes nothing"
        )
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def _named(specs: Sequence[DatasetSpec]) -> list[tuple[str, DatasetSpec]]:
    """Give each data set its name, or its file's; a repeated one gets a number, so that metrics stay apart."""
    named: dict[str, DatasetSpec] = {}
    for spec in specs:
        stem = spec.name or spec.path.rstrip("/").rpartition("/")[2].partition(".")[0] or spec.path
        name, number = stem, 1
        while name in named:
            number += 1
            name = f"{stem}-{number}"
        named[name] = spec
    return list(named.items())


def _with_progress(name: str, conversations: Sequence[Conversation]) -> Iterator[Conversation]:
    started = last_line = time.monotonic()
    for done, conversation in enumerate(conversations):
        if time.monotonic() - last_line > _SECONDS_BETWEEN_PROGRESS_LINES:
            last_line = time.monotonic()
            rate = done / (last_line - started)
            _say("%s: tokenised %d of %d rows, %.0f a second", name, done, len(conversations), rate)
        yield conversation
