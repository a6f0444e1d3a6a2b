"""The weights of a checkpoint as they were before a run stored them in few bits, one tensor at a time."""

from __future__ import annotations

from torch import Tensor

from surogate.config.parts import LoraSpec, ModelSpec
from surogate.models.load import quantisation_of
from surogate.models.skeleton import skeleton
from surogate.models.source import ModelSource
from surogate.models.stacks import locate_adapter, stack_of
from surogate.models.weights import GgufTensorReader, SafetensorsReader, TensorReader


class OriginalWeights:
    """Reads what was quantised.

    Args:
        model: whose checkpoint.
        adapter: what trains on it; one that changes the base first leaves no file to read from.

    Attributes:
        missing: why nothing can be read, as a clause; None where it can.
    """

    def __init__(self, model: ModelSpec, adapter: LoraSpec) -> None:
        self._reader: TensorReader | None = None
        self.missing = _reason(model, adapter)
        if self.missing is None:
            source = ModelSource.of(model.source).downloaded()
            files = source.weight_files()
            if not files:
                self.missing = "the model has no safetensors"
            elif source.gguf_file:
                self._reader = GgufTensorReader(files[0], skeleton(model))
            else:
                self._reader = SafetensorsReader(files)

    def read(self, name: str, shape: tuple[int, int]) -> Tensor | None:
        """Return a parameter's values; None where the files hold no such thing under its name.

        Args:
            name: of the parameter in the transformers model.
            shape: that it must have.
        """
        if self._reader is None or name not in self._reader.names():
            return None
        values = self._reader.read(name)
        return values if values.shape == shape else None


def _reason(model: ModelSpec, adapter: LoraSpec) -> str | None:
    init = adapter.init_lora_weights
    if quantisation_of(model) is not None:
        return "the checkpoint is quantised itself"
    if adapter.adapter_path is not None:
        below = len(stack_of(locate_adapter(adapter.adapter_path))) - (adapter.adapter_init_mode == "trainable")
        if below:
            return "another adapter was merged into the base before"
    if isinstance(init, str) and init.startswith(("pissa", "olora")):
        return f"init_lora_weights: {init} changed the base before"
    return None
