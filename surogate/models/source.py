"""Where a model comes from: hub id, folder, `.gguf` file or `pkg://package/file`, as arguments for transformers.

What is not here: tensors (weights.py) and modules (load.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surogate.errors import ModelError
from surogate.locations import resolve

_PROBE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A resolved model location.

    Attributes:
        location: as the user typed it; it is what an adapter records as its base.
        folder: local folder or hub id, what transformers calls pretrained_model_name_or_path.
        gguf_file: name of the GGUF file inside folder, or None.
    """

    location: str
    folder: str
    gguf_file: str | None = None

    @classmethod
    def of(cls, location: str) -> ModelSource:
        """Resolve a location.

        Raises:
            ModelError: the location is empty or its file is no model.
        """
        if not location:
            raise ModelError("No model is set. Set `model` to a hub id, a folder, a .gguf file or pkg://package/file.")
        resolved = resolve(location, ModelError)
        if isinstance(resolved, str):
            return cls(location, resolved)
        if resolved.is_dir():
            if not (resolved / "config.json").exists():
                raise ModelError(f"model: {location} holds no config.json, so it is not a model folder.")
            return cls(location, str(resolved))
        if resolved.suffix == ".gguf":
            return cls(location, str(resolved.parent), resolved.name)
        if resolved.name == "config.json":
            return cls(location, str(resolved.parent))
        raise ModelError(f"model: {location} is neither a folder nor a .gguf file.")

    @property
    def is_local(self) -> bool:
        """False for a hub id."""
        return Path(self.folder).is_dir()

    def pretrained_kwargs(self, trust_remote_code: bool = False) -> dict[str, Any]:
        """Arguments for the `from_pretrained` of configs and models."""
        kwargs: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if self.gguf_file:
            kwargs["gguf_file"] = self.gguf_file
        if self.is_local:
            kwargs["local_files_only"] = True
        return kwargs

    def weight_files(self) -> list[Path]:
        """Local files that hold the weights; empty for a hub id."""
        if not self.is_local:
            return []
        if self.gguf_file:
            return [Path(self.folder) / self.gguf_file]
        return sorted(Path(self.folder).glob("*.safetensors"))

    def downloaded(self) -> ModelSource:
        """Return the source with its files on this machine; those of a hub id are fetched, or found in the cache.

        Raises:
            ModelError: they cannot be fetched.
        """
        if self.is_local:
            return self
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(self.folder, allow_patterns=["*.safetensors", "*.json"])
        except (OSError, ValueError) as error:
            raise ModelError(f"model: the files of {self.location} cannot be fetched: {error}") from error
        return ModelSource(self.location, folder)

    def fingerprint(self) -> str:
        """Identify the weights cheaply: names, sizes, and the first and last MiB of each file.

        A checkpoint holds only what trains, so it must be able to tell when the frozen base is no longer the same.
        """
        digest = hashlib.sha256()
        for path in self.weight_files():
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(_PROBE_BYTES))
                file.seek(max(0, size - _PROBE_BYTES))
                digest.update(file.read(_PROBE_BYTES))
        if not self.is_local:
            digest.update(self.folder.encode())
        return digest.hexdigest()[:16]
