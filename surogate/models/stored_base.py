"""How the base under an adapter is stored: what must be known to rebuild what trained.

An adapter that was trained on weights in few bits carries that in a file of its own beside PEFT's, so that it is known
wherever the adapter goes; other programs leave the file alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from surogate.config.parts import LoraSpec, ModelSpec
from surogate.errors import ModelError
from surogate.models.load import quantisation_of
from surogate.models.source import ModelSource
from surogate.quant.convert import Skip
from surogate.quant.fp4 import Nvfp4Format
from surogate.quant.fp8 import Fp8Format
from surogate.quant.nf4 import Nf4Format
from surogate.quant.stored import StorageFormat
from surogate.run_folder import read_json, write_json

STORAGE_FILE = "base_storage.json"
_FORMATS: dict[str, Any] = {"nf4": Nf4Format, "fp8": Fp8Format, "nvfp4": Nvfp4Format}


@dataclass(frozen=True, kw_only=True)
class StoredBase:
    """How the base of an adapter was stored when it trained.

    Attributes:
        storage: the format that it was quantised to while it was loaded; None where its checkpoint is quantised.
        skip: which of its layers were not.
        dtype: the run's model_dtype.
        original: location of the weights before they were quantised; None where nobody knows them.
        lost_start: the uppermost adapter took its start out of the base (PiSSA, OLoRA) before that was quantised.
    """

    storage: StorageFormat | None
    skip: Skip = field(default_factory=Skip)
    dtype: str | None = None
    original: str | None = None
    lost_start: bool = False


def stored_base(
    spec: ModelSpec,
    adapter: LoraSpec,
    storage: StorageFormat | None,
    skip: Skip | None = None,
    original: str | None = None,
) -> StoredBase | None:
    """Find how the base under an adapter is stored; None where it is not in few bits.

    Args:
        spec: the base.
        adapter: what trains on it.
        storage: what the run stores frozen weights in.
        skip: which of them it does not; None = only those that no run does.
        original: the unquantised model, where the checkpoint is quantised.
    """
    init = adapter.init_lora_weights
    takes_start = isinstance(init, str) and init.startswith(("pissa", "olora"))
    if quantisation_of(spec) is not None:
        # A start that changes weights leaves them dequantised, and so there is nothing in few bits.
        return None if takes_start else StoredBase(storage=None, dtype=spec.dtype, original=original)
    if storage is None:
        return None
    return StoredBase(
        storage=storage, skip=skip or Skip(), dtype=spec.dtype, original=spec.source, lost_start=takes_start
    )


def record_base(folder: Path, base: StoredBase | None) -> None:
    """Write into an adapter's folder how the weights under it were stored; nothing where the checkpoint says it all."""
    if base is None or base.original is None:
        return
    for name, kind in _FORMATS.items():
        if isinstance(base.storage, kind):
            described = {"format": name, **asdict(base.storage), "skip": asdict(base.skip)}
            described |= {"dtype": base.dtype, "lost_start": base.lost_start, "original": base.original}
            described["fingerprint"] = ModelSource.of(base.original).fingerprint()
            write_json(folder / STORAGE_FILE, described)


def recorded_base(folder: Path) -> StoredBase | None:
    """Read what `record_base` wrote; None where the weights under an adapter were not stored in few bits.

    Raises:
        ModelError: the file says what this version does not know, or those weights have changed.
    """
    described = read_json(folder / STORAGE_FILE)
    if not described:
        return None
    original, fingerprint = described.pop("original", None), described.pop("fingerprint", None)
    if original and fingerprint != _fingerprint_of(original, fingerprint):
        raise ModelError(
            f"The weights of {original} changed since {folder} was trained on them, so they do not belong together."
        )
    try:
        kind = _FORMATS[described.pop("format")]
        skip = described.pop("skip")
        skip = Skip(**{**skip, "modules": tuple(skip["modules"])})
        dtype, lost_start = described.pop("dtype"), described.pop("lost_start")
        return StoredBase(storage=kind(**described), skip=skip, dtype=dtype, original=original, lost_start=lost_start)
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder / STORAGE_FILE} describes a format that this version does not know.") from error


def _fingerprint_of(location: str, otherwise: str) -> str:
    """Return a model's fingerprint, or the other where it has moved or was somebody else's."""
    try:
        return ModelSource.of(location).fingerprint()
    except ModelError:
        return otherwise
