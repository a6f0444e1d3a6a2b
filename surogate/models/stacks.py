"""Adapters on top of adapters: where one lies, and on which others it was trained.

The one idea: an adapter that was trained on a base with another one merged into it carries that one along, in a folder
`stacked_on/` of its own. A folder so stands for its whole stack, wherever it is moved to.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from surogate.config.parts import LoraSpec
from surogate.errors import ModelError
from surogate.locations import resolve
from surogate.run_folder import RunFolder

ADAPTER_FILE = "adapter_config.json"
_STACKED_ON = "stacked_on"


def locate_adapter(location: str) -> Path:
    """Return the folder of an adapter.

    Args:
        location: the folder, that of a run which trained one, or a hub id, whose files are downloaded.

    Raises:
        ModelError: there is no adapter.
    """
    found = resolve(location, ModelError)
    folder = _download(found) if isinstance(found, str) else found
    if adapter := adapter_in(folder):
        return adapter
    raise ModelError(f"{location} holds no {ADAPTER_FILE}, so it is neither an adapter's folder nor that of its run.")


def adapter_in(folder: Path) -> Path | None:
    """Return the adapter's folder that a folder is, or holds as that of a run; None where there is none."""
    candidates = (folder, RunFolder(folder).adapter_dir)
    return next((candidate for candidate in candidates if (candidate / ADAPTER_FILE).exists()), None)


def stack_of(folder: Path) -> tuple[Path, ...]:
    """Return the adapters that an adapter's folder stands for, in the order in which they go on the base."""
    below = folder / _STACKED_ON
    return (*stack_of(below), folder) if below.is_dir() else (folder,)


def carry_below(spec: LoraSpec, folder: Path) -> None:
    """Put into the folder of a trained adapter what it was trained on top of.

    Args:
        spec: of the run that trained it.
        folder: of the adapter, already written.
    """
    if spec.adapter_path is None:
        return
    start = locate_adapter(spec.adapter_path)
    below = start if spec.adapter_init_mode == "merge" else start / _STACKED_ON
    if below.is_dir():
        shutil.copytree(below, folder / _STACKED_ON)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"]))
    except (OSError, ValueError) as error:  # every error of the hub client is one of the two
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{hub_id!r} is no local path, and no adapter of that name could be loaded: {reason}"
        ) from error
