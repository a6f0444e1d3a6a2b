"""PrecisionCanary: notices during training when low precision does more harm to a layer than it should.

Every k optimizer steps it listens to a few layers while the step's first micro-batch passes through them
(quant/taps.py), and computes from the same inputs and the same output gradients what high precision would have given:
with the checkpoint's own weight, read again from its file, where the run stores weights in few bits, and in float32
arithmetic where a recipe computes in few bits. What is not here: how many bits which layer gets (precision/, quant/).

The one idea: **it only listens.** No pass through the model is added, nothing random is drawn and no tensor of the step
is written to, so a run has the same bits with and without it.
"""

from __future__ import annotations

import logging
import random
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from typing_extensions import override

from surogate.callbacks.metrics import MetricsWriter
from surogate.models.originals import OriginalWeights
from surogate.quant.compute import RecipeLinear
from surogate.quant.compute_fp8 import Fp8Gemm
from surogate.quant.compute_nvfp4 import Nvfp4Gemm
from surogate.quant.gemm import CastGemm
from surogate.quant.layer_names import plain_name
from surogate.quant.linear import FrozenQuantLinear
from surogate.quant.taps import LayerTap, grad_cosine, output_snr_db

log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """What a layer must reach.

    Attributes:
        snr_db: signal-to-noise ratio of its output.
        cosine: of the gradient that it passes on.
    """

    snr_db: float
    cosine: float


STORAGE_LIMITS = {
    "nf4": Limits(9.0, 0.95),
    "nvfp4": Limits(9.0, 0.95),
    "mxfp4": Limits(7.0, 0.92),
    "fp8": Limits(24.0, 0.99),
}
"""By what a weight is stored in: 4 to 6 dB below the worst of all 210 layers of SmolLM2-135M, nearly twice its error.
Measured, worst and median: NF4 in blocks of 64 14.7 and 21.9 dB, of 512 12.9 and 20.3, cosine at least 0.980; NVFP4
15.7 and 22.7, cosine 0.989; FP8 30.0 and 32.9, cosine 0.999. Spoiled scales give 0 dB and below."""

RECIPE_LIMITS: dict[type, Limits] = {
    Fp8Gemm: Limits(21.0, 0.97),
    Nvfp4Gemm: Limits(6.0, 0.85),
    CastGemm: Limits(30.0, 0.99),
}
"""By how products are computed, in the same way: FP8 27.1 and 29.8 dB, cosine 0.995 at least; NVFP4 10.7 and 16.9 dB,
cosine 0.934, its values being rounded on both sides; bfloat16 stays above 40."""

PLAIN_LIMITS = Limits(30.0, 0.99)
"""Of stored weights themselves, multiplied in bfloat16 or float16."""


class PrecisionCanary(pl.Callback):
    """Measure output SNR and gradient cosine of a few layers, and warn of bad ones by name.

    The metrics `precision/LAYER/output_snr_db` and `precision/LAYER/grad_cosine` go where MetricsWriter's go. The first
    step is measured too.

    Args:
        every_n_steps: optimizer steps between two measurements.
        num_layers: watched, evenly spaced over the depth of the model.
        seed: of the choice among them, which is the same for the whole run.
    """

    def __init__(self, every_n_steps: int, num_layers: int = 6, seed: int = 1234) -> None:
        self.every_n_steps, self.num_layers, self.seed = every_n_steps, num_layers, seed
        self._watched: dict[str, nn.Module] = {}
        self._originals: OriginalWeights | None = None
        self._taps: dict[str, LayerTap] = {}
        self._metrics: dict[str, float] = {}
        self._bad: set[str] = set()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        model: Any = pl_module.model
        layers = {plain_name(name): module for name, module in model.named_modules() if _is_low(module)}
        chosen = evenly_spaced(list(layers), self.num_layers, self.seed)
        self._watched = {name: layers[name] for name in chosen}
        if not layers:
            log.warning("precision_canary_steps: no layer is stored or computed in few bits, so nothing is watched.")
        elif any(isinstance(module, FrozenQuantLinear) for module in self._watched.values()):
            self._originals = OriginalWeights(pl_module.model_spec, pl_module.lora_spec)  # type: ignore[arg-type]
            if self._originals.missing:
                log.warning(
                    "precision_canary_steps: %s, so there are no original weights to compare with; only what computing "
                    "does to the stored ones is measured.",
                    self._originals.missing,
                )

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step + 1
        if step == 1 or step % self.every_n_steps == 0:
            self._taps = {name: LayerTap(module) for name, module in self._watched.items()}

    @override
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Compare while the weights still are those that the step computed with."""
        for name, tap in self._taps.items():
            tap.remove()
            if tap.x_TK is not None and len(tap.x_TK):
                self._compare(name, tap)
        self._taps = {}

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        metrics, self._metrics = self._metrics, {}
        if not metrics:
            return
        writer = next((c for c in trainer.callbacks if isinstance(c, MetricsWriter)), None)  # type: ignore[attr-defined]
        if writer is not None:
            writer.record(trainer, metrics)
            return
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def _compare(self, name: str, tap: LayerTap) -> None:
        layer: Any = tap.layer
        original = self._original(name, layer)
        weight = _weight(layer) if original is None else original
        snr, cosine = output_snr_db(tap, weight, layer.bias), grad_cosine(tap, weight)
        self._metrics[f"precision/{name}/output_snr_db"] = snr
        if cosine is not None:
            self._metrics[f"precision/{name}/grad_cosine"] = cosine
        least = limits(layer, original is not None)
        is_bad = snr < least.snr_db or (cosine is not None and cosine < least.cosine)
        if is_bad and name not in self._bad:
            gradient = "" if cosine is None else f", its gradient a cosine of {cosine:.3f} (limit {least.cosine})"
            log.warning(
                "Precision: the output of %s has a signal-to-noise ratio of %.1f dB (limit %.0f)%s. If the loss "
                "suffers, leave the layer unquantised or use more bits.",
                *(name, snr, least.snr_db, gradient),
            )
        (self._bad.add if is_bad else self._bad.discard)(name)

    def _original(self, name: str, layer: Any) -> Tensor | None:
        """Read the weight that a stored one was made of; None where there is no such file, and where none is stored."""
        if self._originals is None or not isinstance(layer, FrozenQuantLinear):
            return None
        original = self._originals.read(f"{name}.weight", layer.stored.shape)
        return None if original is None else original.to(next(layer.stored.buffers()).device)


def _weight(layer: Any) -> Tensor:
    """Return what a layer multiplies by, before a recipe rounds it."""
    if isinstance(layer, FrozenQuantLinear):
        return layer.stored.dequantize(torch.float32)
    weight: Tensor = layer.weight.detach()
    return weight


def _is_low(module: nn.Module) -> bool:
    return isinstance(module, FrozenQuantLinear | RecipeLinear)


def evenly_spaced(names: list[str], num: int, seed: int) -> list[str]:
    """Choose one name of each of num equal parts of a list."""
    num = min(num, len(names))
    draw = random.Random(seed)
    return [names[draw.randrange(part * len(names) // num, (part + 1) * len(names) // num)] for part in range(num)]


def limits(layer: Any, against_original: bool) -> Limits:
    """Return what a layer must reach: the least of what its storage and its recipe do."""
    found = [RECIPE_LIMITS.get(type(layer.gemm), PLAIN_LIMITS)]
    if against_original and isinstance(layer, FrozenQuantLinear):
        found.append(STORAGE_LIMITS[layer.stored.format_name])
    return Limits(min(one.snr_db for one in found), min(one.cosine for one in found))
