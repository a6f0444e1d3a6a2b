"""RolloutDataModule: the data of GRPO, which does not exist before the policy makes it.

What is not here: how it is made (rl/orchestrator.py). The one idea: a batch carries the orchestrator's position after
it, and the one of the last batch that was handed to training is what a checkpoint holds; what was sampled beyond it is
sampled again.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from surogate.config.parts_grpo import EnvSpec, InferenceSpec, LinkSpec, OrchestratorSpec, RolloutBatchSpec
from surogate.data.tokenizers import load_tokenizer
from surogate.errors import Stopped
from surogate.modes.engine_link import EngineLink
from surogate.modes.first_rank import on_first_rank
from surogate.rl.assembly import async_level, build_generator, build_service
from surogate.rl.feed import Feed, LocalFeed
from surogate.rl.micro_batches import Layout, RolloutStepBatch, step_batch
from surogate.rl.rendering import check_engine_tokens, check_same_rendering, check_template_options, rendering
from surogate.rl.transport import FolderFeed
from surogate.rl.types import RolloutBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_say = rank_zero_only(logging.getLogger(__name__).info)

TRANSPORT_DIR = "transport"
"""Folder of a run in which a trainer and an orchestrator in another process meet."""


class RolloutDataModule(pl.LightningDataModule):
    """Batches of rollouts from an orchestrator, which lives on global rank 0 or in a process of its own.

    Args:
        tokenizer: its source, usually the model's.
        orchestrator: what is generated for each step; with link.feed folder, the orchestrator's own file says it.
        environments: prompts and rewards; likewise.
        inference: the engine; likewise.
        batch: how rollouts become micro-batches.
        link: where generation happens, and how weights get there.
    """

    def __init__(
        self,
        tokenizer: str = "",
        orchestrator: OrchestratorSpec = OrchestratorSpec(),  # noqa: B008  frozen
        environments: list[EnvSpec] = [],  # noqa: B006  never changed
        inference: InferenceSpec = InferenceSpec(),  # noqa: B008
        batch: RolloutBatchSpec = RolloutBatchSpec(),  # noqa: B008
        link: LinkSpec = LinkSpec(),  # noqa: B008
    ) -> None:
        super().__init__()
        self._tokenizer_source = tokenizer
        self._spec, self._environments, self._inference = orchestrator, environments, inference
        self._batch, self._link_spec = batch, link
        self._tokenizer: Any = None
        self._feed: Feed | None = None
        self._link: EngineLink | None = None
        self._trained: dict[str, Any] | None = None
        self._max_completion_len = min(orchestrator.sampling.max_tokens, orchestrator.seq_len)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, after setup."""
        assert self._tokenizer is not None, "setup has not run"
        return self._tokenizer

    @property
    def feed(self) -> Feed:
        """Where batches come from; on global rank 0, after start_feed."""
        assert self._feed is not None, "the feed has not started"
        return self._feed

    @property
    def link(self) -> EngineLink:
        """The way of the weights to the engine, after start_feed."""
        assert self._link is not None, "the feed has not started"
        return self._link

    @property
    def max_completion_len(self) -> int:
        """Most tokens of a completion; after start_feed."""
        return self._max_completion_len

    @property
    def longest_row_len(self) -> int:
        """Most tokens of a packed row."""
        return self._batch.sequence_len

    def setup(self, stage: str | None = None) -> None:
        """Load the tokenizer; once.

        Raises:
            ModelError: it cannot be loaded.
            ConfigError: its chat template does not know an option.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._tokenizer_source, self._inference.trust_remote_code)
            check_template_options(self._tokenizer, self._spec.sampling.chat_template_kwargs)

    # ---- the feed

    def start_feed(self, module: Any) -> None:
        """Start the engine, once the model is as it trains; on global rank 0, while the others wait.

        Args:
            module: the GrpoModule.

        Raises:
            ConfigError: an environment is not known, or its arguments are wrong.
            DataError: an environment cannot read its prompts, or has none.
            GeneratorError: the engine does not start.
            ModelError: the tokens of prompts mean something else to the orchestrator or the engine.
        """
        self._link = EngineLink(module, self._link_spec, self._inference, self._spec.max_steps)
        if facts := on_first_rank(module.trainer, lambda: self._start_feed(module), shared=True):
            check_same_rendering(rendering(self.tokenizer, facts["chat_template_kwargs"]), facts["rendering"])
            self._max_completion_len = min(facts["max_tokens"], facts["seq_len"])

    def _start_feed(self, module: Any) -> dict[str, Any] | None:
        """Start the feed and return what an orchestrator elsewhere says of itself."""
        local = self._link_spec.feed == "local"
        self._feed = self._local_feed(module) if local else self._folder_feed()
        if self._trained is not None:
            self._feed.restore(self._trained)
        self._feed.start()
        return getattr(self._feed, "facts", None)

    def _local_feed(self, module: Any) -> Feed:
        assert self._link is not None
        on_gpu = module.device.type == "cuda"
        level = async_level(self._spec, self._link_spec, on_gpu=on_gpu)
        _say("%s; generation runs %d steps ahead at most.", self._link, level)
        model_dir = self._link.model_dir(self.tokenizer)
        if self._tokenizer_source != module.model_spec.source:
            check_engine_tokens(self.tokenizer, load_tokenizer(str(model_dir)), model_dir)
        generator = build_generator(
            self._link.resolved_inference(self._spec.seq_len),
            self._link_spec,
            model_dir,
            Path(module.trainer.default_root_dir),
            self._spec.seed,
            has_gpu=on_gpu,
        )
        return LocalFeed(build_service(self._spec, self._environments, generator, self.tokenizer, level))

    def _folder_feed(self) -> Feed:
        assert self._link is not None and self.trainer is not None
        self._link.model_dir(self.tokenizer)  # where it is not the model itself, servers have to be given it
        _say("%s; the orchestrator is met in %s.", self._link, self.trainer.default_root_dir)
        return FolderFeed(Path(self.trainer.default_root_dir) / TRANSPORT_DIR)

    # ---- batches

    def train_dataloader(self) -> RolloutLoader:
        """Give this rank's steps, from the present one to the last."""
        return RolloutLoader(self)

    def batch_for_rank(self, step: int) -> RolloutStepBatch:
        """Wait for the batch of a step on global rank 0, and lay out this rank's share.

        Raises:
            SurogateError: what the feed met, on every rank.
        """
        trainer: Any = self.trainer
        batch = on_first_rank(trainer, lambda: self.feed.next_batch(step), shared=True)
        assert isinstance(batch, RolloutBatch)
        layout = Layout(
            sequence_len=self._batch.sequence_len,
            rows=self._batch.per_device_train_batch_size,
            min_micro_batches=self._batch.min_micro_batches,
            world_size=trainer.world_size,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        keeps_all = trainer.lightning_module.loss_spec.kl_tau != 0
        return step_batch(batch, layout, trainer.global_rank, keeps_all=keeps_all)

    def on_after_batch_transfer(self, batch: RolloutStepBatch, dataloader_idx: int) -> RolloutStepBatch:
        """Remember the position of the batch that training is handed."""
        self._trained = batch.ledger
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Give the orchestrator's position after the last batch that was handed to training."""
        return {"ledger": self._trained} if self._trained else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's position; start_feed checks that it fits."""
        self._trained = state_dict.get("ledger")

    # ---- the end

    def teardown(self, stage: str) -> None:
        """End the engine."""
        trainer = self.trainer
        self._close(is_over=trainer is not None and trainer.global_step >= trainer.max_steps)

    def on_exception(self, exception: BaseException) -> None:
        """End the engine where the run ends early. Only Ctrl-C says that nobody will continue it soon."""
        by_signal = exception.signum == signal.SIGINT if isinstance(exception, Stopped) else False
        self._close(is_over=by_signal or isinstance(exception, KeyboardInterrupt))

    def _close(self, *, is_over: bool) -> None:
        if self._feed is not None:
            self._feed.close(is_over=is_over)


class RolloutLoader:
    """The steps of a run as an iterable; each batch is waited for when it is asked for, never before.

    Its length keeps Lightning from fetching a batch ahead, which an on-policy step would wait for forever. That it has
    a state, an empty one, tells Lightning that it can go on in the middle: the data module holds the position.
    """

    def __init__(self, data: RolloutDataModule) -> None:
        self._data = data

    def __len__(self) -> int:
        assert self._data.trainer is not None
        return int(self._data.trainer.max_steps)

    def __iter__(self) -> Iterator[RolloutStepBatch]:
        trainer = self._data.trainer
        assert trainer is not None
        for step in range(trainer.global_step, len(self)):
            yield self._data.batch_for_rank(step)

    def state_dict(self) -> dict[str, Any]:
        """Give nothing; see the class."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing."""
