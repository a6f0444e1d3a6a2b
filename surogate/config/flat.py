"""The flat keys of `surogate sft` and `surogate pt`: what a user types in YAML or overrides as `--key value`.

Those of reinforcement learning are in flat_grpo.py, which takes most groups from here.

Each group of keys is a dataclass; the docstring under a key is its manual, and `surogate sft --help` and
docs/reference/config.md are generated from it (keys.py reads it). What is not here: keys that are rejected by name
(keys.py), combinations that cannot run (checks.py), and what a key does to Lightning (lower.py).

The one idea: a key stands here if and only if it is honoured today.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    NotEmptyStr,
    OpenUnitInterval,
    PositiveFloat,
    PositiveInt,
)

from surogate.config.bounded import PartFraction, StepLimit
from surogate.config.parts import DatasetSpec, DTypeName
from surogate.config.slurm import DistributedSpec, SlurmSpec


@dataclass(frozen=True, kw_only=True)
class RunKeys:
    """What the run is called, where it writes, how long it goes on."""

    run_name: str | None = None
    """Name of the run, also in Weights & Biases. Default: the verb and the model's name."""
    output_dir: NotEmptyStr = "output"
    """Folder for everything the run writes."""
    checkpoint_dir: NotEmptyStr | None = None
    """Folder that holds `checkpoints/`. Default: output_dir."""
    resume_from_checkpoint: bool | str = True
    """Continue from the newest valid checkpoint (true), from the one at this path, or start afresh (false): the
    old run's files are then moved aside, none is removed."""
    save_steps: NonNegativeInt = 50
    """Optimizer steps between checkpoints; 0 saves only at the end."""
    save_total_limit: PositiveInt = 5
    """Checkpoints to keep; older ones are removed, never the newest valid one."""
    max_steps: StepLimit = -1
    """Optimizer steps of the whole run; -1 takes num_epochs."""
    logging_steps: PositiveInt = 1
    """Optimizer steps between log lines."""
    train_seed: NonNegativeInt = 1234
    """Seed of initialisation, dropout and shuffling."""
    hub_token: str | None = field(default=None, repr=False)
    """Token for private hub repositories. Default: HF_TOKEN of the environment. Never logged, never saved."""


@dataclass(frozen=True, kw_only=True)
class DataRunKeys(RunKeys):
    """What the run is called, where it writes, how long it goes on."""

    num_epochs: PositiveInt = 3
    """Passes over the data. max_steps wins over it."""
    epoch_adjustment: bool = False
    """Set num_epochs to what makes 20 tokens for each of the model's parameters, a compute-optimal budget for a model
    trained from the start."""
    early_stop: bool = False
    """Stop when 5 validations in a row bring no lower loss, when the training loss stays above its best for 200 steps,
    or when its mean over 500 steps is no lower than over the 500 before."""
    eval_steps: PositiveInt = 100
    """Optimizer steps between validations; there is always one at the end."""
    eval_seed: NonNegativeInt = 1234
    """Seed of the validation split."""
    sample_prompts: NonNegativeInt = 0
    """Held-out prompts that are answered before the first step and at each validation, into samples.jsonl and W&B; 0
    asks none. Each takes as long as writing one answer."""
    sample_max_tokens: PositiveInt = 64
    """Tokens in the longest such answer."""


@dataclass(frozen=True, kw_only=True)
class ModelKeys:
    """Which weights, in which dtype, over how many positions."""

    model: NotEmptyStr
    """Hub id, local folder, `.gguf` file, or `pkg://package/file` (a file inside an installed Python package)."""
    model_type: str | None = None
    """Architecture family, where the model's own configuration does not say it."""
    tokenizer: str | None = None
    """Folder, hub id or `.gguf` file of the tokenizer. Default: the model's own."""
    from_scratch: bool = False
    """Start from random weights; the model then needs no more than a config.json. Needs lora: false."""
    sequence_len: PositiveInt = 1024
    """Tokens in a packed row."""
    max_model_len: PositiveInt | None = None
    """Positions that the model must be able to address. Default: the model's own."""
    rope_scaling: Literal["linear", "dynamic", "yarn"] | dict[str, Any] | None = None
    """How rotary positions stretch to max_model_len, or the full dictionary as transformers takes it."""
    model_dtype: DTypeName | None = None
    """Dtype of weights and compute. Default: the model's own; float32 on a CPU without native bfloat16."""
    attn_implementation: Literal["auto", "varlen", "flex", "sdpa", "eager"] = "auto"
    """Attention kernel; auto takes the fastest that isolates documents on this machine."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a hub repository."""


@dataclass(frozen=True, kw_only=True)
class AdapterKeys:
    """What trains: a LoRA adapter on top of a frozen base, or the weights themselves."""

    lora: bool = True
    """Train an adapter on the frozen base; false trains the model's own weights."""
    freeze_modules: list[str] = field(default_factory=list)
    """Modules that stay as they are with lora: false, such as `[embeddings, lm_head, layers.0]`."""
    lora_rank: PositiveInt = 16
    """Rank of the two matrices of each adapted layer."""
    lora_alpha: PositiveFloat = 32.0
    """Scale of the adapter: its output is multiplied by lora_alpha / lora_rank."""
    lora_dropout: PartFraction = 0.05
    """Dropout in front of the adapter."""
    lora_target_modules: list[str] = field(default_factory=lambda: ["all"])
    """Linear layers to adapt: names, ends of names (`layers.0.self_attn.q_proj`) or regular expressions.
    `[all]` = every one but lm_head."""
    lora_dtype: Literal["fp32", "bf16"] = "fp32"
    """Dtype of the adapter's own weights."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_rank) instead, for high ranks."""
    use_dora: bool = False
    """Learn the magnitude of each weight column apart (DoRA). vLLM cannot serve it."""
    init_lora_weights: bool | str = True
    """true, false, or as PEFT names it: gaussian, pissa, pissa_niter_16 (any number), olora, orthogonal, mica."""
    modules_to_save: list[str] = field(default_factory=list)
    """Modules that train whole beside the adapter, such as `[embed_tokens, lm_head]`. vLLM cannot serve them."""
    adapter_path: str | None = None
    """Folder or hub id of an adapter to start on top of."""
    adapter_init_mode: Literal["merge", "trainable"] = "merge"
    """merge folds adapter_path into the base and trains a new adapter; trainable goes on training it."""
    merge_adapter: bool = False
    """Write the base with the adapter merged into it as `model/` when the run ends."""


@dataclass(frozen=True, kw_only=True)
class QuantKeys:
    """How the frozen base is stored under an adapter. A base that is quantised already needs none of these keys."""

    qlora_bnb: bool = False
    """Store the frozen base in NF4, bitsandbytes' 4-bit format: 4.13 bits a weight with the defaults below."""
    qlora_bnb_block_size: Literal[64, 128, 256, 512] = 64
    """qlora_bnb: weights that share a scale."""
    qlora_bnb_double_quant: bool = True
    """qlora_bnb: store the scales in 8 bits too."""
    qlora_fp8: bool = False
    """Store the frozen base in FP8 (E4M3) with a scale for each square tile: 8 bits a weight."""
    qlora_block_size: Literal[64, 128, 256] = 128
    """qlora_fp8: rows and columns of a tile."""
    qlora_fp4: bool = False
    """Store the frozen base in NVFP4 (E2M1, a scale for each 16 weights): 4.5 bits a weight, on any GPU and the CPU."""
    qlora_four_over_six: bool = True
    """qlora_fp4: let each block of 16 end at 4 or at 6, whichever errs less."""
    skip_quant_first_layers: NonNegativeInt = 0
    """Decoder layers at the front whose weights are not quantised."""
    skip_quant_last_layers: NonNegativeInt = 0
    """Decoder layers at the end whose weights are not quantised."""


@dataclass(frozen=True, kw_only=True)
class RecipeKeys:
    """In which numbers the matrix products of decoder layers are computed. LM head and adapters keep their dtype."""

    recipe: NotEmptyStr = "bf16"
    """bf16, fp8_hybrid (GPUs from SM89), nvfp4 (GPUs from SM100), or the path of a YAML file like those in recipes/."""
    recipe_emulate: bool = False
    """Where the chip has no tensor core for the recipe, compute the same numbers by dequantising, slower than bf16.
    Otherwise such a run is refused."""
    matmul_dtype: Literal["float32", "bfloat16"] | None = None
    """recipe bf16: dtype that the operands of forward products are cast to. Default: that of the weights."""
    gradient_dtype: Literal["float32", "bfloat16"] | None = None
    """recipe bf16: the same for the products of the backward pass."""
    fp8_amax_history: PositiveInt | None = None
    """fp8_hybrid: steps whose largest magnitudes decide a tensor's scale. Default: the recipe's, 16."""
    fp8_amax_compute_algo: Literal["max", "most_recent"] | None = None
    """fp8_hybrid: take the largest of them, or the last step's. Default: the recipe's, max."""
    fp8_margin: NonNegativeInt | None = None
    """fp8_hybrid: powers of two of headroom above the largest magnitude. Default: the recipe's, 0."""
    fp4_backend: Literal["auto", "scaled_mm", "emulate"] = "auto"
    """nvfp4: scaled_mm is torch's product on the tensor core (not yet run on such a chip), emulate dequantises on any
    device; auto takes the tensor core, and emulates only with recipe_emulate."""
    no_fp4_stochastic_rounding: bool = False
    """nvfp4: round gradients to the nearest number instead of at random, which biases their mean."""
    precision_canary_steps: NonNegativeInt = 0
    """Optimizer steps between two comparisons of a few layers, as they are stored and computed, with high precision.
    They are logged as `precision/...`, and a layer that loses too much is named in a warning; 0 = never."""


@dataclass(frozen=True, kw_only=True)
class OptimisationKeys:
    """Optimizer, schedule, batch size and memory."""

    learning_rate: PositiveFloat = 2e-4
    """Highest learning rate of the schedule."""
    optimizer: Literal["adamw_8bit", "adamw", "normuon"] = "adamw_8bit"
    """adamw_8bit keeps its state in 8 bits, on a CPU too; where bitsandbytes cannot be used it becomes adamw, and says
    so. normuon orthogonalises the updates of the matrices inside the network and leaves embeddings, head, biases and
    norms to adamw."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    """Shape of the learning rate after warm-up; wsd stays constant, then decays over cooldown_steps."""
    warmup_ratio: ClosedUnitInterval = 0.0
    """Warm-up as a share of all steps. warmup_steps wins over it."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises from 0."""
    cooldown_steps: NonNegativeInt = 0
    """Steps of the final decay of wsd; 0 = a tenth of all steps."""
    final_lr_fraction: ClosedUnitInterval = 0.0
    """Last learning rate as a fraction of the highest."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay; never on biases and norms."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this norm; 0 disables clipping."""
    adamw_beta1: OpenUnitInterval = 0.9
    """Decay of AdamW's mean of gradients."""
    adamw_beta2: OpenUnitInterval = 0.999
    """Decay of AdamW's mean of squared gradients."""
    adamw_epsilon: PositiveFloat = 1e-8
    """Added to AdamW's denominator."""
    normuon_momentum: OpenUnitInterval = 0.95
    """Decay of normuon's mean of gradients."""
    normuon_beta2: OpenUnitInterval = 0.95
    """Decay of normuon's mean square of each row of an update."""
    normuon_cautious_wd: bool = True
    """Under normuon a matrix's weight decays only where the update moves it towards zero, too."""
    max_skipped_steps: NonNegativeInt = 5
    """A step whose loss or gradient is not finite changes no weight: it is skipped, and its rows are named and kept in
    output_dir/health. More than this many in a row, or ten times as many in all, end the run."""
    auto_lr_reduction: bool = False
    """Halve the rest of the learning-rate schedule when 3 steps within 100 are skipped or have a spike of loss or
    gradient, or when the loss stays above its best for 50 steps; 5 times at most."""
    master_dtype: DTypeName | None = None
    """Dtype of the copy of the weights that the optimizer updates: float32 under a bfloat16 model, with lora: false."""
    per_device_train_batch_size: PositiveInt = 2
    """Packed rows in a micro-batch."""
    gradient_accumulation_steps: PositiveInt = 4
    """Micro-batches in an optimizer step."""
    recompute: bool = True
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    lmhead_chunks: PositiveInt | Literal["auto"] = "auto"
    """Pieces of the LM head and loss; all logits never exist at once."""


@dataclass(frozen=True, kw_only=True)
class DataKeys:
    """What is trained on, and how conversations become tokens."""

    datasets: list[DatasetSpec]
    """Sources of training rows; see the keys of a dataset."""
    validation_datasets: list[DatasetSpec] = field(default_factory=list)
    """Sources of validation rows, reported one by one."""
    validation_split_ratio: PartFraction = 0.1
    """Share of the training rows held out when there are no validation_datasets; 0 = no validation."""
    sample_packing: bool = True
    """Lay several samples into one row. They stay isolated in attention and positions."""
    dataloader_num_workers: NonNegativeInt | Literal["auto"] = "auto"
    """Processes that prepare batches."""
    max_bad_row_fraction: ClosedUnitInterval = 0.01
    """The run refuses to start when a larger share of rows supervises no token."""
    truncation_strategy: Literal["delete", "left", "right", "split"] | None = None
    """What happens to a sample longer than max_length: drop it, cut its left or right, or split it (text only).
    Default: split for text, delete for the rest."""
    max_length: PositiveInt | None = None
    """Tokens in the longest sample. Default: sequence_len."""
    use_chat_template: bool = True
    """Render conversations with a chat template."""
    template: str | None = None
    """Jinja template, as text or the path of a `.jinja` file. Default: the tokenizer's own."""
    system: str | None = None
    """System prompt for conversations that have none."""
    response_prefix: str | None = None
    """Text that starts each supervised turn and is not itself supervised."""
    loss_scale: Literal["default", "all", "last_round"] = "default"
    """Which tokens of a conversation are supervised: assistant turns, all, or the last assistant turn. Of text: all."""


@dataclass(frozen=True, kw_only=True)
class MachineKeys:
    """Devices and reporting."""

    gpus: NonNegativeInt = 1
    """GPUs of this machine, 0 = all. Without a GPU: processes on the CPU. Under srun or torchrun those decide."""
    zero_level: Literal[1, 2, 3] = 1
    """What the ranks share out among them when all weights train: 1 = the optimizer's state, 2 = gradients and weights
    too, which are gathered for each step (FSDP2), 3 = and gathered again for the backward pass: least memory."""
    log_file: NotEmptyStr | None = None
    """File to which everything that is logged is appended too, with the time."""
    debug_time_breakdown: bool = False
    """Say after 12 steps where the time of a step goes: data, forward and backward pass, update."""
    debug_memory_breakdown: bool = False
    """Say after the second step what memory is used for: weights, gradients, optimizer state, activations."""
    log_gpu_util: NonNegativeInt | None = 100
    """Optimizer steps between two records of the GPUs' utilisation, memory, temperature and power (`gpu/...`); 0 =
    never. Needs the package nvidia-ml-py."""
    stall_seconds: PositiveFloat = 600.0
    """When a rank has done one thing for longer (fetched a batch, computed a micro-batch, saved), the run says what
    each rank is doing and which one the others wait for."""
    stall_abort_seconds: NonNegativeFloat = 0.0
    """After this time the rank ends itself, so that the run can be started again; 0 = never."""
    report_to: list[Literal["wandb", "tensorboard"]] = field(default_factory=list)
    """Where metrics go besides metrics.csv and metrics.jsonl, which are always written."""
    wandb_project: str | None = None
    """Weights & Biases project. Default: surogate."""
    wandb_name: str | None = None
    """Name of the run in Weights & Biases. Default: run_name."""
    wandb_group: str | None = None
    """Group of the run in Weights & Biases."""
    wandb_tags: list[str] = field(default_factory=list)
    """Tags of the run in Weights & Biases."""
    wandb_mode: Literal["online", "offline", "disabled"] = "online"
    """offline works without an account; `wandb sync` uploads later. online gives way to WANDB_MODE."""


@dataclass(frozen=True, kw_only=True)
class ClusterKeys:
    """Several machines. `slurm` is for `surogate submit`; the run itself changes nothing for it."""

    distributed: DistributedSpec = field(default_factory=DistributedSpec)
    """How many machines the run is spread over."""
    slurm: SlurmSpec = field(default_factory=SlurmSpec)
    """What `surogate submit` asks SLURM for."""


GROUPS = {
    "Run": DataRunKeys,
    "Model": ModelKeys,
    "Adapters": AdapterKeys,
    "Quantised base": QuantKeys,
    "Recipe": RecipeKeys,
    "Optimisation": OptimisationKeys,
    "Data": DataKeys,
    "Machine and reporting": MachineKeys,
    "Cluster": ClusterKeys,
}
"""The groups in the order of the manual."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(ClusterKeys, MachineKeys, OptimisationKeys, RecipeKeys, QuantKeys, AdapterKeys, ModelKeys, RunKeys):
    """Every flat key that all training verbs have."""

    verb: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataKeys, DataRunKeys, TrainerConfig):
    """Every flat key of a verb that trains on rows."""


@dataclass(frozen=True, kw_only=True)
class SftConfig(TrainConfig):
    """`surogate sft`: an adapter, on the answers of instructions and conversations."""

    verb: ClassVar[str] = "sft"


@dataclass(frozen=True, kw_only=True)
class PtConfig(TrainConfig):
    """`surogate pt`: all weights, on every token of plain text."""

    verb: ClassVar[str] = "pt"
    lora: bool = False
    """Train an adapter on the frozen base; false trains the model's own weights."""
    loss_scale: Literal["default", "all", "last_round"] = "all"
    """Which tokens of a conversation are supervised: assistant turns, all, or the last assistant turn. Of text: all."""


SCHEMAS: dict[str, type] = {"sft": SftConfig, "pt": PtConfig}
"""The flat schema of each training verb."""
