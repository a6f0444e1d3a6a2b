"""One global batch computed in different ways, which must give one loss: `surogate verify loss`.

The one idea: every way goes through the module's own training_step, with a learning rate of 0, on the documents of the
run's first batch. What is not here: how the documents are cut anew (recut.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from typing_extensions import override

from surogate.batches import StepBatch
from surogate.errors import ModelError
from surogate.models import isolation
from surogate.models.hidden import base_model
from surogate.verification.recut import apart, packed, packs_of, with_micro_batches

TOLERANCES = {
    "float64": (1e-9, 1e-8),
    "float32": (1e-5, 1e-4),
    "bfloat16": (5e-3, 5e-2),
    "float16": (1e-3, 1e-2),
    "float8": (1e-2, 5e-2),
    "nvfp4": (5e-2, 3e-1),
}
"""Largest differences of loss and gradient norm, relative, by the numbers that products are computed in."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one way gave.

    Attributes:
        way: what is done otherwise; the first outcome is that of the configuration.
        loss, grad_norm: of the step; NaN where it was not computed.
        problem: why it was not.
    """

    way: str
    loss: float = float("nan")
    grad_norm: float = float("nan")
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class LossReport:
    """All ways, and what they may differ by.

    Attributes:
        numbers: a key of TOLERANCES.
        documents, tokens: of the batch; tokens are the supervised ones.
        outcomes: the configuration's own first.
    """

    numbers: str
    documents: int
    tokens: int
    outcomes: list[Outcome]

    def differences(self, outcome: Outcome) -> tuple[float, float]:
        """Return those of loss and gradient norm, relative to the configuration's own."""
        own = self.outcomes[0]
        return _relative(outcome.loss, own.loss), _relative(outcome.grad_norm, own.grad_norm)

    def is_within(self, outcome: Outcome) -> bool:
        """Whether a way gives the configuration's loss; one that was not computed contradicts nothing."""
        pairs = zip(self.differences(outcome), TOLERANCES[self.numbers], strict=True)
        return outcome.problem is not None or all(difference <= tolerance for difference, tolerance in pairs)

    @property
    def is_invariant(self) -> bool:
        """Whether all ways agree."""
        return all(map(self.is_within, self.outcomes))


def _relative(value: float, of: float) -> float:
    return abs(value - of) / max(abs(of), 1e-12)


class Measured(Exception):
    """The way out of a training loop that has served; carries the report."""

    def __init__(self, report: LossReport) -> None:
        super().__init__("the loss has been measured")
        self.report = report


class LossInvariance(pl.Callback):
    """Measure the first batch in all ways, and leave.

    Args:
        micro_batch_size: per_device_train_batch_size of the run.
        sequence_len: tokens in a packed row.
        is_packed: whether the run packs.
    """

    def __init__(self, micro_batch_size: int, sequence_len: int, is_packed: bool) -> None:
        self.micro_batch_size, self.sequence_len, self.is_packed = micro_batch_size, sequence_len, is_packed

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: StepBatch, batch_idx: int
    ) -> None:
        module: Any = pl_module
        _hold_still_(module)
        outcomes = []
        for way in self._ways(module, batch):
            outcomes.append(_outcome(module, way))
        raise Measured(
            LossReport(
                numbers=numbers_of(trainer, module),
                documents=sum(map(len, packs_of(batch))),
                tokens=batch.num_loss_tokens,
                outcomes=outcomes,
            )
        )

    def _ways(self, module: Any, batch: StepBatch) -> Iterator[_Way]:
        plain = _Way("as configured", lambda: batch)
        if not module.trainer.precision_plugin.recipe.changes_nothing:
            _outcome(module, plain)
            module.trainer.precision_plugin._scaling = None  # scales of float8 stay those of this step
        yield plain
        yield from self._cuts(batch)
        is_on = module.model_spec.recompute
        yield _Way(f"recompute: {str(not is_on).lower()}", lambda: batch, lambda: _recompute(module, is_on))
        for chunks in (1, 4, "auto"):
            if chunks != module.lmhead_chunks:
                yield _Way(f"lmhead_chunks: {chunks}", lambda: batch, partial(_chunks, module, chunks))
        chosen = base_model(module.model).config._attn_implementation
        names = ("varlen", "sdpa", "eager") if module.device.type == "cpu" else ("varlen", "flex", "sdpa", "eager")
        for name in names:
            if chosen not in isolation._CANDIDATES[name]:
                change = partial(_attention, module, name, chosen, self.is_packed)
                yield _Way(f"attn_implementation: {name}", lambda: batch, change)

    def _cuts(self, batch: StepBatch) -> Iterator[_Way]:
        packs = packs_of(batch)
        own = self.micro_batch_size
        for size in sorted({1, 2 * own, len(packs)} - {own}):
            if size <= len(packs):
                count = -(-len(packs) // size)
                title = f"{size} row{'s' if size > 1 else ''} x {count} micro-batch{'es' if count > 1 else ''}"
                yield _Way(title, partial(with_micro_batches, batch, packs, size))
        other = apart(packs) if self.is_packed else packed(packs, self.sequence_len)
        title = f"sample_packing: {str(not self.is_packed).lower()} ({len(other)} rows)"
        yield _Way(title, lambda: with_micro_batches(batch, other, own))


@dataclass(frozen=True)
class _Way:
    """One way: its name, the batch, and what is changed while it is computed."""

    title: str
    batch: Callable[[], StepBatch]
    change: Callable[[], AbstractContextManager[None]] = nullcontext


def _outcome(module: Any, way: _Way) -> Outcome:
    try:
        with way.change():
            module.training_step(way.batch().to(module.device), 0)
    except ModelError as error:
        return Outcome(way=way.title, problem=f"not with this model: {error}")
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return Outcome(way=way.title, problem="out of memory")
    metrics = module.step_metrics
    return Outcome(way=way.title, loss=float(metrics["loss"]), grad_norm=float(metrics["grad_norm"]))


def _hold_still_(module: Any) -> None:
    """Let a step change no weight, and nothing be dropped at random."""
    schedule = module.lr_schedulers()
    schedule.base_lrs = [0.0] * len(schedule.base_lrs)
    for group in schedule.optimizer.param_groups:
        group["lr"] = 0.0
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(getattr(part, "attention_dropout", None), float):
            part.attention_dropout = 0.0


def numbers_of(trainer: Any, module: Any) -> str:
    """Return the numbers that decide how exact a loss can be: a key of TOLERANCES."""
    family = trainer.precision_plugin.recipe.family
    if family != "plain":
        return str(family)
    dtype = base_model(module.model).get_input_embeddings().weight.dtype
    return str(dtype).removeprefix("torch.")


@contextmanager
def _recompute(module: Any, is_on: bool) -> Iterator[None]:
    model = base_model(module.model)
    turn_on = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    try:
        model.gradient_checkpointing_disable() if is_on else model.gradient_checkpointing_enable(**turn_on)
        yield
    finally:
        model.gradient_checkpointing_enable(**turn_on) if is_on else model.gradient_checkpointing_disable()


@contextmanager
def _chunks(module: Any, chunks: int | str) -> Iterator[None]:
    before = module.lmhead_chunks
    module.lmhead_chunks = chunks
    try:
        yield
    finally:
        module.lmhead_chunks = before


@contextmanager
def _attention(module: Any, name: str, chosen: str, is_packed: bool) -> Iterator[None]:
    try:
        isolation.choose(module.model, name, module.device, packed=is_packed)
        yield
    finally:
        module.model.set_attn_implementation(chosen)
