"""CausalLMModule: the optimizer step that every training mode shares.

A batch is a `StepBatch`, one optimizer step. A mode supplies `micro_loss`, a *sum* of weighted terms; here the sum is
divided by the step's global normaliser, so the gradient does not depend on how a global batch is cut into ranks,
micro-batches and packed rows. Lightning's own accumulation is a mean of means, which is wrong where micro-batches hold
different numbers of tokens; hence manual optimization.

What is not here: losses (losses/), data (data/), writing (callbacks/).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from surogate.batches import MicroBatch, StepBatch
from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.errors import CheckpointError
from surogate.models import export, isolation, lora, shards
from surogate.models.hidden import base_model
from surogate.models.inference import generate_ids
from surogate.models.merge import MergeReport
from surogate.models.source import ModelSource
from surogate.models.stacks import carry_below
from surogate.models.stored_base import record_base
from surogate.models.stored_merge import StoredMergeReport
from surogate.modes import model_checks
from surogate.modes.activity import Activity
from surogate.modes.master_weights import MasterWeights
from surogate.modes.merging import base_of, merge_run
from surogate.modes.model_building import build_model, run_seed
from surogate.modes.normuon import hidden_matrices
from surogate.modes.optimizers import build_optimizer
from surogate.modes.schedules import learning_rate_factor, set_learning_rate
from surogate.modes.sharding import ShardedStrategy, state_sharding
from surogate.modes.skipping import StepFacts, step_if_finite
from surogate.modes.validation import TokenMetrics

_say = rank_zero_only(logging.getLogger(__name__).warning)

_BASE_KEY = "surogate_base"

T = TypeVar("T")


class MicroSums(NamedTuple):
    """What a mode returns for a micro-batch.

    Attributes:
        loss: scalar with a graph, a sum of weighted terms.
        num_correct: supervised tokens predicted right, scalar.
    """

    loss: Tensor
    num_correct: Tensor


class CausalLMModule(pl.LightningModule):
    """A causal language model under training.

    Args:
        model: which weights.
        lora: the adapter on top; `enabled: false` trains the weights themselves, but for model.freeze_modules.
        optim: optimizer, schedule, clipping.

    Attributes:
        step_metrics: of the last step over all ranks, scalars on the device: loss (mean over supervised tokens),
            loss_tokens, tokens, accuracy, grad_norm (before clipping), skipped (1 where loss or gradient is not finite:
            nothing was updated); and learning_rate, a float. Reading one waits for the device.
        facts: of the last step, for callbacks that watch over it.
        activity: what this process is doing.
        learning_rate_scale: what the schedule is multiplied by; set before the training starts, or scale_learning_rate.
    """

    def __init__(self, model: ModelSpec, lora: LoraSpec, optim: OptimSpec) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds what trains; the frozen base comes from its source
        self.model_spec, self.lora_spec, self.optim_spec = model, lora, optim
        self.model: Any = None
        self.step_metrics: dict[str, Any] = {}
        self.facts, self.activity = StepFacts(), Activity()
        self.learning_rate_scale = 1.0
        self.validation_metrics = nn.ModuleList()
        self._master_weights: MasterWeights | None = None
        self._master_start: dict[str, Tensor] = {}

    @property
    def _data(self) -> Any:
        """The run's data module; None where the loaders were given by themselves."""
        return getattr(self.trainer, "datamodule", None)

    # ---- building the model

    @override
    def configure_model(self) -> None:
        if self.model is not None:
            return
        tokenizer = getattr(self._data, "tokenizer", None)
        model = build_model(self.model_spec, self.lora_spec, self.optim_spec, self.trainer, tokenizer)
        if sharding := self._sharding:
            twice = sharding.reshard_after_forward
            shards.shard_(model, sharding.mesh, self._master_dtype(), gather_twice=twice)
        self.model = model.train()

    @property
    def _sharding(self) -> ShardedStrategy | None:
        strategy = self.trainer.strategy
        return strategy if isinstance(strategy, ShardedStrategy) else None

    def _master_dtype(self) -> torch.dtype | None:
        name = self.optim_spec.master_dtype
        return None if name is None else getattr(torch, name)

    def _with_weights(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that uses the model in parts; a sharded model gathers first what such a function needs."""
        return shards.run_whole(self.model, function, *arguments) if self._sharding else function(*arguments)

    @override
    def on_fit_start(self) -> None:
        self._check_model()

    @override
    def on_validation_start(self) -> None:
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._check_model()
        names = self._validation_names()
        if len(self.validation_metrics) != len(names):
            self.validation_metrics = nn.ModuleList(TokenMetrics() for _ in names).to(self.device)

    def _check_model(self) -> None:
        """Refuse, before the first step, a model that would train on a wrong loss."""
        model_checks.check_data(self.model, self.model_spec.source, self.lora_spec, self._data)
        packed = getattr(self._data, "sample_packing", True)
        asked = self.model_spec.attn_implementation
        self._with_weights(lambda: isolation.choose(self.model, asked, self.device, packed=packed))
        self._with_weights(model_checks.check_head, self.model, self.model_spec, self.device)

    @override
    def on_train_start(self) -> None:
        """Let the present schedule decide the next rate: a checkpoint brings that of the run it was saved in."""
        self.scale_learning_rate(self.learning_rate_scale)

    def scale_learning_rate(self, scale: float) -> None:
        """Multiply the schedule by a factor, from the next step on; it replaces the one before."""
        self.learning_rate_scale = scale
        schedule: Any = self.lr_schedulers()
        set_learning_rate(schedule, self.optim_spec.learning_rate, self._rate_factor(self._total_steps()))

    def _rate_factor(self, total_steps: int) -> Callable[[int], float]:
        return lambda step: self.learning_rate_scale * learning_rate_factor(self.optim_spec, step, total_steps)

    @override
    def cpu(self) -> Self:
        """Leave weights that were never read where they are: Lightning calls this when a start fails, too."""
        return self if any(parameter.is_meta for parameter in self.parameters()) else super().cpu()

    # ---- the step

    def micro_loss(self, micro_batch: MicroBatch) -> MicroSums:
        """Return the sums of one micro-batch; the loss has a graph even where nothing is supervised."""
        raise NotImplementedError

    def local_weight(self, step_batch: StepBatch) -> float:
        """Return this rank's share of the normaliser; supervised tokens, unless the mode's loss says otherwise."""
        return step_batch.num_loss_tokens

    @override
    def training_step(self, step_batch: StepBatch, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        # The dropout of a step is a function of seed, step and rank, so a resumed run needs no saved RNG state.
        torch.manual_seed(hash((run_seed(), self.global_step, self.global_rank)) % 2**63)
        self.activity.now("waiting for the other ranks' token counts", self.global_step + 1)
        counts = self._sum_over_ranks(
            [self.local_weight(step_batch), step_batch.num_loss_tokens, step_batch.num_tokens]
        )
        optimizer.zero_grad()
        loss_sum, num_correct = torch.zeros(2, device=self.device)
        self.facts.micro_losses = []
        last, masters = len(step_batch.micro_batches) - 1, self._master_weights
        for i, micro_batch in enumerate(step_batch.micro_batches):
            of_micro_batch = f"of micro-batch {i + 1} of {last + 1}"
            self.activity.now(f"forward pass {of_micro_batch}")
            # Master weights add up gradients themselves, so the ranks must agree on each before it leaves the model.
            with optimizer.toggle_model(sync_grad=i == last or masters is not None):
                sums = self._with_weights(self.micro_loss, micro_batch)
                self.activity.now(f"backward pass {of_micro_batch}")
                self.manual_backward(sums.loss)
            if masters is not None:
                masters.absorb_gradients_()
            self.facts.micro_losses.append(sums.loss.detach())
            loss_sum, num_correct = loss_sum + sums.loss.detach(), num_correct + sums.num_correct
        self.activity.now("scaling the gradients")
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        grad_norm = self._scale_and_clip(gradients, self.trainer.world_size / counts[0].clamp_min(1))
        learning_rate = optimizer.param_groups[0]["lr"]
        self.activity.now("waiting for the other ranks' loss")
        sums_of_ranks = torch.stack([loss_sum, num_correct, grad_norm.to(loss_sum.dtype)])
        loss_sum, num_correct, norm_sum = self._sum_over_ranks(sums_of_ranks)
        loss = loss_sum / counts[0].clamp_min(1)
        is_finite = self.facts.judge(loss, norm_sum / self.trainer.world_size)
        self.activity.now("updating the weights")
        step_if_finite(optimizer, is_finite)
        if masters is not None:
            masters.round_to_model_()
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.step_metrics = {
            "loss": loss,
            "loss_tokens": counts[1],
            "tokens": counts[2],
            "accuracy": num_correct / counts[1].clamp_min(1),
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "skipped": self.facts.values[2],
        }
        self.activity.now("finishing the step")

    # Lightning calls a module's hooks behind those of all callbacks, whose work belongs to what was before.

    @override
    def on_train_batch_end(self, *args: Any) -> None:
        self.activity.now("fetching the next batch", self.global_step + 1)

    @override
    def on_validation_end(self) -> None:
        self.activity.now("fetching the next batch", self.global_step + 1)

    def _sum_over_ranks(self, values: Tensor | list[float]) -> Tensor:
        tensor = torch.as_tensor(values, device=self.device)
        return self.trainer.strategy.reduce(tensor, reduce_op="sum")

    def _scale_and_clip(self, gradients: list[Tensor], scale: Tensor) -> Tensor:
        """Turn gradients of sums into those of the mean, clip them, and return the norm in between.

        Dividing after the backward pass keeps float16 gradients of single tokens from vanishing. The device is not
        waited for.

        Args:
            gradients: changed in place.
            scale: number of ranks / global normaliser; DDP has averaged over the ranks.
        """
        norm = shards.whole(nn.utils.get_total_norm(gradients)) * scale
        if self.optim_spec.max_grad_norm > 0:
            scale = scale * (self.optim_spec.max_grad_norm / (norm + 1e-6)).clamp_max(1.0)  # as clip_grad_norm_ does
        torch._foreach_mul_([shards.local(gradient) for gradient in gradients], scale)
        return norm

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        is_hidden = None
        if self.optim_spec.name == "normuon":
            hidden = hidden_matrices(self.model)
            is_hidden = [id(parameter) in hidden for parameter in parameters]
        dtype = self._master_dtype()
        if dtype is not None and self._sharding is None:  # which keeps its shards in it
            trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
            self._master_weights = MasterWeights(trained, dtype, self._master_start)
            parameters, self._master_start = self._master_weights.parameters, {}
        shares_state = self.optim_spec.shard_state and not self.lora_spec.enabled
        sharding = state_sharding(self.trainer.strategy, shares_state)
        optimizer = build_optimizer(self.optim_spec, parameters, sharding, is_hidden)
        total_steps = self._total_steps()
        schedule = LambdaLR(optimizer, self._rate_factor(total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _total_steps(self) -> int:
        if self.trainer.max_steps > 0:
            return self.trainer.max_steps
        datamodule = self._data
        if hasattr(datamodule, "num_steps") and (self.trainer.max_epochs or -1) > 0:
            return datamodule.num_steps(self.trainer.max_epochs)
        return int(self.trainer.estimated_stepping_batches)

    # ---- validation

    @override
    def validation_step(self, step_batch: StepBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        for micro_batch in step_batch.micro_batches:
            sums = self._with_weights(self.micro_loss, micro_batch)
            metrics: Any = self.validation_metrics[dataloader_idx]
            metrics.update(sums.loss, sums.num_correct, micro_batch.num_loss_tokens)

    @override
    def on_validation_epoch_end(self) -> None:
        values: dict[str, Tensor] = {}
        loss_sum = tokens = torch.zeros((), device=self.device)
        for name, metrics in zip(self._validation_names(), self.validation_metrics, strict=True):
            assert isinstance(metrics, TokenMetrics)
            values |= {f"val/{name}/{key}": value for key, value in metrics.compute().items()}
            loss_sum, tokens = loss_sum + metrics.loss.compute(), tokens + metrics.tokens.compute()
            metrics.reset()
        self.log_dict({**values, "val/loss": loss_sum / tokens}, logger=False)

    def _validation_names(self) -> list[str]:
        names = getattr(self._data, "validation_names", None)
        return list(names) if names else [str(i) for i in range(len(self.trainer.val_dataloaders or [0]))]

    def continue_ids(self, ids: list[int], ends: set[int], max_new_tokens: int, temperature: float) -> list[int]:
        """Write on from a prompt with the model as it stands; see models.inference.generate_ids."""
        model, was_training = self.model, self.model.training
        attention = base_model(model).config._attn_implementation
        model.eval().set_attn_implementation("eager")  # the one that trains wants packed documents
        try:
            return generate_ids(model, ids, ends, max_new_tokens=max_new_tokens, temperature=temperature)
        finally:
            model.train(was_training).set_attn_implementation(attention)

    # ---- checkpoints

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = self._trained_names()
        state = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}
        checkpoint["state_dict"] = state | (self._master_weights.values() if self._master_weights else {})
        checkpoint[_BASE_KEY] = ModelSource.of(self.model_spec.source).fingerprint()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        missing = self._trained_names() - checkpoint["state_dict"].keys()
        if missing:
            raise CheckpointError(
                f"The checkpoint lacks {len(missing)} of the trained tensors, for example {sorted(missing)[0]}: it is "
                "of a run with other adapter settings."
            )
        found, expected = checkpoint.get(_BASE_KEY), ModelSource.of(self.model_spec.source).fingerprint()
        if found != expected:
            raise CheckpointError(
                f"The weights of {self.model_spec.source} changed since the checkpoint was written ({found} then, "
                f"{expected} now); training on would mix two models."
            )

        if self.optim_spec.master_dtype is not None and self._sharding is None:
            self._master_start = checkpoint["state_dict"]

    def _trained_names(self) -> set[str]:
        # Of an adapter also what stays as it was drawn (MiCA's B), since drawing it again could give other bits.
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad or "lora_" in name}

    def save_adapter(self, folder: Path) -> None:
        """Write the trained adapter in PEFT's format, with those below it and how the base is stored."""
        lora.save_adapter(self.model, folder)
        carry_below(self.lora_spec, folder)
        record_base(folder, base_of(self))

    def save_model(self, folder: Path, tokenizer: Any) -> None:
        """Write the trained model and its tokenizer as a complete folder; only where there is no adapter.

        Called on every rank, since a sharded model is gathered; global rank 0 writes.
        """
        state = shards.full_state_dict(self.model) if self._sharding else None
        if self.trainer.is_global_zero:
            export.save_model(self.model, folder, tokenizer, state)

    def save_merged_model(self, folder: Path, tokenizer: Any) -> MergeReport | StoredMergeReport:
        """Write the base with the trained adapter merged into it as a complete folder."""
        return merge_run(self, folder, tokenizer)
