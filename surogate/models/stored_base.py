"""How the base under an adapter is stored: what must be known of a run to rebuild what it trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from surogate.config.parts import LoraSpec, ModelSpec
from surogate.models.load import quantisation_of
from surogate.quant.convert import Skip
from surogate.quant.stored import StorageFormat


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
