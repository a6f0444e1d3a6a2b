"""Models whose checkpoint is quantised already: finding out, reading them tensor by tensor, and what may train.

They never go through transformers' quantizers, whose layers cannot be trained on or need the chip that has the format:
the model is built from its configuration without `quantization_config`, on the meta device, over a reader that knows
the stored form of each weight. What is not here: the formats (quant/checkpoints).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surogate.config.parts import ModelSpec
from surogate.errors import ModelError
from surogate.models.source import ModelSource
from surogate.models.weights import SafetensorsReader, defer_
from surogate.quant.checkpoints.methods import method_of
from surogate.quant.checkpoints.reading import Method, QuantisedCheckpoint
from surogate.run_folder import read_json

_MODELOPT_FILE = "hf_quant_config.json"
"""Where ModelOpt wrote its quantization_config before it went into config.json."""


def take_method_(config: Any, source: ModelSource) -> Method | None:
    """Find how a checkpoint is quantised, and take it out of the model's configuration.

    Args:
        config: transformers' configuration; without `quantization_config` afterwards.
        source: where it came from.

    Returns:
        None where it is not quantised.

    Raises:
        ModelError: it is quantised in a way that cannot be read.
    """
    described = getattr(config, "quantization_config", None) or _described_apart(source)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if described is None:
        return None
    try:
        return method_of(described)
    except (AttributeError, TypeError) as error:  # lists where mappings belong, and the like
        raise ModelError(f"model: {source.location} cannot be read: its quantization_config is malformed.") from error
    except ModelError as error:
        raise ModelError(
            f"model: {source.location} cannot be read: {error}. Use the original model, which qlora_bnb, qlora_fp8 and "
            "qlora_fp4 quantise while it loads."
        ) from error


def _described_apart(source: ModelSource) -> dict[str, Any] | None:
    if source.gguf_file:
        return None
    if source.is_local:
        file: str | None = str(Path(source.folder) / _MODELOPT_FILE)
    else:
        from transformers.utils import cached_file

        file = cached_file(source.folder, _MODELOPT_FILE, _raise_exceptions_for_missing_entries=False)
    quantisation = read_json(Path(file)).get("quantization") if file else None
    return {"quant_method": "modelopt", **quantisation} if isinstance(quantisation, dict) else None


def defer_quantised_(model: Any, source: ModelSource, method: Method) -> None:
    """Let each parameter of a meta model know where its values lie in a quantised checkpoint.

    The model also gets the generation settings that lie beside it, as transformers' own loader would give it.

    Raises:
        ModelError: a file is missing or broken, or the tensors are not those of the model.
    """
    from transformers import GenerationConfig

    local = source.downloaded()
    files = local.weight_files()
    if not files:
        raise ModelError(f"model: {source.location} holds no *.safetensors, the only files that are read quantised.")
    missing = sorted(defer_(model, QuantisedCheckpoint(SafetensorsReader(files), method)))
    if missing:
        raise ModelError(
            f"model: {source.location} is quantised ({method.name}) and holds nothing for {len(missing)} of the "
            f"model's parameters, for example {missing[0]}. Either a file is missing, or it names or cuts its layers "
            "in another way than the model, as mixtures of experts often do. Use the original model."
        )
    if (Path(local.folder) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(local.folder)


def check_can_train(spec: ModelSpec, method: Method, *, adapter: bool, storage: str | None) -> None:
    """Refuse what a quantised checkpoint cannot do.

    Args:
        spec: names the checkpoint.
        method: how it is quantised.
        adapter: whether an adapter trains, and not the weights.
        storage: a format to quantise to, by its name.

    Raises:
        ModelError: saying what to change.
    """
    if not adapter:
        raise ModelError(
            f"lora: {spec.source} is quantised ({method.name}), so only an adapter can train. Set lora: true."
        )
    if storage is not None:
        raise ModelError(
            f"{spec.source} is quantised already ({method.name}) and trains as it is, so it cannot be stored in "
            f"{storage}. Remove the qlora key (in a nested configuration, use surogate.precision.RecipePrecision), or "
            "name the original model."
        )
