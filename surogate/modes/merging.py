"""Merging what a run has just trained, while its data and its precision plugin are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surogate.models.drift import HeldOut
from surogate.models.merge import MergeReport, built_in_rows, merge_trained
from surogate.models.stored_base import StoredBase, stored_base
from surogate.models.stored_merge import StoredMergeReport, merge_trained_stored


def merge_run(module: Any, folder: Path, tokenizer: Any) -> MergeReport | StoredMergeReport:
    """Merge the adapter of a module into its base; into the dequantised one where that is stored in few bits.

    Args:
        module: a CausalLMModule that has trained, with its trainer.
        folder: replaced, whatever it holds.
        tokenizer: goes with the model.
    """
    base = base_of(module)
    trained = (module.model, module.model_spec, module.lora_spec)
    if base is None:
        return merge_trained(*trained, folder, tokenizer)
    stores = getattr(getattr(module.trainer, "datamodule", None), "validation_stores", {}).values()
    rows = [store[row] for store in stores for row in range(len(store))]
    held_out = HeldOut(rows=rows, origin="validation rows of the run") if rows else built_in_rows(tokenizer)
    return merge_trained_stored(*trained, base, held_out.thinned(), folder, tokenizer)


def base_of(module: Any) -> StoredBase | None:
    """Find how the base under a module's adapter is stored; None where it is not in few bits."""
    precision = getattr(module._trainer, "precision_plugin", None)  # there is none where a module is used by itself
    storage, skip = getattr(precision, "storage", None), getattr(precision, "skip", None)
    return stored_base(module.model_spec, module.lora_spec, storage, skip)
