"""Merging an adapter that trained on a quantised base: every way is tried and measured before one is kept.

The adapter learned to correct the base as it was stored, so the merge that is usual elsewhere, into the original
weights, gives another model than the one that trained. What is not here: merging into weights that nobody quantised
(merge.py), judging a drift (drift_table.py), and the formats' files (quantize.py).

The one idea: **what is measured is what was written.** Each target is a complete folder beside the place of the result;
it is read again and compared with the unmerged model, and one of them moves to that place.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from surogate.config.parts import LoraSpec, ModelSpec
from surogate.errors import CheckpointError, ModelError
from surogate.models import lora
from surogate.models.adapter_start import take_apart
from surogate.models.dequantized import dequantize_
from surogate.models.drift import Drift, HeldOut, Reference
from surogate.models.drift_table import TARGETS, DriftTable, Target
from surogate.models.export import write_model
from surogate.models.inference import FoundModel
from surogate.models.load import load_model, quantisation_of
from surogate.models.merge import MERGE_RECORD, check_target, found_of_trained, merge, rounded
from surogate.models.quantize import quantize
from surogate.models.stored_base import StoredBase
from surogate.models.weights import ParameterSource, materialize_
from surogate.quant.checkpoints.matching import layout_like, layout_of
from surogate.quant.checkpoints.writing import Layout
from surogate.quant.convert import Conversion, Skip, convert_
from surogate.quant.layer_names import num_decoder_layers
from surogate.quant.linear import FrozenQuantLinear
from surogate.run_folder import replace_folder, write_json

log = logging.getLogger(__name__)

_AS_STORED = torch.device("meta")  # nothing computes in the weights' own dtype, so no CPU need be able to
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for.

    Attributes:
        target: which to keep; None = the recommended one.
        dtype: of the merged weights, float32, bfloat16 or float16; None = the base's own.
        force: keep a target that is too far from what trained, and replace a folder that is not an earlier merge.
        measured: the targets to make at all.
    """

    target: Target | None = None
    dtype: str | None = None
    force: bool = False
    measured: tuple[Target, ...] = TARGETS


@dataclass(frozen=True, kw_only=True)
class StoredMergeReport:
    """What was written, and how far it is from what trained.

    Attributes:
        folder: where the merged model is.
        base: location of the base model.
        target: what the adapter was merged into.
        drift: of all targets.
    """

    folder: str
    base: str
    target: Target
    drift: DriftTable

    def __str__(self) -> str:
        numbers = self.drift.storage if self.target == "requantized" else self.drift.dtype
        return f"{self.folder}: the adapter merged into {self.base} ({self.target}), in {numbers}"


def merge_stored(
    found: FoundModel,
    base: StoredBase,
    held_out: HeldOut,
    folder: Path,
    tokenizer: Any,
    wanted: Wanted = Wanted(),
    show: Callable[[DriftTable], None] = lambda table: log.info("%s", table),
) -> StoredMergeReport:
    """Make every target, measure its drift on held-out rows, and keep one.

    Memory: the base in the dtype it is stored in, one layer in float32, and the reference's log-probabilities. Disk:
    all targets, until one of them is kept.

    Args:
        found: base and adapters, in the order in which they go on top; the last one trained on the quantised base.
        base: how it was stored.
        held_out: rows to measure on.
        folder: where the model goes.
        tokenizer: goes with it.
        wanted: what to keep.
        show: told the drift of all targets before one is kept or refused.

    Raises:
        ModelError: there is nothing to merge, the folder is taken, an adapter does not fit its base, or the target
            cannot be made or is too far from what trained. Nothing is written then.
        CheckpointError: the disk is full.
    """
    for source in {found.base, base.original or found.base}:
        check_target(replace(found, base=source), folder, wanted.force)
    drafts = folder.with_name(f"{folder.name}.targets.tmp")
    shutil.rmtree(drafts, ignore_errors=True)
    try:
        table = _Study(found, base, tokenizer, drafts, wanted).measure(held_out)
        show(table)
        chosen = wanted.target or table.recommended
        if chosen in table.impossible:
            raise ModelError(f"--target {chosen}: not possible, {table.impossible[chosen]}.")
        refusal = table.refusal(chosen)
        if refusal and not wanted.force:
            instead = f"--target {table.recommended}" if chosen != table.recommended else "--dtype float32"
            raise ModelError(
                f"--target {chosen}: {refusal}, so nothing was written. Use {instead}, serve base and adapter apart, "
                "or write it with --force."
            )
        report = StoredMergeReport(folder=str(folder), base=found.base, target=chosen, drift=table)
        write_json(drafts / chosen / MERGE_RECORD, {**asdict(report), "refused": refusal})
        replace_folder(drafts / chosen, folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder} could not be written: {error.strerror or error}. The merge needs room for "
            f"{len(wanted.measured)} models. Make room and give the same command again."
        ) from error
    finally:
        shutil.rmtree(drafts, ignore_errors=True)
    return report


def merge_trained_stored(
    model: Any, spec: ModelSpec, adapter: LoraSpec, base: StoredBase, held_out: HeldOut, folder: Path, tokenizer: Any
) -> StoredMergeReport:
    """Merge the adapter of a run that has just trained into the dequantised weights that it trained on.

    Args:
        model: the PEFT model that trained.
        spec: its base.
        adapter: what trained on it.
        base: how the base is stored.
        held_out: rows to measure on.
        folder: replaced, whatever it holds.
        tokenizer: goes with it.
    """
    with TemporaryDirectory() as trained:
        found = found_of_trained(model, spec, adapter, Path(trained))
        wanted = Wanted(target="dequantized", force=True, measured=("dequantized",))
        return merge_stored(found, base, held_out, folder, tokenizer, wanted)


class _Study:
    """The targets of one merge, made and measured one after the other."""

    def __init__(self, found: FoundModel, base: StoredBase, tokenizer: Any, drafts: Path, wanted: Wanted) -> None:
        if base.lost_start:
            *below, top = found.adapters
            found = replace(found, adapters=(*below, *take_apart(top, drafts / "halves")))
        self._found, self._base, self._tokenizer, self._drafts = found, base, tokenizer, drafts
        self._asked_dtype, self._measured = wanted.dtype, wanted.measured
        self._held_dtype = torch.float32
        self._layout: Layout | None = None
        self._unquantised: tuple[str, ...] = ()

    @property
    def _dtype(self) -> str:
        """Of the merged weights."""
        return self._asked_dtype or str(self._held_dtype).removeprefix("torch.")

    def measure(self, held_out: HeldOut) -> DriftTable:
        log.info("Measuring what trained on %d %s.", len(held_out.rows), held_out.origin)
        adapted, conversion = self._trained()
        self._layout = self._layout_of(adapted)
        if self._base.storage is None:
            self._unquantised = tuple(map(re.escape, conversion.kept))
        reference = Reference(adapted, held_out.rows)
        without_adapter = self._without_adapter(reference, adapted)
        del adapted
        drifts: dict[Target, Drift] = {}
        impossible: dict[Target, str] = {}
        makers = (self._write_original, self._write_dequantized, self._write_requantized)
        for target, write in zip(TARGETS, makers, strict=True):
            if target not in self._measured:
                continue
            log.info("Merging and measuring: %s.", target)
            draft = self._drafts / target
            draft.mkdir(parents=True)
            try:
                write(draft)
            except _ImpossibleError as error:
                impossible[target] = str(error)
                continue
            drifts[target] = reference.drift_of(_load_written(draft, self._found.trust_remote_code))
        return DriftTable(
            storage=", ".join(conversion.formats),
            dtype=self._dtype,
            origin=held_out.origin,
            num_rows=len(held_out.rows),
            num_positions=reference.num_positions,
            loss=reference.loss,
            without_adapter=without_adapter,
            targets=drifts,
            impossible=impossible,
        )

    def _spec(self) -> ModelSpec:
        dtype: Any = self._base.dtype
        return ModelSpec(source=self._found.base, dtype=dtype, **self._found.model_keys)

    def _trained(self) -> tuple[Any, Conversion]:
        """Return the model as it trained: the base stored in few bits, the uppermost adapter beside it."""
        model: Any = load_model(self._spec(), _AS_STORED)
        self._held_dtype = model.dtype
        *below, top = self._found.adapters
        for folder in below:
            model = lora.fold(lora.load_adapter(model, folder))
        adapted = lora.load_adapter(model, top, trainable=True)  # what trains is not stored
        conversion = convert_(
            adapted,
            self._base.storage,
            self._base.skip,
            device=_CPU,
            source=ParameterSource(),
            num_layers=num_decoder_layers(model),
        )
        return adapted.eval(), conversion

    def _without_adapter(self, reference: Reference, adapted: Any) -> Drift:
        if self._base.lost_start:  # what is under the adapter is no model by itself
            return reference.drift_of(load_model(self._spec(), _AS_STORED))
        with adapted.disable_adapter():
            return reference.drift_of(adapted)

    def _layout_of(self, adapted: nn.Module) -> Layout | None:
        if self._base.storage is not None:
            return layout_of(self._base.storage)
        method = quantisation_of(self._spec())
        stored = next((module.stored for module in adapted.modules() if isinstance(module, FrozenQuantLinear)), None)
        return None if method is None or stored is None else layout_like(stored, method.name)

    def _write_original(self, draft: Path) -> None:
        if self._base.original is None:
            raise _ImpossibleError("the base is quantised itself; --original names the model that it was made of")
        found = replace(self._found, base=self._base.original)
        merge(found, self._asked_dtype, draft, self._tokenizer, force=True)

    def _write_dequantized(self, draft: Path) -> None:
        adapted, _ = self._trained()
        dtype: torch.dtype = getattr(torch, self._dtype)
        for layer, name, _, exact in lora.merged_weights(adapted):
            setattr(layer, name, nn.Parameter(rounded(exact, dtype), requires_grad=False))
        model = lora.unwrap(adapted)
        dequantize_(model, dtype)
        for parameter in model.parameters():
            if parameter.dtype == self._held_dtype:  # some architectures keep a few parameters in float32
                parameter.data = parameter.data.to(dtype)
        write_model(model, draft, self._tokenizer)

    def _write_requantized(self, draft: Path) -> None:
        """Quantise a merge again, that into the original weights where there is one.

        Dequantised weights lie on the grid of their format, and an update of less than half a step rounds back to the
        codes that were there: NF4 loses 94 % of the quickstart's adapter so, and 0.5 % from the original weights.
        """
        if self._layout is None:
            raise _ImpossibleError("the base is stored in a format that can be read and not written")
        source = self._drafts / ("original" if self._base.original else "dequantized")
        skip = replace(self._base.skip, modules=self._base.skip.modules + self._unquantised)
        try:
            quantize(str(source), self._layout, skip, draft, self._tokenizer, force=True)
        except ModelError as error:  # fine-grained FP8 wants sides that are multiples of its tile
            reason, _, _ = str(error).partition(" Choose another ")  # its advice is for `surogate quantize`
            raise _ImpossibleError(reason.replace(str(source), "the merged model").rstrip(".")) from error


class _ImpossibleError(Exception):
    """A target cannot be made of this base."""


def _load_written(folder: Path, trust_remote_code: bool) -> Any:
    """Load a folder as it was written, quantised weights in their stored form."""
    spec = ModelSpec(source=str(folder), trust_remote_code=trust_remote_code)
    model: Any = load_model(spec, _AS_STORED, defer=True)
    model.requires_grad_(False)
    convert_(model, None, Skip(), device=_CPU, source=ParameterSource())
    materialize_(model, _CPU)
    return model.eval()
