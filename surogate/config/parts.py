"""The nested specs that modules and data modules take: frozen, typed, checked by jsonargparse, free of torch.

Each field is one decision; the flat keys of flat.py lower into them (lower.py). Specs are never Optional: what can be
switched off has `enabled`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

DTypeName = Literal["float32", "bfloat16", "float16"]
SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Short spellings of dtypes."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which weights, and how they are held in memory."""

    source: str = ""
    """Hub id, local folder, `.gguf` file, or `pkg://package/file`."""
    model_type: str | None = None
    """Architecture family, where the source does not say it."""
    from_scratch: bool = False
    """Random initialisation from the source's configuration."""
    dtype: DTypeName | None = None
    """Storage and compute dtype of the weights; the source's own when not set."""
    max_model_len: int | None = None
    """Positions the model must be able to address."""
    rope_scaling: str | dict[str, Any] | None = None
    """`linear`, `dynamic`, `yarn`, or the full dictionary of transformers."""
    attn_implementation: Literal["auto", "varlen", "flex", "sdpa", "eager"] = "auto"
    """Attention kernel; auto takes the fastest that isolates documents on this device."""
    recompute: bool = True
    """Recompute activations in the backward pass instead of keeping them."""
    freeze_modules: list[str] = field(default_factory=list)
    """Modules that stay as they are while the rest of the weights train; only where there is no adapter."""
    trust_remote_code: bool = False
    """Run code that comes with a hub repository."""


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """The adapter that trains on top of a frozen base; `enabled: false` trains the base itself."""

    enabled: bool = True
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    target_modules: list[str] = field(default_factory=lambda: ["all"])
    """Names of linear layers, or `all` = every linear layer but the LM head."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    modules_to_save: list[str] = field(default_factory=list)
    adapter_path: str | None = None
    """An adapter to start on top of."""
    adapter_init_mode: Literal["merge", "trainable"] = "merge"
    """merge folds adapter_path into the base first; trainable goes on training it."""


@dataclass(frozen=True, kw_only=True)
class OptimSpec:
    """Optimizer, schedule and clipping."""

    name: Literal["adamw", "adamw_8bit", "normuon"] = "adamw_8bit"
    learning_rate: float = 2e-4
    schedule: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    warmup_ratio: float = 0.0
    """Share of all steps, used when warmup_steps is 0."""
    warmup_steps: int = 0
    cooldown_steps: int = 0
    """Length of the final decay of wsd."""
    final_lr_fraction: float = 0.0
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    """0 disables clipping."""
    master_dtype: DTypeName | None = None
    """Dtype of the copy of the weights that the optimizer updates; None = the weights themselves."""
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    normuon_momentum: float = 0.95
    normuon_beta2: float = 0.95
    normuon_cautious_wd: bool = True
    shard_state: bool = True
    """Under DDP, without an adapter: each rank keeps the optimizer's state of a part of the weights only."""


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """How rows become optimizer steps."""

    sequence_len: int = 1024
    """Tokens in a packed row."""
    per_device_train_batch_size: int = 2
    """Packed rows in a micro-batch."""
    gradient_accumulation_steps: int = 4
    """Micro-batches in an optimizer step."""
    sample_packing: bool = True
    padding_side: Literal["right", "left"] = "right"
    """Only where packing is off."""
    num_workers: int | None = None
    """DataLoader workers; None = 0 on a CPU machine, else 2."""
    train_seed: int = 1234
    eval_seed: int = 1234


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One source of rows. Every field name is also the key a user writes under `datasets:`."""

    path: str = ""
    """Hub id, file, folder, `pkg://package/file`, or a URL such as `s3://bucket/file`."""
    type: Literal["text", "instruction", "conversation", "preference", "auto"] = "auto"
    """What a row is; auto detects it from the columns and says so."""
    name: str | None = None
    """Name in metrics. Default: the file's stem."""
    subset: str | None = None
    """Configuration of a hub data set that has several, or a subfolder of a local folder."""
    split: str = "train"
    """Split of a hub data set; of a local folder, the files named after it, where any are named after splits."""
    samples: int | None = None
    """Use only the first N rows."""
    weight: float | None = None
    """How often rows are drawn, relative to the other sources. Set nowhere: every row of all sources once an epoch."""
    loss_scale: Literal["default", "all", "last_round"] | None = None
    """Which tokens of this data set are supervised, where that is not the run's loss_scale."""
    text_field: str = "text"
    """text: column of the document."""
    instruction_field: str = "instruction"
    """instruction: column of the task."""
    input_field: str = "input"
    """instruction: column of further input; it may be absent."""
    output_field: str = "output"
    """instruction: column of the answer."""
    system_prompt_type: Literal["field", "fixed"] | None = None
    """instruction: where the system prompt comes from."""
    system_prompt_field: str | None = None
    """instruction: column of the system prompt, with system_prompt_type: field."""
    system_prompt: str | None = None
    """instruction: the system prompt, with system_prompt_type: fixed."""
    prompt_format: str | None = None
    """instruction: the user's turn, with {instruction} and {input}."""
    prompt_format_no_input: str | None = None
    """instruction: the same for rows without input."""
    messages_field: str = "messages"
    """conversation: column of the turns."""
    system_field: str | None = None
    """conversation: column of the system prompt."""
    tools_field: str | None = None
    """conversation: column of the tools' descriptions."""
    message_property_mappings: dict[str, str] = field(default_factory=dict)
    """conversation: our name to theirs, for example `{role: from, content: value}`."""
    completion_field: str | None = None
    """conversation: column of the final answer, where it stands apart from the turns."""
    prompt_field: str | None = None
    """preference: column of the prompt."""
    chosen_field: str | None = None
    """preference: column of the better answer."""
    rejected_field: str | None = None
    """preference: column of the worse answer."""


@dataclass(frozen=True, kw_only=True)
class ChatSpec:
    """How conversations become tokens and which of them are supervised."""

    use_chat_template: bool = True
    template: str | None = None
    """Jinja text or the path of a .jinja file; default the tokenizer's own."""
    system: str | None = None
    """System prompt put in front of conversations that have none."""
    response_prefix: str | None = None
    """Unsupervised text that starts each supervised turn."""
    loss_scale: Literal["default", "all", "last_round"] = "default"
    """default: assistant turns; all: every token; last_round: the last assistant turn."""
    max_length: int | None = None
    """Longest sample; default sequence_len."""
    truncation_strategy: Literal["delete", "left", "right", "split"] | None = None
    """What happens to a longer one; default delete, split for text."""
    max_bad_row_fraction: float = 0.01
    """Above this share of rows that supervise nothing the run refuses to start."""
