"""Weights as a folder, for an engine that reads them: complete, or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from surogate.errors import GeneratorError

WEIGHTS_FILE = "model.safetensors"


def write_weights(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Write merged weights into a folder; see write_whole.

    Args:
        tensors: name in the checkpoint and weight; tied ones under each of their names.
        folder: which exists.
    """
    copies = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors}
    save_file(copies, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def write_whole(write: Callable[[Path], None], folder: Path) -> None:
    """Write a folder under another name, and give it its own once it is complete.

    Other than run_folder.draft_folder, it does not wait for the disk: what an engine is given need not survive a crash.

    Args:
        write: fills the folder that it is given.
        folder: replaced.

    Raises:
        GeneratorError: the disk is full, or the folder cannot be written.
    """
    draft = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        write(draft)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(draft, folder)
    except (OSError, SafetensorError) as error:  # the latter where safetensors itself writes
        reason = getattr(error, "strerror", None) or error
        raise GeneratorError(
            f"The policy's weights could not be written to {folder}: {reason}. Make room and give the "
            "same command again; the run continues from its newest checkpoint."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
