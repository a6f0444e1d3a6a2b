"""GRPO: reinforcement learning from rewards, on rollouts that an engine samples from the policy itself.

What is not here: what is sampled and how it is scored (rl/), the loss (losses/grpo.py). The one idea: **a step is that
of supervised fine-tuning, between taking a batch and leaving the weights.** The data module's feed hands out the batch
of each step; after the step the new weights go back to the feed under the number of steps behind them, and the engine
is asked whether it answers with them.

Shape legend: N sampled tokens of a micro-batch.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from typing_extensions import override

from surogate.batches import MicroBatch, StepBatch
from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.config.parts_grpo import LossSpec
from surogate.losses.grpo import SampledTokens, normaliser_kind, policy_loss
from surogate.losses.logprobs import TokenLogprobs, linear_logprobs, module_logprobs
from surogate.losses.nll import piece_len
from surogate.losses.policy_sums import PolicySums
from surogate.models.hidden import Head, forward_supervised
from surogate.modes.base import CausalLMModule, MicroSums
from surogate.modes.first_rank import on_first_rank
from surogate.rl import parity
from surogate.rl.evaluation import EvalResult
from surogate.rl.micro_batches import RolloutMicroBatch, RolloutStepBatch, all_sampled, single_row
from surogate.rl.types import Group, RolloutBatch

_say = rank_zero_only(logging.getLogger(__name__).info)

_PROBE_GROUPS = 4

_TEMPERATURES = (1.0, *(tenth / 10 for tenth in range(1, 21)))
"""What is tried to explain a difference by."""


class _Probed(NamedTuple):
    """A sequence that the engine was given to score: the batch that it is from, the weights' version, our scores."""

    batch: RolloutBatch
    version: int
    trainer_logprobs: Tensor


class GrpoModule(CausalLMModule):
    """A policy under training by rewards; its data module is a RolloutDataModule.

    Args:
        model: which weights.
        lora: the adapter on top of them, which is what trains.
        optim: optimizer, schedule, clipping.
        loss: the policy loss.
        lmhead_chunks: pieces in which the sampled tokens go through the LM head; `auto` bounds the memory of logits.

    Attributes:
        evaluations: results that nobody has written down yet; on global rank 0.
    """

    def __init__(
        self,
        model: ModelSpec = ModelSpec(),  # noqa: B008  frozen
        lora: LoraSpec = LoraSpec(),  # noqa: B008
        optim: OptimSpec = OptimSpec(),  # noqa: B008
        loss: LossSpec = LossSpec(),  # noqa: B008
        lmhead_chunks: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(model, lora, optim)
        self.loss_spec = loss
        self.lmhead_chunks = lmhead_chunks
        self.evaluations: list[EvalResult] = []
        self._sums = PolicySums.zeros("cpu")
        self._sampled: list[tuple[Tensor, Tensor, Tensor]] = []
        self._started = time.perf_counter()
        self._probed: _Probed | None = None

    # ---- the step

    @override
    def micro_loss(self, micro_batch: MicroBatch) -> MicroSums:
        assert isinstance(micro_batch, RolloutMicroBatch)
        scored = self._score(micro_batch, micro_batch.temperatures_N)
        tokens = SampledTokens(
            trainer_logprobs_N=scored.logprobs_N,
            generator_logprobs_N=micro_batch.generator_logprobs_N,
            advantages_N=micro_batch.advantages_N,
            sequence_ids_N=micro_batch.sequence_ids_N,
            num_sequences=micro_batch.num_sequences,
            entropy_N=scored.entropy_N,
        )
        loss, sums = policy_loss(tokens, self.loss_spec)
        self._sums = self._sums.merged(sums)
        is_fresh_N = micro_batch.versions_N == self.global_step
        self._sampled.append((micro_batch.generator_logprobs_N, scored.logprobs_N.detach().float(), is_fresh_N))
        return MicroSums(loss, torch.zeros((), device=loss.device))

    def _score(self, micro_batch: RolloutMicroBatch, temperature: Tensor | float) -> TokenLogprobs:
        """Return log-probability and entropy of each sampled token under the policy as it stands."""
        hidden_ND, labels_N = forward_supervised(self.model, micro_batch)
        head = Head.of(self.model)
        if head.linear is not None:
            shape = head.shape_logits if head.shapes else None
            return linear_logprobs(hidden_ND, head.linear, labels_N, temperature, shape, self.lmhead_chunks)
        step = piece_len(len(labels_N), head.vocab_size, self.lmhead_chunks, hidden_ND.device.type)
        return module_logprobs(hidden_ND, head.logits, labels_N, temperature, step)

    @override
    def local_weight(self, step_batch: StepBatch) -> float:
        assert isinstance(step_batch, RolloutStepBatch)
        counts, kind = step_batch.normalisers, normaliser_kind(self.loss_spec)
        if kind == "constant":
            return counts["sequences"] * self._data.max_completion_len
        return counts[kind]

    @override
    def training_step(self, step_batch: StepBatch, batch_idx: int) -> None:
        assert isinstance(step_batch, RolloutStepBatch)
        parity_metrics = on_first_rank(self.trainer, self._check_parity) or {}
        started, began = time.perf_counter(), time.time()
        self._sums, self._sampled = PolicySums.zeros(self.device), []
        super().training_step(step_batch, batch_idx)
        sums = PolicySums(
            self._sum_over_ranks(self._sums.sums),
            self.trainer.strategy.reduce(self._sums.maxima, reduce_op="max"),
        )
        self.step_metrics["rollouts"] = {
            **step_batch.rollout_metrics,
            **sums.metrics(),
            **self._check_sampled(step_batch.step),
            "clock/train_began": began,
            "clock/train_ended": time.time(),
        }
        trained = time.perf_counter()
        self._publish(probe=step_batch)
        published = time.perf_counter()
        self._evaluate()
        self.activity.now("finishing the step")
        now = time.perf_counter()
        self.step_metrics["rollouts"] |= {
            **parity_metrics,
            "time/train": trained - started,
            "time/sync": published - trained,
            "time/evaluate": now - published,
            "time/step": now - self._started,
        }
        self._started = now

    @override
    def on_train_end(self) -> None:
        """See that the last weights arrived, too."""
        on_first_rank(self.trainer, self._check_parity)

    # ---- weights

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._data.start_feed(self)

    @override
    def on_train_start(self) -> None:
        """Push the weights and compare the engine with the trainer, before anything is trained on."""
        super().on_train_start()
        self._publish(noisy=False)
        self.activity.now("comparing with the engine")
        _say("%s", on_first_rank(self.trainer, self._probe))
        if self._data.link.sigma(self.global_step) > 0:
            self._publish()
        self._evaluate()
        self.activity.now("fetching the next batch", self.global_step + 1)
        self._started = time.perf_counter()

    @torch.no_grad()
    def _publish(self, probe: RolloutStepBatch | None = None, *, noisy: bool = True) -> None:
        """Leave the weights with the feed, with a sequence for the engine to score.

        Args:
            probe: its first rollout is scored by both; the answer is looked at before the next step.
            noisy: with the noise that is due, where no parity can be.

        Raises:
            GeneratorError: the engine refuses them.
        """
        self.activity.now("publishing the weights")
        on_first_rank(self.trainer, partial(self._publish_here, probe, noisy))

    def _publish_here(self, probe: RolloutStepBatch | None, noisy: bool) -> None:
        update = self._data.link.update(self.global_step, noisy=noisy)
        if probe is None:
            self._data.feed.publish(update)
            return
        row = single_row(all_sampled(probe.batch.rollouts[0]), 1.0, self._data.tokenizer.pad_token_id)
        self._data.feed.publish(replace(update, probe_ids=tuple(row.input_ids_BT[0].tolist())))
        self._probed = _Probed(probe.batch, self.global_step, self._score_alone(row, 1.0))

    def _check_parity(self) -> dict[str, float]:
        """Compare the engine's scores of the sequence that went with the weights with the trainer's.

        Raises:
            GeneratorError: the engine answers with other weights.
        """
        probed, self._probed = self._probed, None
        if probed is None:
            return {}
        self.activity.now("comparing with the engine")
        engine = torch.tensor(self._data.feed.scores())
        if self._data.link.sigma(probed.version) > 0:
            return parity.compare(engine, probed.trainer_logprobs).metrics("parity")
        explanations = _stale(engine, probed.batch, probed.version)
        report = parity.compare(engine, probed.trainer_logprobs)
        tolerance = self._data.link.tolerance
        # Only the mean counts: the prompt's unlikely tokens are here too, and in 16 bits one of them is always far off.
        if not report.mean_difference <= tolerance.mean:
            raise parity.disagreement(engine, probed.trainer_logprobs, tolerance, explanations)
        return report.metrics("parity")

    def _check_sampled(self, version: int) -> dict[str, float]:
        """Compare the tokens of the step that the present policy sampled itself, whose importance ratio must be 1.

        Other than the texts that the engine is given to score, these have passed through its prefix cache and its
        sampler. Only the mean counts: among so many tokens one is always far off in 16 bits.

        Args:
            version: of the policy before the step.

        Raises:
            GeneratorError: on every rank, where rounding does not explain the difference.
        """
        if self._data.link.sigma(version) > 0 or not self._sampled:
            return {}
        generator_N, mine_N, is_fresh_N = (torch.cat(parts) for parts in zip(*self._sampled, strict=True))
        is_fresh_N = is_fresh_N & mine_N.isfinite()  # the others are no fault of the engine, and the step was skipped
        difference_N = (generator_N - mine_N).abs().where(is_fresh_N, 0.0)
        count, total = self._sum_over_ranks(torch.stack([is_fresh_N.sum(), difference_N.double().sum()])).tolist()
        if not count:
            return {}
        tolerance = self._data.link.tolerance
        if not total / count <= tolerance.mean:
            raise parity.disagreement(
                generator_N[is_fresh_N].cpu(),
                mine_N[is_fresh_N].cpu(),
                tolerance,
                {},
                "The engine scores given texts as the trainer does, so its weights are right, and what it samples is "
                "off: most likely its prefix cache is stale (it holds what older weights computed), or it samples at "
                "another temperature.",
            )
        return {"parity/sampled_difference": total / count}

    @torch.no_grad()
    def _probe(self) -> parity.ParityReport:
        """Compare on fresh samples, drawn as training draws them.

        Raises:
            GeneratorError: they differ by more than rounding; it names the likely cause.
        """
        groups: list[Group] = self._data.feed.probe(_PROBE_GROUPS)
        pad = self._data.tokenizer.pad_token_id
        rows = [single_row(rollout, group.temperature, pad) for group in groups for rollout in group.rollouts]
        rows = [row for row in rows if row.num_loss_tokens]
        engine = torch.cat([row.generator_logprobs_N for row in rows])
        mine = torch.cat([self._score_alone(row, row.temperatures_N) for row in rows])
        if parity.compare(engine, mine).within(self._data.link.tolerance):
            return parity.check(engine, mine, self._data.link.tolerance, {})
        link = self._data.link
        raise parity.disagreement(engine, mine, link.tolerance, self._explanations(rows), link.base_hint)

    def _explanations(self, rows: list[RolloutMicroBatch]) -> dict[str, Tensor]:
        """Return what the engine's log-probabilities would be under each of the known mistakes."""
        with self.model.disable_adapter():
            base = torch.cat([self._score_alone(row, row.temperatures_N) for row in rows])
        explanations = {"the engine answers with the base model: the adapter did not reach it.": base}
        for temperature in _TEMPERATURES:
            hint = " (logprobs_mode must be processed_logprobs)" if temperature == 1 else ""
            explanations[
                f"the engine's log-probabilities are those of temperature {temperature:g} and not of the sampling "
                f"temperature{hint}."
            ] = torch.cat([self._score_alone(row, temperature) for row in rows])
        return explanations

    def _score_alone(self, row: RolloutMicroBatch, temperature: Tensor | float) -> Tensor:
        was_training = self.model.training
        self.model.eval()  # dropout is of training alone
        try:
            at = temperature.to(self.device) if isinstance(temperature, Tensor) else temperature
            return self._score(row.to(self.device), at).logprobs_N.float().cpu()
        finally:
            self.model.train(was_training)

    def _evaluate(self) -> None:
        self.activity.now("evaluating")
        result = on_first_rank(self.trainer, lambda: self._data.feed.evaluate(self.global_step))
        if result is not None:
            self.evaluations.append(result)


def _stale(engine: Tensor, batch: RolloutBatch, version: int) -> dict[str, Tensor]:
    """Return what the engine would give for the first rollout of a batch if it still held the weights that sampled it.

    Args:
        engine: log-probabilities of all tokens of the rollout but the first, at temperature 1.
        batch: of the step behind the version.
        version: of the new weights.
    """
    rollout = batch.rollouts[0]
    is_sampled = torch.tensor([False] * (len(rollout.prompt_ids) - 1) + rollout.sampled)
    if batch.groups[0].temperature != 1 or not is_sampled.any():
        return {}
    logprobs = torch.tensor([0.0] * (len(rollout.prompt_ids) - 1) + rollout.logprobs)
    sentence = f"the engine still answers with the weights of version {rollout.oldest_version}, and not {version}."
    return {sentence: engine.where(~is_sampled, logprobs)}
