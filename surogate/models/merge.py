"""Merging adapters into their base: `W + D` layer by layer, in float32, written as a model folder and checked.

What is not here: PEFT's own arithmetic (lora.py) and the command (cli/merge.py). The one idea: **what is checked is
what was written.** The folder is read again and its logits are compared with those of base + adapter, both computed in
float32 from the weights as they are stored, so that the difference is what rounding costs and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surogate.batches import TokenRow
from surogate.config.parts import LoraSpec, ModelSpec
from surogate.errors import ModelError
from surogate.models import lora
from surogate.models.drift import HeldOut, float32_compute
from surogate.models.export import write_model
from surogate.models.inference import FoundModel
from surogate.models.load import load_model
from surogate.models.stacks import carry_below, stack_of
from surogate.run_folder import draft_folder, write_json

MERGE_RECORD = "merge.json"
"""The file in a merged folder that says what was merged and how well; it also marks the folder as ours to replace."""

LOGIT_TOLERANCE = 1e-4
"""Largest difference of a float32 merge's logits from base + adapter's, relative to the largest logit."""

_AS_STORED = torch.device("meta")  # nothing computes in the weights' own dtype, so no CPU need be able to

_PROBES = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Water boils at a lower temperature on a mountain, because the pressure of the air is lower there.",
    "def mean(values):\n    return sum(values) / len(values)",
    "She opened the letter, read it twice, and put it back without a word.",
    "User: How many legs has a spider?\nAssistant: A spider has eight legs.",
    "In 1969 two people walked on the Moon for the first time; a third stayed in orbit.",
    '{"name": "Ada", "born": 1815, "languages": ["English", "French"]}',
    "Mix the flour with the eggs, add a little milk, and leave the dough to rest for an hour.",
)
_MAX_PROBE_TOKENS = 48


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """How well a merge came out.

    Attributes:
        folder: where the merged model is.
        base: location of the base model.
        dtype: of the merged weights.
        num_layers: layers that got an update; a layer counts once for each adapter.
        untied: the LM head, which shared its weights with the embeddings, now has its own.
        rounding_error: `||round(W + D) - (W + D)|| / ||D||` over all merged layers: how far rounding moved the weights,
            in units of how far the update did.
        num_positions: of the probe texts, all of which were compared.
        logit_difference: largest difference of the logits from base + adapter's, over the largest logit.
        top1_agreement: share of positions at which both find the same token likeliest.
        mean_kl: mean KL divergence of the merged model's next token from base + adapter's, in nats.
        update_kl: the same of the model without its (uppermost) adapter, as a yardstick.
    """

    folder: str
    base: str
    dtype: str
    num_layers: int
    untied: bool
    rounding_error: float
    num_positions: int
    logit_difference: float
    top1_agreement: float
    mean_kl: float
    update_kl: float

    def __str__(self) -> str:
        lines = [
            f"{self.folder}: {self.num_layers} layers merged into {self.base}, in {self.dtype}",
            f"  rounding to {self.dtype} moved the weights by {self.rounding_error:.2%} of what the update did",
            f"  logits against base + adapter at {self.num_positions} positions of plain text: largest relative "
            f"difference {self.logit_difference:.1e}, same likeliest token at {self.top1_agreement:.1%}, "
            f"mean KL {self.mean_kl:.1e} nats (without the adapter {self.update_kl:.1e})",
        ]
        if self.untied:
            lines.append("  embeddings and LM head shared their weights in the base; here each has its own")
        if self.mean_kl > 0.1 * self.update_kl:
            lines.append("  this dtype costs more than a tenth of what the adapter does: merge with --dtype float32")
        return "\n".join(lines)


def merge(found: FoundModel, dtype: str | None, folder: Path, tokenizer: Any, *, force: bool = False) -> MergeReport:
    """Merge adapters into their base and write the result as a complete model folder.

    Memory: the base in the dtype it is stored in (float32 if that is asked for), and one layer in float32.

    Args:
        found: base and adapters, in the order in which they go on top.
        dtype: of the merged weights, float32, bfloat16 or float16; None = the base's own.
        folder: where the model goes.
        tokenizer: goes with it, and tokenises the probe texts.
        force: replace a folder that is not an earlier merge.

    Raises:
        ModelError: there is nothing to merge, the folder is taken, an adapter does not fit its base, or the merged
            model is not what base + adapter is. Nothing is written then.
    """
    check_target(found, folder, force)
    spec = ModelSpec(source=found.base, dtype="float32" if dtype == "float32" else None, **found.model_keys)
    model: Any = load_model(spec, _AS_STORED)
    held = _plain_dtype(model, found.base)
    asked = getattr(torch, dtype) if dtype else held
    was_tied = _is_tied(model)
    probes = _probe_ids(tokenizer, model)
    rounding = _Rounding()
    for adapter in found.adapters:
        adapted = lora.load_adapter(model, adapter).eval()
        is_last = adapter is found.adapters[-1]
        if is_last:
            expected = _logits(adapted, probes)
            with adapted.disable_adapter():
                update_kl = _mean_kl(_logits(adapted, probes), expected)
        rounding.merge_(adapted, asked if is_last else held)
        model = lora.unwrap(adapted)
    for parameter in model.parameters():
        if parameter.dtype == held:  # some architectures keep a few parameters in float32
            parameter.data = parameter.data.to(asked)
    untied = was_tied and not _is_tied(model)
    with draft_folder(folder) as draft:
        write_model(model, draft, tokenizer)
        del model, adapted
        written = load_model(ModelSpec(source=str(draft), trust_remote_code=found.trust_remote_code), _AS_STORED)
        report = MergeReport(
            folder=str(folder),
            base=found.base,
            dtype=str(asked).removeprefix("torch."),
            num_layers=rounding.num_layers,
            untied=untied,
            rounding_error=rounding.error(),
            update_kl=update_kl,
            **_compared(_logits(written, probes), expected),
        )
        if asked == torch.float32 and not report.logit_difference <= LOGIT_TOLERANCE:
            raise ModelError(
                f"The merged model's logits differ from base + adapter's by {report.logit_difference:.1e} (at most "
                f"{LOGIT_TOLERANCE:.0e} is rounding), so nothing was written. Serve base and adapter apart."
            )
        write_json(draft / MERGE_RECORD, asdict(report))
    return report


def merge_trained(model: Any, spec: ModelSpec, adapter: LoraSpec, folder: Path, tokenizer: Any) -> MergeReport:
    """Merge the adapter of a run that has just trained into its base, which is read again from where it came.

    Args:
        model: the PEFT model that trained.
        spec: its base.
        adapter: what trained on it.
        folder: replaced, whatever it holds.
        tokenizer: as for `merge`.
    """
    with TemporaryDirectory() as trained:
        found = found_of_trained(model, spec, adapter, Path(trained))
        return merge(found, None, folder, tokenizer, force=True)


def found_of_trained(model: Any, spec: ModelSpec, adapter: LoraSpec, folder: Path) -> FoundModel:
    """Write the adapter that a model has just trained into an empty folder, and return it with its base.

    Args:
        model: the PEFT model that trained.
        spec: its base.
        adapter: what trained on it.
        folder: of the adapter.
    """
    keys = ("model_type", "max_model_len", "rope_scaling", "trust_remote_code")
    lora.save_adapter(model, folder)
    carry_below(adapter, folder)
    return FoundModel(
        base=spec.source,
        adapters=stack_of(folder),
        tokenizer="",
        model_keys={key: getattr(spec, key) for key in keys},
    )


def check_target(found: FoundModel, folder: Path, force: bool = False) -> None:
    """Refuse to merge nothing, and to replace what is not an earlier merge.

    Args:
        found: what is merged; it may not lie in the folder, however much force is used.
        folder: where the merged model goes.
        force: replace any other folder.

    Raises:
        ModelError: saying what to do.
    """
    if not found.adapters:
        raise ModelError(f"{found.base} has no adapter, so there is nothing to merge.")
    target = folder.resolve()
    for part in (Path(found.base), *found.adapters):
        if target in (part.resolve(), *part.resolve().parents):
            raise ModelError(f"{folder} holds {part}, which is merged here. Choose another --output.")
    if folder.is_dir() and (force or (folder / MERGE_RECORD).exists() or not any(folder.iterdir())):
        return
    if folder.exists():
        raise ModelError(
            f"{folder} exists and is not an earlier merge. Choose another --output, or replace it with --force."
        )


class _Rounding:
    """Merges layers into a dtype and adds up what the dtype loses."""

    def __init__(self) -> None:
        self.num_layers = 0
        self._update_sq, self._error_sq = 0.0, 0.0

    def merge_(self, adapted: Any, dtype: torch.dtype) -> None:
        """Merge the adapter of a PEFT model, each layer rounded to the dtype."""
        for layer, name, before, exact in lora.merged_weights(adapted):
            merged = rounded(exact, dtype)
            self.num_layers += 1
            self._update_sq += (exact - before).square().sum(dtype=torch.float64).item()
            self._error_sq += (merged - exact).square().sum(dtype=torch.float64).item()
            setattr(layer, name, nn.Parameter(merged, requires_grad=False))

    def error(self) -> float:
        """Norm of all rounding errors over the norm of all updates."""
        return (self._error_sq / self._update_sq) ** 0.5 if self._update_sq else 0.0


def rounded(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a merged weight.

    Raises:
        ModelError: it is not a number then.
    """
    merged = exact.to(dtype)
    if not merged.isfinite().all():
        raise ModelError(
            f"A merged weight is not a number, or too large for {dtype}: the adapter is broken, or it needs "
            "--dtype bfloat16 or float32."
        )
    return merged


def _plain_dtype(model: Any, base: str) -> torch.dtype:
    """Return the dtype that most of a model's weights are held in."""
    if getattr(model, "hf_quantizer", None) is not None:
        raise ModelError(f"{base} is stored quantised, and an update cannot be added to that. Merge into its original.")
    dtype: torch.dtype = model.dtype
    return dtype


def _is_tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _probe_ids(tokenizer: Any, model: Any) -> list[Tensor]:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _MAX_PROBE_TOKENS
    longest = min(positions, _MAX_PROBE_TOKENS)
    texts = [tokenizer(text, add_special_tokens=False).input_ids[:longest] for text in _PROBES]
    return [torch.tensor([ids]) for ids in texts if ids]


def built_in_rows(tokenizer: Any) -> HeldOut:
    """Return rows for measuring a drift where nobody has any: texts of several kinds, every token supervised."""
    rows = []
    for text in _PROBES:
        ids = np.array(tokenizer(text, add_special_tokens=False).input_ids[:_MAX_PROBE_TOKENS], dtype=np.int32)
        if len(ids) > 1:
            rows.append(TokenRow(ids, np.ones(len(ids), dtype=bool)))
    return HeldOut(rows=rows, origin="built-in texts")


@torch.no_grad()
def _logits(model: Any, probes: Sequence[Tensor]) -> Tensor:
    """Return the logits at all positions of all probes, (positions, vocabulary)."""
    with float32_compute(model):
        return torch.cat([model(input_ids=ids, use_cache=False).logits[0].float() for ids in probes])


def _compared(got_NV: Tensor, expected_NV: Tensor) -> dict[str, Any]:
    return {
        "num_positions": len(expected_NV),
        "logit_difference": ((got_NV - expected_NV).abs().max() / expected_NV.abs().max()).item(),
        "top1_agreement": (got_NV.argmax(-1) == expected_NV.argmax(-1)).float().mean().item(),
        "mean_kl": _mean_kl(got_NV, expected_NV),
    }


def _mean_kl(got_NV: Tensor, expected_NV: Tensor) -> float:
    got, expected = got_NV.log_softmax(-1), expected_NV.log_softmax(-1)
    kl = nn.functional.kl_div(got, expected, log_target=True, reduction="batchmean")
    return kl.clamp_min(0).item()  # rounding can put it below
