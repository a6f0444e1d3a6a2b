"""ChatDataModule and TextDataModule: data as StepBatches, with one resumable position for the whole run.

What is not here: every single step of the way (the other modules of this package); this is where they are strung
together and where Lightning is met. The one idea: the ledger travels with each batch, and the one of the last batch
that was handed to training is the run's position. Where an epoch starts and ends is the ledger's business alone: each
new pass over the train loader goes on from it. Lightning's epoch counter runs along but decides nothing, because after
a restart at an epoch's end it is counted up only after the loader was opened.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from surogate.batches import StepBatch
from surogate.config.parts import BatchSpec, ChatSpec, DatasetSpec
from surogate.data.cache import TokenCache
from surogate.data.chat import ChatRenderer
from surogate.data.encoding import LengthLimit
from surogate.data.held_out import held_out
from surogate.data.ledger import Ledger, Walk, WalkSpec
from surogate.data.prepare import TokenSettings, named, prepare
from surogate.data.row_store import RowStore
from surogate.data.step_batches import Share, StepBatchDataset, StepBatchLoader, StepPlanSampler, plans_in_file_order
from surogate.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

_say = rank_zero_only(log.info)


class StepDataModule(pl.LightningDataModule):
    """Data for training and validation, whatever its rows are.

    Args:
        tokenizer: its source, usually the model's.
        datasets: to train on.
        validation_datasets: to validate on.
        validation_split_ratio: share of each training set that is validated on instead, when there are no
            validation_datasets; 0 for no validation.
        batch: how rows become steps.
        chat: how conversations become tokens, and the limits of all rows.
        trust_remote_code: run code that comes with the tokenizer's hub repository.
    """

    _prefers_text = False

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
        _check(tokenizer, datasets, validation_split_ratio, batch, chat)
        self._tokenizer_source = tokenizer
        self._trust_remote_code = trust_remote_code
        self._datasets = datasets
        self._validation_datasets = validation_datasets
        self._validation_split_ratio = 0.0 if validation_datasets else validation_split_ratio
        self._batch = batch
        self._chat = chat
        self._settings: TokenSettings | None = None
        self._stores: tuple[list[RowStore], list[RowStore]] | None = None
        self.train_stores: dict[str, RowStore] = {}
        """Rows that are trained on, by the name of their data set; after setup."""
        self.validation_stores: dict[str, RowStore] = {}
        """Rows that are validated on."""
        self._walk: Walk | None = None
        self._trained: Ledger | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, after setup."""
        assert self._settings is not None, "setup has not run"
        return self._settings.tokenizer

    @property
    def renderer(self) -> ChatRenderer:
        """A renderer of conversations with the settings of the run.

        Raises:
            DataError: there is no chat template.
        """
        return ChatRenderer(self.tokenizer, self._chat)

    @property
    def validation_names(self) -> list[str]:
        """One name for each loader of val_dataloader, for metrics."""
        return list(self.validation_stores)

    @property
    def sample_packing(self) -> bool:
        """Whether samples share rows."""
        return self._batch.sample_packing

    @property
    def longest_row_len(self) -> int:
        """Tokens of the longest row, after setup."""
        stores = [*self.train_stores.values(), *self.validation_stores.values()]
        return max(int(store.lengths.max()) for store in stores)

    def prepare_data(self) -> None:
        """Tokenise what is not in the cache; Lightning calls it on one rank of each machine before all others go on.

        Raises:
            ConfigError: the settings do not fit the rows.
            DataError: a file, a row or a template cannot be used.
            ModelError: the tokenizer cannot be loaded.
        """
        if self._stores is not None:
            return
        self._settings = TokenSettings.load(
            self._tokenizer_source,
            self._chat,
            self._batch.sequence_len,
            prefers_text=self._prefers_text,
            trust_remote_code=self._trust_remote_code,
        )
        cache = TokenCache()
        train, validation = (
            [prepare(name, spec, self._settings, cache) for name, spec in named(specs)]
            for specs in (self._datasets, self._validation_datasets)
        )
        self._stores = train, validation

    def setup(self, stage: str | None = None) -> None:
        """Open the token stores, on every rank alike; once.

        Raises:
            SurogateError: as prepare_data, which need not have run.
        """
        if self._walk is not None:
            return
        self.prepare_data()
        assert self._stores is not None
        stores, validation = self._stores
        chosen = held_out(stores, self._validation_split_ratio, self._batch.eval_seed)
        for (name, _), store, rows in zip(named(self._datasets), stores, chosen, strict=True):
            self.train_stores[name] = store.select(np.flatnonzero(~rows))
            if rows.any():
                self.validation_stores[name] = store.select(np.flatnonzero(rows))
                _say("%s: %d rows held out for validation", name, rows.sum())
        for (name, _), store in zip(named(self._validation_datasets), validation, strict=True):
            self.validation_stores[name] = store
        if self._validation_split_ratio and not self.validation_stores:
            _say("there are too few rows to hold any out for validation, so nothing is validated")
        self._walk = self._walk_over(self.train_stores, _weights(self._datasets))

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
        return StepBatchLoader(self._dataset(self.train_stores.values()), sampler, self._num_workers())

    def val_dataloader(self) -> list[StepBatchLoader]:
        """Give one loader for each validation set; all ranks get the same number of batches."""
        return [
            StepBatchLoader(
                self._dataset([store]),
                plans_in_file_order(self._walk_over({name: store}), self._share()),
                self._num_workers(),
            )
            for name, store in self.validation_stores.items()
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

    def realised_mix(self) -> dict[str, float]:
        """Give the metrics of the mixture: each source's share of the rows drawn so far, and its epochs."""
        if self._trained is None:
            return {}
        drawn = self._built_walk.drawn(self._trained)
        metrics = {}
        for (name, store), rows in zip(self.train_stores.items(), drawn, strict=True):
            metrics[f"data/{name}/share"] = rows / sum(drawn)
            metrics[f"data/{name}/epochs"] = rows / len(store)
        return metrics

    def data_summary(self) -> dict[str, Any]:
        """Describe the data for the run's records: what is there, what was left out, and how it is mixed.

        An epoch's shares of tokens are those of the sources' mean row, exact where an epoch holds every row once.
        """
        draws = self._built_walk.draws
        train = [_summary(name, store) for name, store in self.train_stores.items()]
        tokens = [rows * part["tokens"] / part["rows"] for rows, part in zip(draws, train, strict=True)]
        for part, rows, of_source in zip(train, draws, tokens, strict=True):
            part["epoch_share"] = rows / sum(draws)
            part["epoch_token_share"] = of_source / sum(tokens)
            part["passes_per_epoch"] = rows / part["rows"]
        return {
            "train": train,
            "validation": [_summary(name, store) for name, store in self.validation_stores.items()],
            "packs_per_step": self._packs_per_step(),
        }

    @property
    def _built_walk(self) -> Walk:
        assert self._walk is not None, "setup has not run"
        return self._walk

    def _walk_over(self, stores: Mapping[str, RowStore], weights: tuple[float, ...] | None = None) -> Walk:
        spec = WalkSpec(
            sequence_len=self._batch.sequence_len,
            packing=self._batch.sample_packing,
            seed=self._batch.train_seed,
            weights=weights,
        )
        fingerprints = {name: store.fingerprint for name, store in stores.items()}
        return Walk([store.lengths for store in stores.values()], fingerprints, spec)

    def _dataset(self, stores: Iterable[RowStore]) -> StepBatchDataset:
        return StepBatchDataset(list(stores), self.tokenizer.pad_token_id)

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


class ChatDataModule(StepDataModule):
    """Conversations and instructions; a text among the data sets is trained on whole."""


class TextDataModule(StepDataModule):
    """Plain text, every token supervised; conversations among the data sets are supervised as `chat` says.

    Args:
        tokenizer: its source, usually the model's.
        datasets: to train on.
        validation_datasets: to validate on.
        validation_split_ratio: share of the documents of each training set that is validated on instead.
        batch: how rows become steps.
        chat: limits of the rows, and how conversations become tokens.
        trust_remote_code: run code that comes with the tokenizer's hub repository.
    """

    _prefers_text = True

    def __init__(
        self,
        tokenizer: str = "",
        datasets: list[DatasetSpec] = [],  # noqa: B006
        validation_datasets: list[DatasetSpec] = [],  # noqa: B006
        validation_split_ratio: float = 0.1,
        batch: BatchSpec = BatchSpec(),  # noqa: B008
        chat: ChatSpec = ChatSpec(loss_scale="all"),  # noqa: B008
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(
            tokenizer, datasets, validation_datasets, validation_split_ratio, batch, chat, trust_remote_code
        )


def _weights(specs: Sequence[DatasetSpec]) -> tuple[float, ...] | None:
    """Give each data set its weight, 1 where it has none; None where no weight was asked for."""
    if all(spec.weight is None for spec in specs):
        return None
    return tuple(1.0 if spec.weight is None else spec.weight for spec in specs)


def _summary(name: str, store: RowStore) -> dict[str, Any]:
    """Give the numbers of a source; what was left out is counted for the source as a whole."""
    tokens, loss_tokens = int(store.lengths.sum()), int(store.num_loss_tokens.sum())
    return {
        "name": name,
        "type": store.info["type"],
        "rows": len(store),
        "documents": len(np.unique(store.documents)),
        "tokens": tokens,
        "supervised_tokens": loss_tokens,
        "supervised_share": loss_tokens / tokens,
        "bad_rows": store.info["bad"],
        "rows_over_max_length": store.info["too_long"],
        "fingerprint": store.fingerprint,
    }


def _check(
    tokenizer: str, datasets: Sequence[DatasetSpec], validation_split_ratio: float, batch: BatchSpec, chat: ChatSpec
) -> None:
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
    LengthLimit.of(chat, batch.sequence_len, "text")
