"""What `surogate merge` needs to know of a run: how its base was stored, and which rows it did not train on.

The one idea: both come from the run's own configuration, through its own plugin and its own data module, so that
formats, templates, masks and the split are those of the run.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from surogate.cli.inspect import data_module
from surogate.config.parts import BatchSpec, DatasetSpec, LoraSpec, ModelSpec
from surogate.config.yaml_file import read_yaml
from surogate.errors import ConfigError, SurogateError
from surogate.models.drift import HeldOut
from surogate.models.inference import FoundModel
from surogate.models.merge import built_in_rows
from surogate.models.stored_base import StoredBase, recorded_base, stored_base
from surogate.precision import RecipePrecision
from surogate.run_folder import RunFolder

log = logging.getLogger(__name__)

Nested = dict[str, Any]


def run_of(location: str) -> Nested:
    """Return the nested configuration of the run that a folder is, or whose adapter it is; {} where there is none."""
    folder = Path(location).resolve()
    for candidate in (RunFolder(folder), RunFolder(folder.parent)):
        is_its_own = candidate.path == folder or candidate.adapter_dir == folder
        if is_its_own and candidate.config_yaml.exists():
            return read_yaml(candidate.config_yaml).values
    return {}


def base_of(run: Nested, found: FoundModel, original: str | None) -> StoredBase | None:
    """Find how the base of an adapter was stored when it trained; None where it was not quantised.

    Args:
        run: its nested configuration.
        found: base and adapters.
        original: location of the unquantised model, as the user named it.

    Raises:
        ConfigError: an original is named where the base itself is one.
        ModelError: there is no such base, or it is quantised in a way that cannot be read.
    """
    described: Nested = (run.get("model") or {}).get("init_args") or {}
    dtype = (described.get("model") or {}).get("dtype")
    spec = ModelSpec(source=found.base, dtype=dtype, **found.model_keys)
    adapter = LoraSpec(init_lora_weights=(described.get("lora") or {}).get("init_lora_weights", True))
    plugin = _precision_of(run)
    storage, skip = (None, None) if plugin is None else (plugin.storage, plugin.skip)
    base = stored_base(spec, adapter, storage, skip, original)
    recorded = recorded_base(found.adapters[-1]) if found.adapters else None
    if base is None and not run and recorded is not None:
        base = replace(recorded, original=found.base)  # an adapter away from its run
    if original is not None and (base is None or base.storage is not None):
        raise ConfigError(f"--original {original}: the base {found.base} is not quantised itself. Remove --original.")
    return base


def _precision_of(run: Nested) -> RecipePrecision | None:
    plugins = (run.get("trainer") or {}).get("plugins") or []
    for plugin in plugins if isinstance(plugins, list) else [plugins]:
        module, _, name = str(plugin.get("class_path") if isinstance(plugin, dict) else "").rpartition(".")
        kind = getattr(importlib.import_module(module), name, None) if module else None
        if isinstance(kind, type) and issubclass(kind, RecipePrecision):
            return kind(**(plugin.get("init_args") or {}))
    return None


def held_out_rows(run: Nested, found: FoundModel, tokenizer: Any, file: str | None, max_rows: int | None) -> HeldOut:
    """Find rows that the adapter did not train on.

    Args:
        run: nested configuration of the run that trained it.
        found: base and adapter, which settle what the run does not.
        tokenizer: of both.
        file: a location of rows to take instead of the run's own.
        max_rows: at most; None = a default number of tokens.

    Raises:
        SurogateError: the file cannot be used.
    """
    described: Nested = run.get("data") or {}
    if not str(described.get("class_path")).startswith("surogate.data."):
        described = {}
    if file is not None:
        return _rows(_with_file(described or _plain_data(found), file), f"rows of {file}").thinned(max_rows)
    reason = "there is no run beside the adapter"
    if described:
        try:
            held_out = _rows(described, "validation rows of the run")
            if held_out.rows:
                return held_out.thinned(max_rows)
            reason = "the run held none out"
        except SurogateError as error:
            reason = f"the run's data cannot be read: {str(error).splitlines()[0]}"
    log.warning(
        "Drift is measured on built-in texts, because %s. Name a file of rows that did not train with --rows.",
        reason.rstrip("."),
    )
    return built_in_rows(tokenizer)


def _plain_data(found: FoundModel) -> Nested:
    init_args = {
        "tokenizer": found.tokenizer,
        "batch": asdict(BatchSpec()),
        "chat": asdict(found.chat),
        "trust_remote_code": found.trust_remote_code,
    }
    return {"class_path": "surogate.data.datamodule.ChatDataModule", "init_args": init_args}


def _with_file(described: Nested, file: str) -> Nested:
    rows = [asdict(DatasetSpec(path=file))]
    return {**described, "init_args": {**described["init_args"], "datasets": rows, "validation_datasets": rows}}


def _rows(described: Nested, origin: str) -> HeldOut:
    data, _ = data_module(described)
    data.setup()
    rows = [store[row] for store in data.validation_stores.values() for row in range(len(store))]
    return HeldOut(rows=rows, origin=origin)
