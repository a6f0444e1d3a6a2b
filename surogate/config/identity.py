"""What makes a run itself, taken from its nested configuration: with other values in the same folder it is another run.

What is not here: where that is recorded and compared (run_folder.py). How long a run goes on, how fast it learns, how
it is reported and evaluated, which servers generate for it, how far they run ahead, and how its work is laid out in
memory may change between a stop and a resume, and stand apart.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from typing import Any

from surogate.config.parts import DatasetSpec

Nested = dict[str, Any]

_FREE_IN_MODEL = {"recompute", "attn_implementation", "trust_remote_code"}
_FIXED_IN_ROLLOUTS = {
    "batch_size",
    "rollouts_per_example",
    "seq_len",
    "seed",
    "sampling",
    "buffer",
    "advantage",
    "filters",
}
_FIXED_IN_BATCH = {"sequence_len", "sample_packing", "train_seed", "eval_seed"}


def run_identity(model: Nested, data: Nested, plugins: Any = None) -> Nested:
    """Return the identity of a run as plain data; parts that a class of one's own does not have are left out.

    Args:
        model: the nested configuration's `model`, with class_path and init_args.
        data: its `data`.
        plugins: its `trainer.plugins`.
    """
    module, rows = model.get("init_args") or {}, data.get("init_args") or {}
    identity = {
        "model": _only(module.get("model"), lambda key: key not in _FREE_IN_MODEL),
        "lora": module.get("lora"),
        "precision": _precision(plugins),
        "optimizer": _only(module.get("optim"), lambda key: key in ("name", "master_dtype")),
        "tokenizer": rows.get("tokenizer"),
        "datasets": _told_apart_by(rows.get("datasets")),
        "validation_datasets": _told_apart_by(rows.get("validation_datasets")),
        "validation_split_ratio": rows.get("validation_split_ratio"),
        "chat": rows.get("chat"),
        "loss": module.get("loss"),
        "environments": rows.get("environments"),
        "rollouts": _only(rows.get("orchestrator"), lambda key: key in _FIXED_IN_ROLLOUTS),
        "noise": (rows.get("link") or {}).get("noise"),
        "batch": _only(rows.get("batch"), lambda key: key in _FIXED_IN_BATCH),
    }
    return deepcopy({key: value for key, value in identity.items() if value is not None})


_FREE_IN_RECIPE = {"emulate", "backend"}


def _precision(plugins: Any) -> Nested | None:
    """Return in which numbers the run stores and computes; None where it does neither in few bits."""
    for plugin in plugins if isinstance(plugins, list) else [plugins]:
        class_path = str(plugin.get("class_path")) if isinstance(plugin, dict) else ""
        if not class_path.startswith("surogate.precision."):
            continue
        arguments = dict(plugin.get("init_args") or {})
        options = _only(arguments.pop("recipe_options", None) or {}, lambda key: key not in _FREE_IN_RECIPE)
        arguments = {key: value for key, value in {**arguments, "recipe_options": options}.items() if value}
        is_plain = class_path.endswith(".RecipePrecision") and arguments in ({}, {"recipe": "bf16"})
        return None if is_plain else {"plugin": class_path.rpartition(".")[2], **arguments}
    return None


def _only(part: Any, is_fixed: Callable[[str], bool]) -> Any:
    return {key: value for key, value in part.items() if is_fixed(key)} if isinstance(part, dict) else part


def _told_apart_by(specs: Any) -> Any:
    """Return the entries without their defaults, so that a message shows little."""
    if specs is None:
        return None
    default = asdict(DatasetSpec())
    return [
        {key: value for key, value in spec.items() if value != default.get(key)} if isinstance(spec, dict) else spec
        for spec in specs
    ]
