"""Loading what a run left behind, and writing text with it.

What is not here: tokenizers and chat templates (data/), which the command line passes in. The one idea: a run, an
adapter and a model are told apart by the files they hold, and a run answers with the chat settings it was trained with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from surogate.config.parts import ChatSpec, ModelSpec
from surogate.config.yaml_file import read_yaml
from surogate.errors import ModelError
from surogate.locations import resolve
from surogate.models.stacks import ADAPTER_FILE, stack_of
from surogate.run_folder import RunFolder

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers.generation.streamers import BaseStreamer

    from surogate.models.stored_base import StoredBase

_PT_HEADER = "# What `surogate pt` was asked for"
_MODEL_KEYS = ("model_type", "max_model_len", "rope_scaling", "trust_remote_code")
_CHAT_KEYS = ("use_chat_template", "template", "system", "response_prefix")


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """What a location turned out to hold.

    Attributes:
        base: location of the base model.
        adapters: folders of adapters, in the order in which they go on top.
        tokenizer: location of the tokenizer that belongs to them.
        chat: chat settings of the run.
        model_keys: the fields of ModelSpec besides the source that change what the model computes, as the run had them.
    """

    base: str
    adapters: tuple[Path, ...] = ()
    tokenizer: str
    chat: ChatSpec = field(default_factory=ChatSpec)
    model_keys: dict[str, Any] = field(default_factory=dict)

    @property
    def trust_remote_code(self) -> bool:
        """Run code that comes with the hub repository, because the run did."""
        return bool(self.model_keys.get("trust_remote_code"))


def find_model(location: str, adapter: str | None = None, base: str | None = None) -> FoundModel:
    """Find the parts of a model without loading any.

    Args:
        location: a run's folder, an adapter's folder, or a model (folder, `.gguf`, `pkg://package/file`, hub id).
        adapter: folder of an adapter to use instead of the location's own, or of a run, whose chat settings then count.
        base: base model to use instead of the one that the location records.

    Raises:
        ModelError: there is nothing there, or a run that has not written its result yet.
    """
    path = Path(resolve(location, error=ModelError))
    keys = _run_keys(path)
    other = None if adapter is None else Path(resolve(adapter, error=ModelError))
    chat_keys = keys if other is None else _run_keys(other) or keys
    if keys and not keys["lora"]:  # all weights were trained, so what the run asked for stands in its config.json
        path = RunFolder(path).model_dir
        if not (path / "config.json").exists():
            raise ModelError(f"{path} does not exist: a run writes it when it ends. Give its command again.")
        location, keys = str(path), {key: keys[key] for key in ("trust_remote_code",) if key in keys}
    has_own = bool(keys.get("lora")) or (path / ADAPTER_FILE).exists()
    adapters = _adapters(other or path) if other or has_own else ()
    base = base or keys.get("model") or (_recorded_base(path) if has_own else location)
    has_tokenizer = adapters and (adapters[-1] / "tokenizer_config.json").exists()
    return FoundModel(
        base=base,
        adapters=adapters,
        tokenizer=str(adapters[-1]) if has_tokenizer else keys.get("tokenizer") or base,
        chat=ChatSpec(**{key: chat_keys[key] for key in _CHAT_KEYS if chat_keys.get(key) is not None}),
        model_keys={key: keys[key] for key in _MODEL_KEYS if keys.get(key) is not None},
    )


def _adapters(folder: Path) -> tuple[Path, ...]:
    """Return the adapters that the folder of an adapter or a run stands for, in the order in which they go on top."""
    is_run = bool(_run_keys(folder))
    top = RunFolder(folder).adapter_dir if is_run else folder
    if not (top / ADAPTER_FILE).exists():
        hint = "a run writes it when it ends: give its command again" if is_run else "--adapter"
        raise ModelError(f"{top} holds no {ADAPTER_FILE}, so it is not an adapter folder ({hint})")
    return stack_of(top)


def _run_keys(folder: Path) -> dict[str, Any]:
    """Return what a run was asked for, with `lora` as it was resolved; {} where the folder is no run."""
    file = RunFolder(folder).surogate_yaml
    if not file.exists():
        nested = RunFolder(folder).config_yaml
        return _flat_keys(read_yaml(nested).values) if nested.exists() else {}
    keys = read_yaml(file).values
    is_pt = file.read_text(encoding="utf-8").startswith(_PT_HEADER)
    return {**keys, "lora": keys.get("lora", not is_pt)}


def _flat_keys(nested: dict[str, Any]) -> dict[str, Any]:
    """Return the same of a run of `surogate fit`; {} where it trained a class of one's own."""
    module, data = ((nested.get(part) or {}).get("init_args") or {} for part in ("model", "data"))
    model, adapter, chat = module.get("model"), module.get("lora"), data.get("chat") or {}
    if not isinstance(model, dict) or not isinstance(adapter, dict):
        return {}
    keys = {"model": model.get("source"), "tokenizer": data.get("tokenizer"), "lora": adapter.get("enabled", True)}
    return {**keys, **{key: model.get(key) for key in _MODEL_KEYS}, **{key: chat.get(key) for key in _CHAT_KEYS}}


def load_for_inference(
    found: FoundModel, device: torch.device | None = None, stored: StoredBase | None = None
) -> nn.Module:
    """Load a model with its adapters, in evaluation mode: float32 on the CPU, the model's own dtype on a GPU.

    An adapter that was trained on weights in few bits gets weights of the same values, though not in few bits.

    Args:
        found: what to load.
        device: where; default a GPU if there is one.
        stored: how the weights under adapters that come later were stored, where `found` has none.

    Raises:
        ModelError: the model or an adapter cannot be read, or they do not fit.
    """
    import torch

    from surogate.models import lora
    from surogate.models.adapter_start import take_apart
    from surogate.models.load import load_model
    from surogate.models.stored_base import recorded_base
    from surogate.quant.convert import round_
    from surogate.quant.layer_names import num_decoder_layers

    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = ModelSpec(source=found.base, dtype="float32" if device.type == "cpu" else None, **found.model_keys)
    model: Any = load_model(spec, device)
    *below, top = found.adapters or (None,)
    with TemporaryDirectory() as halves:
        if top is not None and (stored := recorded_base(top)) is not None and stored.lost_start:
            start, top = take_apart(top, Path(halves))
            below.append(start)
        for folder in below:
            model = lora.fold(lora.load_adapter(model, folder))
        if stored is not None and stored.storage is not None:
            round_(model, stored.storage, stored.skip, num_decoder_layers(model))
        if top is not None:
            model = lora.fold(lora.load_adapter(model, top))
    return model.to(device).eval()


def generate_ids(
    model: Any,
    prompt_ids: Sequence[int],
    end_token_ids: set[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    streamer: BaseStreamer | None = None,
) -> list[int]:
    """Continue a prompt.

    Args:
        model: as `load_for_inference` returns it.
        prompt_ids: at least one token.
        end_token_ids: tokens to stop at, besides the model's own.
        max_new_tokens: longest answer; it also ends where the model has no more positions.
        temperature: 0 takes the likeliest token; above, tokens are sampled from the whole distribution.
        streamer: told each token as it comes.

    Returns:
        The new tokens, the end token included where the model wrote one.

    Raises:
        ModelError: the prompt leaves no position for an answer.
    """
    import torch
    from transformers import GenerationConfig

    room = getattr(model.config, "max_position_embeddings", sys.maxsize) - len(prompt_ids)
    if room < 1:
        raise ModelError(
            f"the prompt has {len(prompt_ids)} tokens, which fills all positions of this model; shorten it"
        )
    own = model.generation_config.eos_token_id
    ends = end_token_ids.union(own if isinstance(own, list) else [] if own is None else [own])
    # Everything is set here: what is not would be filled in from the settings that the model ships.
    config = GenerationConfig(
        max_new_tokens=min(max_new_tokens, room),
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else None,
        top_k=0 if temperature > 0 else None,
        top_p=1.0 if temperature > 0 else None,
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends, default=0),
        use_cache=True,
    )
    input_ids = torch.tensor([list(prompt_ids)], device=model.device)
    with torch.no_grad():  # not inference_mode, whose tensors a sharded model cannot train on with
        output = model.generate(
            input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config, streamer=streamer
        )
    new_ids: list[int] = output[0, len(prompt_ids) :].tolist()
    return new_ids


def _recorded_base(adapter: Path) -> str:
    base = json.loads((adapter / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"{adapter / ADAPTER_FILE} names no base model; name it (surogate merge: --model BASE; "
            f"surogate chat and generate: BASE --adapter {adapter})"
        )
    return str(base)
