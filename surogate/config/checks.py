"""Combinations of keys that cannot run, and things outside the file that must exist. No torch.

What is not here: the files of `surogate grpo` (checks_grpo.py, cross_check.py), which share `trainer_contradictions`.

Each check yields the keys involved, as the user knows them, and one sentence that says what to change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surogate.config.checks_machine import machine_contradictions
from surogate.config.checks_reporting import reporting_contradictions, validation_contradictions
from surogate.config.contradiction import Contradiction
from surogate.config.flat import AdapterKeys, OptimisationKeys, QuantKeys, TrainConfig, TrainerConfig
from surogate.config.keys import keys_of
from surogate.config.not_yet import DATASET_FIELDS
from surogate.config.parts import DatasetSpec
from surogate.config.recipe import load_recipe
from surogate.errors import ConfigError
from surogate.locations import is_url, resolve, without_credentials


def contradictions(config: TrainConfig, given: dict[str, Any]) -> Iterator[Contradiction]:
    """Yield every reason why a configuration cannot run.

    Args:
        config: all values, defaults filled in.
        given: only what the user set, including keys that are not there yet.
    """
    yield from _sample_lengths(config)
    yield from trainer_contradictions(config, given)
    yield from _full_training(config, given)
    yield from validation_contradictions(config, given)
    yield from _epoch_adjustment(config)
    for key in ("datasets", "validation_datasets"):
        for index, spec in enumerate(getattr(config, key)):
            yield from ((((key, index), f"{key}[{index}]{sentence}")) for sentence in _dataset(spec))
            if config.truncation_strategy == "split" and spec.type in ("instruction", "conversation"):
                yield (
                    ("truncation_strategy", "datasets"),
                    f"truncation_strategy: split is for text, but {key}[{index}] has type: {spec.type}. "
                    "Use delete, left or right.",
                )
    if not config.datasets:
        yield ("datasets",), "datasets is empty. List at least one source of rows."
    yield from _sources(config)


def trainer_contradictions(config: TrainerConfig, given: dict[str, Any]) -> Iterator[Contradiction]:
    """Yield what cannot run of the keys that all training verbs have; see `contradictions`."""
    yield from _lengths(config)
    yield from _adapters(config)
    yield from _quantised(config)
    yield from _canary(config)
    yield from _recipe(config)
    yield from _schedule(config)
    yield from _normuon(config, given)
    yield from reporting_contradictions(config, given)
    yield from machine_contradictions(config, given)
    yield from _locations(config)


def _sample_lengths(c: TrainConfig) -> Iterator[Contradiction]:
    if c.max_length is not None and c.max_length > c.sequence_len:
        yield (
            ("max_length", "sequence_len"),
            f"max_length {c.max_length} is more than sequence_len {c.sequence_len}, and a sample must fit into a row. "
            "Lower max_length or raise sequence_len.",
        )


def _lengths(c: TrainerConfig) -> Iterator[Contradiction]:
    if c.max_model_len is not None and c.max_model_len < c.sequence_len:
        yield (
            ("max_model_len", "sequence_len"),
            f"max_model_len {c.max_model_len} is less than sequence_len {c.sequence_len}: the model could not address "
            "a whole row. Raise max_model_len or lower sequence_len.",
        )
    if isinstance(c.rope_scaling, str) and c.max_model_len is None:
        yield (
            ("rope_scaling", "max_model_len"),
            f"rope_scaling: {c.rope_scaling} needs max_model_len, the length to stretch to.",
        )


_QLORA = {
    "qlora_bnb": ("qlora_bnb_block_size", "qlora_bnb_double_quant"),
    "qlora_fp8": ("qlora_block_size",),
    "qlora_fp4": ("qlora_four_over_six",),
}
"""The storage formats, and the keys that only mean something with one of them."""


def _quantised(c: TrainerConfig) -> Iterator[Contradiction]:
    asked = [key for key in _QLORA if getattr(c, key)]
    if len(asked) > 1:
        yield tuple(asked), f"{' and '.join(asked)} exclude each other. Keep one of them."
    if asked and not c.lora:
        yield (asked[0], "lora"), f"{asked[0]} needs lora: true, because a quantised base cannot train."
    defaults = keys_of(QuantKeys)
    for format_key, keys in _QLORA.items():
        for key in keys:
            if format_key not in asked and getattr(c, key) != defaults[key].default:
                yield (key,), f"{key} needs {format_key}: true."
    for key in ("skip_quant_first_layers", "skip_quant_last_layers"):
        if getattr(c, key) and not asked:
            yield (key,), f"{key} needs one of {', '.join(_QLORA)}: without them nothing is quantised."
    method = stored_as(c.model)
    if method and asked:
        yield (
            (asked[0], "model"),
            f"{asked[0]}: {c.model} is quantised already ({method}), and trains as it is. Remove the key, or name the "
            "original model.",
        )
    if method and not c.lora:
        yield (
            ("lora", "model"),
            f"{c.model} is quantised ({method}), so only an adapter can train. Set lora: true.",
        )


def _canary(c: TrainerConfig) -> Iterator[Contradiction]:
    """What a hub repository holds, and which layers a recipe of the user's reaches, is found when they are loaded."""
    stores_few_bits = any(getattr(c, key) for key in _QLORA) or stored_as(c.model) or not _is_here(c.model)
    if c.precision_canary_steps and not stores_few_bits and c.recipe == "bf16" and not c.matmul_dtype:
        yield (
            ("precision_canary_steps",),
            f"precision_canary_steps needs something to watch: one of {', '.join(_QLORA)}, a base that "
            "is quantised, or another recipe than bf16.",
        )


def _is_here(model: str) -> bool:
    return model.startswith("pkg://") or Path(model).exists()


_OF_RECIPE: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("bf16", {"matmul_dtype": None, "gradient_dtype": None}),
    "float8": ("fp8_hybrid", {"fp8_amax_history": 16, "fp8_amax_compute_algo": "max", "fp8_margin": 0}),
    "nvfp4": ("nvfp4", {"fp4_backend": "auto", "no_fp4_stochastic_rounding": False}),
}
"""For each family of recipes its best-known one, the keys that need it, and the values that ask for nothing."""


def _recipe(c: TrainerConfig) -> Iterator[Contradiction]:
    try:
        recipe = load_recipe(c.recipe)
    except ConfigError as error:
        yield ("recipe",), str(error)
        return
    for family, (known, keys) in _OF_RECIPE.items():
        for key, nothing in keys.items():
            if family != recipe.family and getattr(c, key) not in (None, nothing):
                yield (key, "recipe"), f"{key} needs recipe: {known}; this run has recipe: {c.recipe}."
    if c.recipe_emulate and recipe.family == "plain":
        yield (
            ("recipe_emulate", "recipe"),
            f"recipe_emulate needs recipe: fp8_hybrid or nvfp4; {c.recipe} computes everywhere as it is.",
        )
    if c.recipe_emulate and c.fp4_backend == "scaled_mm":
        yield (
            ("fp4_backend", "recipe_emulate"),
            "fp4_backend: scaled_mm asks for the tensor core, and recipe_emulate for doing without. Keep one of them.",
        )


def quantised_by(c: TrainerConfig) -> str | None:
    """Return the key by which the base is stored in few bits, None where it is not."""
    asked = next((key for key in _QLORA if getattr(c, key)), None)
    return asked or ("model" if stored_as(c.model) else None)


def stored_as(model: str) -> str | None:
    """Return how a local model folder says it is quantised; a hub repository's is found when it is loaded."""
    try:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    quantisation = config.get("quantization_config") if isinstance(config, dict) else None
    return str(quantisation.get("quant_method", "unknown method")) if isinstance(quantisation, dict) else None


def _adapters(c: TrainerConfig) -> Iterator[Contradiction]:
    if c.adapter_init_mode == "trainable" and not c.adapter_path:
        yield (
            ("adapter_init_mode",),
            "adapter_init_mode: trainable needs adapter_path, the adapter to train on.",
        )
    both = sorted(set(c.lora_target_modules) & set(c.modules_to_save))
    if both:
        yield (
            ("modules_to_save", "lora_target_modules"),
            f"{both[0]} stands in lora_target_modules and in modules_to_save. A layer is adapted or trained whole.",
        )
    if isinstance(c.init_lora_weights, str) and not _INITIALISATIONS.fullmatch(c.init_lora_weights):
        yield (
            ("init_lora_weights",),
            "init_lora_weights must be true, false, gaussian, pissa, pissa_niter_<number>, olora, orthogonal or mica, "
            f"got {c.init_lora_weights!r}.",
        )
    if c.lora and not c.lora_target_modules:
        yield (("lora_target_modules",), "lora_target_modules is empty, so nothing would train. Use [all].")


_OF_FULL_TRAINING = ("freeze_modules", "master_dtype")


def _full_training(c: TrainConfig, given: dict[str, Any]) -> Iterator[Contradiction]:
    if c.from_scratch and c.lora:
        yield (
            ("from_scratch", "lora"),
            "from_scratch needs lora: false, because an adapter belongs on pretrained weights.",
        )
    if c.lora:
        sentences = {
            "freeze_modules": "freeze_modules needs lora: false; with an adapter the whole base is frozen anyway.",
            "master_dtype": "master_dtype needs lora: false; an adapter trains in lora_dtype.",
        }
        yield from (((key,), sentence) for key, sentence in sentences.items() if getattr(c, key))
        return
    for key in keys_of(AdapterKeys).values():
        if key.name in given and key.name not in ("lora", *_OF_FULL_TRAINING) and given[key.name] != key.default:
            yield (key.name, "lora"), f"{key.name} needs lora: true; with lora: false there is no adapter."
    widths = {"float32": 32, "bfloat16": 16, "float16": 16}
    if c.master_dtype and c.model_dtype and c.master_dtype != c.model_dtype and widths[c.master_dtype] < 32:
        yield (
            ("master_dtype", "model_dtype"),
            f"master_dtype {c.master_dtype} is no wider than model_dtype {c.model_dtype}. Use float32.",
        )
    if c.model_dtype == "float16" and c.master_dtype != "float32":
        yield (
            ("model_dtype", "master_dtype"),
            "model_dtype: float16 needs master_dtype: float32 where the weights themselves train, because the "
            "optimizer's steps vanish in float16.",
        )


_INITIALISATIONS = re.compile(r"gaussian|pissa(_niter_[1-9]\d*)?|olora|orthogonal|mica")


_NORMUON = ("normuon_momentum", "normuon_beta2", "normuon_cautious_wd")


def _normuon(c: TrainerConfig, given: dict[str, Any]) -> Iterator[Contradiction]:
    if c.optimizer != "normuon":
        for key in _NORMUON:
            if key in given and getattr(c, key) != getattr(OptimisationKeys, key):
                yield (key, "optimizer"), f"{key} needs optimizer: normuon."


def _schedule(c: TrainerConfig) -> Iterator[Contradiction]:
    if c.cooldown_steps and c.lr_scheduler_type != "wsd":
        yield (
            ("cooldown_steps", "lr_scheduler_type"),
            f"cooldown_steps needs lr_scheduler_type: wsd; {c.lr_scheduler_type} has no cooldown.",
        )
    if c.final_lr_fraction > 0 and c.lr_scheduler_type == "constant":
        yield (
            ("final_lr_fraction", "lr_scheduler_type"),
            "final_lr_fraction needs a schedule that decays: linear, cosine or wsd; constant never does.",
        )
    if 0 < c.max_steps < c.warmup_steps + c.cooldown_steps:
        yield (
            ("warmup_steps", "cooldown_steps", "max_steps"),
            f"warmup_steps {c.warmup_steps} and cooldown_steps {c.cooldown_steps} do not fit into max_steps "
            f"{c.max_steps}. Lower them or raise max_steps.",
        )


def _epoch_adjustment(c: TrainConfig) -> Iterator[Contradiction]:
    if c.epoch_adjustment and c.max_steps > 0:
        sentence = "epoch_adjustment sets num_epochs, and max_steps wins over it. Keep one of the two."
        yield ("epoch_adjustment", "max_steps"), sentence
    if c.epoch_adjustment and c.lora:
        yield (
            ("epoch_adjustment", "lora"),
            "epoch_adjustment needs lora: false: its budget is of models whose own weights train. Set num_epochs.",
        )


def _dataset(spec: DatasetSpec) -> Iterator[str]:
    """Yield sentences that follow the entry's name."""
    if not spec.path:
        yield " has no path. Give a file, a folder, a hub id, pkg://package/file or a URL."
    if is_url(spec.path) and _SECRET_IN_URL.search(spec.path):
        yield (
            f".path holds credentials ({without_credentials(spec.path)}), and a run writes its configuration down. "
            "Set them in the environment, where the storage's library looks for them."
        )
    if spec.weight is not None and spec.weight <= 0:
        yield f".weight must be above 0, got {spec.weight}. Remove the entry to leave the source out."
    if spec.samples is not None and spec.samples <= 0:
        yield f".samples must be above 0, got {spec.samples}."
    for type_, fields in DATASET_FIELDS.items():
        used = [name for name in fields if getattr(spec, name) != getattr(_DEFAULT_DATASET, name)]
        detectable = type_ != "preference"
        if used and spec.type != type_ and not (spec.type == "auto" and detectable):
            yield f".{used[0]} belongs to type: {type_}, but this entry has type: {spec.type}. Remove one of the two."
    if spec.system_prompt_type == "fixed" and not spec.system_prompt:
        yield ".system_prompt_type: fixed needs system_prompt, the text itself."
    if spec.system_prompt_type == "field" and not spec.system_prompt_field:
        yield ".system_prompt_type: field needs system_prompt_field, the name of the column."


_DEFAULT_DATASET = DatasetSpec()
_SECRET_IN_URL = re.compile(r"://[^/?#]*@|[?&][^=&]*(sig|token|key|credential|passw|secret)[^=&]*=", re.IGNORECASE)


def _locations(c: TrainerConfig) -> Iterator[Contradiction]:
    for key in ("model", "tokenizer", "adapter_path"):
        yield from _location((key,), key, getattr(c, key))
    yield from _adapter_folder(c.adapter_path)
    if isinstance(c.resume_from_checkpoint, str) and not Path(c.resume_from_checkpoint).exists():
        yield (
            ("resume_from_checkpoint",),
            f"resume_from_checkpoint: there is no {c.resume_from_checkpoint!r}. Use true for the newest checkpoint.",
        )


def _sources(c: TrainConfig) -> Iterator[Contradiction]:
    for key in ("datasets", "validation_datasets"):
        for index, spec in enumerate(getattr(c, key)):
            yield from _location((key, index, "path"), f"{key}[{index}].path", spec.path)
    if c.template is not None and c.template.endswith((".jinja", ".j2")) and not Path(c.template).is_file():
        yield ("template",), f"template: there is no file {c.template!r}."


def _location(place: tuple[str | int, ...], shown: str, location: str | None) -> Iterator[Contradiction]:
    if location:
        try:
            resolve(location, ConfigError, urls=shown.endswith(".path"))
        except ConfigError as error:
            yield place, f"{shown}: {error}"


def _adapter_folder(location: str | None) -> Iterator[Contradiction]:
    folder = Path(location or "")
    if location and folder.is_dir() and not any((folder / p / _ADAPTER_FILE).exists() for p in ("", "adapter")):
        sentence = f"adapter_path: {location} holds no {_ADAPTER_FILE}. Name the folder of an adapter or of its run."
        yield ("adapter_path",), sentence


_ADAPTER_FILE = "adapter_config.json"
