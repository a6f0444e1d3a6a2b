"""CausalLMModule: the optimizer step that every training mode shares.

A batch is a `StepBatch`, one optimizer step. A mode supplies `micro_loss`, a *sum* of weighted terms; here the sum is
divided by the step's global normaliser, so the gradient does not depend on how a global batch is cut into ranks,
micro-batches and packed rows. Lightning's own accumulation is a mean of means, which is wrong where micro-batches hold
different numbers of tokens; hence manual optimization.

What is not here: losses (losses/), data (data/), writing (callbacks/).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from surogate.batches import MicroBatch, StepBatch
from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.errors import CheckpointError, ModelError
from surogate.models import export, isolation, lora
from surogate.models.freeze import freeze_
from surogate.models.hidden import base_model, head_error
from surogate.models.inference import generate_ids
from surogate.models.load import load_model, quantisation_of
from surogate.models.merge import MergeReport
from surogate.models.prequantised import check_can_train
from surogate.models.source import ModelSource
from surogate.models.stacks import carry_below, locate_adapter
from surogate.models.stored_base import record_base
from surogate.models.stored_merge import StoredMergeReport
from surogate.modes.master_weights import MasterWeights
from surogate.modes.merging import base_of, merge_run
from surogate.modes.optimizers import StateSharding, build_optimizer
from surogate.modes.schedules import learning_rate_factor
from surogate.modes.sharding import ShardedStrategy, local, whole
from surogate.modes.validation import TokenMetrics

_say = rank_zero_only(logging.getLogger(__name__).warning)

HEAD_TOLERANCE = 2e-2
"""Largest relative difference between our head's logits and the model's own; bfloat16 rounding stays under it."""

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
            loss_tokens, tokens, accuracy, grad_norm (before clipping); and learning_rate, a float. Reading one waits
            for the device.
    """

    def __init__(self, model: ModelSpec, lora: LoraSpec, optim: OptimSpec) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds what trains; the frozen base comes from its source
        self.model_spec, self.lora_spec, self.optim_spec = model, lora, optim
        self.model: Any = None
        self.step_metrics: dict[str, Any] = {}
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
        is_quantised = self._is_quantised()
        wants_meta = is_quantised or getattr(self.trainer.precision_plugin, "defers_loading", False)
        defer = wants_meta and self.lora_spec.enabled and not lora.needs_base_weights(self.lora_spec)
        defer = defer or self._sharding is not None
        if is_quantised and self.lora_spec.enabled and not defer:
            _say(
                f"This adapter starts from the weights of {self.model_spec.source}, so all of them are dequantised "
                "once; layers that the start changes (init_lora_weights, adapter_path) stay so."
            )
        torch.manual_seed(_run_seed())  # of random weights
        model: Any = load_model(self.model_spec, self.trainer.strategy.root_device, defer=defer)
        if self.lora_spec.enabled:
            for limit in lora.vllm_limits(self.lora_spec):
                _say(limit)
            torch.manual_seed(_run_seed())
            model = lora.inject(model, self.lora_spec, self.model_spec.source)
        else:
            freeze_(model, self.model_spec.freeze_modules)
            self._check_trained_dtype(model)
        tokenizer = getattr(self._data, "tokenizer", None)
        if self.model_spec.from_scratch and tokenizer is not None:
            export.adopt_special_tokens_(model, tokenizer)
        if self.model_spec.recompute:
            base_model(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self._sharding:
            self._sharding.shard_(model, self._master_dtype())
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
        sharding = self._sharding
        return sharding.run(self.model, function, *arguments) if sharding else function(*arguments)

    def _is_quantised(self) -> bool:
        """Whether the checkpoint is quantised; refuses what cannot be done with it."""
        method = quantisation_of(self.model_spec)
        if method is not None and self.trainer.state.fn == TrainerFn.FITTING:
            storage = getattr(self.trainer.precision_plugin, "storage", None)
            check_can_train(
                self.model_spec, method, adapter=self.lora_spec.enabled, storage=storage.name if storage else None
            )
        return method is not None

    def _check_trained_dtype(self, model: nn.Module) -> None:
        is_half = any(p.dtype == torch.float16 for p in model.parameters() if p.requires_grad)
        if is_half and self.optim_spec.master_dtype is None:
            raise ModelError(
                f"The weights of {self.model_spec.source} are float16, and the optimizer's steps vanish in it. "
                "Set master_dtype: float32, or model_dtype to bfloat16 or float32."
            )

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
        vocab_size = base_model(self.model).get_input_embeddings().num_embeddings
        tokenizer = getattr(self._data, "tokenizer", None)
        if tokenizer is not None and len(tokenizer) > vocab_size:
            raise ModelError(
                f"The tokenizer has {len(tokenizer)} tokens, the model {self.model_spec.source} embeds {vocab_size}: "
                "they do not belong together."
            )
        if tokenizer is not None and self.lora_spec.adapter_path is not None:
            lora.check_tokenizer(locate_adapter(self.lora_spec.adapter_path), tokenizer)
        self._check_positions()
        packed = getattr(self._data, "sample_packing", True)
        asked = self.model_spec.attn_implementation
        self._with_weights(lambda: isolation.choose(self.model, asked, self.device, packed=packed))
        error = self._with_weights(head_error, self.model, self.device)
        if error > HEAD_TOLERANCE:
            raise ModelError(
                f"{self.model_spec.source} shapes its logits in a way this version does not know (relative difference "
                f"{error:.1e}), so the loss would be wrong."
            )

    @override
    def on_train_start(self) -> None:
        """Let the present schedule decide the next rate: a checkpoint brings that of the run it was saved in."""
        schedule: Any = self.lr_schedulers()
        schedule.base_lrs = [self.optim_spec.learning_rate] * len(schedule.base_lrs)
        factor = learning_rate_factor(self.optim_spec, schedule.last_epoch, self._total_steps())
        for group in schedule.optimizer.param_groups:
            group["lr"] = self.optim_spec.learning_rate * factor

    def _check_positions(self) -> None:
        positions = getattr(base_model(self.model).config.get_text_config(), "max_position_embeddings", None)
        longest = getattr(self._data, "longest_row_len", 0)
        if positions and longest > positions:
            raise ModelError(
                f"The longest row has {longest} tokens, and {self.model_spec.source} knows {positions} positions. "
                "Lower max_length (or sequence_len), or set max_model_len together with rope_scaling."
            )

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
        torch.manual_seed(hash((_run_seed(), self.global_step, self.global_rank)) % 2**63)
        counts = self._sum_over_ranks(
            [self.local_weight(step_batch), step_batch.num_loss_tokens, step_batch.num_tokens]
        )
        optimizer.zero_grad()
        loss_sum, num_correct = torch.zeros(2, device=self.device)
        last, masters = len(step_batch.micro_batches) - 1, self._master_weights
        for i, micro_batch in enumerate(step_batch.micro_batches):
            # Master weights add up gradients themselves, so the ranks must agree on each before it leaves the model.
            with optimizer.toggle_model(sync_grad=i == last or masters is not None):
                sums = self._with_weights(self.micro_loss, micro_batch)
                self.manual_backward(sums.loss)
            if masters is not None:
                masters.absorb_gradients_()
            loss_sum, num_correct = loss_sum + sums.loss.detach(), num_correct + sums.num_correct
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        grad_norm = self._scale_and_clip(gradients, self.trainer.world_size / counts[0].clamp_min(1))
        learning_rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        if masters is not None:
            masters.round_to_model_()
        self.lr_schedulers().step()  # type: ignore[union-attr]
        loss_sum, num_correct = self._sum_over_ranks(torch.stack([loss_sum, num_correct]))
        self.step_metrics = {
            "loss": loss_sum / counts[0].clamp_min(1),
            "loss_tokens": counts[1],
            "tokens": counts[2],
            "accuracy": num_correct / counts[1].clamp_min(1),
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
        }

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
        norm = whole(nn.utils.get_total_norm(gradients)) * scale
        if self.optim_spec.max_grad_norm > 0:
            scale = scale * (self.optim_spec.max_grad_norm / (norm + 1e-6)).clamp_max(1.0)  # as clip_grad_norm_ does
        torch._foreach_mul_([local(gradient) for gradient in gradients], scale)
        return norm

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        dtype = self._master_dtype()
        if dtype is not None and self._sharding is None:  # which keeps its shards in it
            trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
            self._master_weights = MasterWeights(trained, dtype, self._master_start)
            parameters, self._master_start = self._master_weights.parameters, {}
        optimizer = build_optimizer(self.optim_spec, parameters, self._state_sharding())
        total_steps = self._total_steps()
        schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(self.optim_spec, step, total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _state_sharding(self) -> StateSharding:
        """Adapters are too small for their optimizer's state to be worth a broadcast of the weights in each step."""
        if self._sharding:
            return "with weights"
        wants = self.optim_spec.shard_state and not self.lora_spec.enabled
        return "by rank" if wants and isinstance(self.trainer.strategy, DDPStrategy) else "none"

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
        state = self._sharding.full_state_dict(self.model) if self._sharding else None
        if self.trainer.is_global_zero:
            export.save_model(self.model, folder, tokenizer, state)

    def save_merged_model(self, folder: Path, tokenizer: Any) -> MergeReport | StoredMergeReport:
        """Write the base with the trained adapter merged into it as a complete folder."""
        return merge_run(self, folder, tokenizer)


def _run_seed() -> int:
    """The seed that Lightning's seed_everything set for this run."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
