"""Several adapters on one base in memory, of which one is active: a swap loads and merges nothing.

What is not here: what adapters are called and where they are found (cli/). The one idea: a swap never changes what an
adapter computes. A run that trained on top of another adapter is two adapters, added to the base together. Where the
sum would not be the model that trained, the model is loaded anew and merged, which is slower and right.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from surogate.errors import ModelError
from surogate.models import lora
from surogate.models.inference import FoundModel, load_for_inference
from surogate.models.source import ModelSource
from surogate.models.stored_base import StoredBase, recorded_base

log = logging.getLogger(__name__)


class AdapterSwitch:
    """A base model, and adapters that take turns on it.

    Args:
        found: whose base it is; its adapters are left to `use`.
        device: as for `load_for_inference`.

    Attributes:
        model: a transformers model with the adapters of the last `use`.
    """

    def __init__(self, found: FoundModel, device: torch.device | None = None) -> None:
        self._found, self._device = replace(found, adapters=()), device
        self.model: Any = None
        self._adapted: Any = None
        self._names: dict[Path, str] = {}
        self._is_merged = False
        self._stored: StoredBase | None = None

    def use(self, adapters: tuple[Path, ...]) -> None:
        """Swap.

        Args:
            adapters: folders, in the order in which they were trained on top of each other; () = the base alone.

        Raises:
            ModelError: an adapter is of another base, or does not fit it. Another `use` must follow.
        """
        for folder in adapters:
            check_base(folder, self._found.base)
        stored = recorded_base(adapters[-1]) if adapters else None
        if stored != self._stored:
            self._forget()
        self._stored = stored
        if reason := _needs_merging(adapters, stored):
            log.warning("%s is loaded anew, with %s merged into the base: %s", adapters[-1], adapters[0], reason)
            self._forget()
            self.model = load_for_inference(replace(self._found, adapters=adapters), self._device)
            self._is_merged = True
            return
        new = [folder for folder in adapters if folder not in self._names]
        if self._is_merged or any(_clash(folder, other) for folder in new for other in self._names):
            self._forget()
        if self.model is None:
            self.model = load_for_inference(self._found, self._device, self._stored)
        for folder in adapters:
            if folder not in self._names:
                self._add(folder)
        if self._adapted is not None:
            lora.activate_(self._adapted, [self._names[folder] for folder in adapters])

    def _add(self, folder: Path) -> None:
        name = f"adapter_{len(self._names)}"
        try:
            self._adapted = lora.load_adapter(self._adapted or self.model, folder, name=name).eval()
        except ModelError:
            self._forget()  # PEFT has put parts of it on the model
            raise
        self._names[folder] = name

    def _forget(self) -> None:
        self.model = self._adapted = None
        self._names, self._is_merged = {}, False


def check_base(folder: Path, base: str) -> None:
    """Refuse an adapter that was trained on another model, where that can be told.

    Raises:
        ModelError: naming both.
    """
    recorded = _config(folder).get("base_model_name_or_path")
    if not recorded or recorded == base:
        return
    try:
        theirs, ours = ModelSource.of(recorded), ModelSource.of(base)
    except ModelError:  # it has moved, or was trained on another machine; whether the shapes fit is seen on loading
        return
    if theirs.is_local == ours.is_local and theirs.fingerprint() != ours.fingerprint():
        raise ModelError(
            f"adapter: {folder} was trained on {recorded}, and this model is {base}. If both are the same weights, "
            "say so by base_model_name_or_path in its adapter_config.json."
        )


def _needs_merging(adapters: tuple[Path, ...], stored: StoredBase | None) -> str | None:
    """Say why adapters that were trained on top of each other cannot simply be added up; None where they can."""
    if stored is not None and (len(adapters) > 1 or stored.lost_start):
        return "the base was stored in few bits after that"
    for i, upper in enumerate(adapters):
        for lower in adapters[:i]:
            if _config(upper).get("use_dora") and _adapted_layers(upper) & _adapted_layers(lower):
                return "DoRA measures the weights of the base that it was trained on"
            if _whole_modules(upper) & _whole_modules(lower):
                return "both replace the same modules_to_save"
            if _clash(upper, lower):
                return "one adapts a layer that the other has in modules_to_save"
    return None


def _clash(one: Path, other: Path) -> bool:
    """Whether one adapter replaces a module that the other adapts, which PEFT cannot hold in one model."""
    return any(
        layer == module or layer.startswith(f"{module}.")
        for a, b in ((one, other), (other, one))
        for layer in _adapted_layers(a)
        for module in _whole_modules(b)
    )


def _adapted_layers(folder: Path) -> set[str]:
    return {name.partition(".lora_")[0] for name in _tensor_names(folder) if ".lora_" in name}


def _whole_modules(folder: Path) -> set[str]:
    return {name.rpartition(".")[0] for name in _tensor_names(folder) if ".lora_" not in name}


def _tensor_names(folder: Path) -> list[str]:
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        raise ModelError(f"adapter: {folder} holds no adapter_model.safetensors.")
    with safe_open(str(file), framework="pt") as tensors:
        return list(tensors.keys())


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    if not file.exists():
        raise ModelError(f"adapter: {folder} holds no adapter_config.json, so it is not an adapter folder.")
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config
