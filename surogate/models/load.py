"""Building a causal language model from a ModelSpec: at once, or deferred on the meta device.

The one idea: a deferred model is only ever an optimisation. Where a checkpoint's tensors do not map one to one to the
model's parameters (fused experts, renamed layers), `load_model` falls back to transformers' own loader. Not so where
the checkpoint is quantised (prequantised.py), which only our reader keeps as it is.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from surogate.config.parts import ModelSpec
from surogate.errors import ModelError
from surogate.models.dtypes import weights_dtype
from surogate.models.prequantised import defer_quantised_, take_method_
from surogate.models.source import ModelSource
from surogate.models.weights import GgufTensorReader, SafetensorsReader, TensorReader, defer_, materialize_
from surogate.quant.checkpoints.reading import Method

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


def load_config(spec: ModelSpec) -> Any:
    """Read the model's configuration, with the spec's overrides applied.

    Raises:
        ModelError: there is no such model, or transformers does not know it.
    """
    from transformers import AutoConfig

    source = ModelSource.of(spec.source)
    kwargs = source.pretrained_kwargs(spec.trust_remote_code)
    try:
        if spec.model_type is not None:
            config = AutoConfig.for_model(spec.model_type).from_pretrained(source.folder, **kwargs)
        else:
            config = AutoConfig.from_pretrained(source.folder, **kwargs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # the last two: a malformed config.json
        raise ModelError(f"model: {spec.source} cannot be read: {_first_line(error)}") from error
    if spec.rope_scaling is not None:
        config.rope_parameters = _rope_parameters(config, spec)
    if spec.max_model_len is not None:
        config.max_position_embeddings = max(spec.max_model_len, config.max_position_embeddings)
    config.use_cache = False
    return config


def load_model(
    spec: ModelSpec, device: torch.device = CPU, *, defer: bool = False, attn: str | None = None
) -> nn.Module:
    """Build the model that a spec names, in evaluation mode.

    A model that is stored quantised is dequantised, unless it is deferred.

    Args:
        spec: what to load and how.
        device: where it will run; decides the dtype, the weights themselves stay on the CPU.
        defer: build on the meta device and leave the reading to `weights.materialize_`, where the checkpoint allows.
        attn: transformers' name of the attention implementation; None = the fastest that the model has.

    Raises:
        ModelError: the source is missing, broken, or not a causal language model.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(spec)
    dtype = weights_dtype(spec.dtype, getattr(config, "dtype", None), device)
    if spec.from_scratch:
        config.__dict__.pop("quantization_config", None)  # of the weights that are not taken
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attn)
    source = ModelSource.of(spec.source)
    method = take_method_(config, source)
    if method or defer or source.gguf_file:  # reading a GGUF file tensor by tensor is the quicker and quieter way, too
        model = _load_deferred(source, config, dtype, attn, method)
        if model is not None:
            if not defer:
                materialize_(model, CPU)
            return model
    return _load_at_once(source, config, dtype, attn, spec.trust_remote_code)


def quantisation_of(spec: ModelSpec) -> Method | None:
    """Find how the checkpoint that a spec names is quantised; None where it is not.

    Raises:
        ModelError: there is no such model, or it is quantised in a way that cannot be read.
    """
    return None if spec.from_scratch else take_method_(load_config(spec), ModelSource.of(spec.source))


def _load_at_once(source: ModelSource, config: Any, dtype: torch.dtype, attn: str | None, trust: bool) -> nn.Module:
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging as transformers_logging

    kwargs = source.pretrained_kwargs(trust)
    if source.gguf_file:
        # transformers 5 keeps a GGUF model packed, and a packed model cannot train.
        kwargs["quantization_config"] = GgufConfig(dequantize=True)
    transformers_logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            source.folder, config=config, dtype=dtype, attn_implementation=attn, **kwargs
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model: {source.location} cannot be loaded: {_first_line(error)}") from error


def _load_deferred(
    source: ModelSource, config: Any, dtype: torch.dtype, attn: str | None, method: Method | None
) -> nn.Module | None:
    """Return a model on the meta device, or None where the checkpoint does not map one to one and need not."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    files = source.weight_files()
    if not files and method is None:
        return None
    with init_empty_weights(include_buffers=False):  # rotary tables are computed, not stored: they stay real
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attn)
    model.tie_weights()
    if method is not None:
        defer_quantised_(model, source, method)
        return model.eval()
    reader: TensorReader = GgufTensorReader(files[0], model) if source.gguf_file else SafetensorsReader(files)
    missing = defer_(model, reader)
    if missing:
        logger.info("Loading %s at once: its file has no tensor for %s.", source.location, sorted(missing)[0])
        return None
    return model.eval()


def _rope_parameters(config: Any, spec: ModelSpec) -> dict[str, Any]:
    current = dict(getattr(config, "rope_parameters", None) or {})
    if isinstance(spec.rope_scaling, dict):
        asked = dict(spec.rope_scaling)
        if "type" in asked:  # how configurations before transformers 5 spell it
            asked["rope_type"] = asked.pop("type")
        return {**current, **asked}
    if spec.max_model_len is None:
        raise ModelError(f"rope_scaling: {spec.rope_scaling} needs max_model_len, the length to scale to.")
    original = config.max_position_embeddings
    factor = max(1.0, spec.max_model_len / original)
    scaled = {"rope_type": spec.rope_scaling, "factor": factor, "original_max_position_embeddings": original}
    return {**current, **scaled}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
