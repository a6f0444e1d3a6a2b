"""The nested specs of reinforcement learning: frozen, typed, free of torch; the flat files of grpo lower into them.

Field names are the keys that a user writes in orch.yaml, infer.yaml and under `loss:` of train.yaml, and the docstring
under a field is its manual. The classes whose name ends in Keys are what a user may type of a spec, where that is less
or may be left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    NotEmptyStr,
    PositiveFloat,
    PositiveInt,
)

from surogate.config.bounded import AtLeastOne, PlainNumbers, PortNumber, PositiveFraction
from surogate.config.parts import DTypeName


@dataclass(frozen=True, kw_only=True)
class LossSpec(PlainNumbers):
    """The policy loss. The masks and ratio_clip belong to aipo; the clip fractions to the other types."""

    type: Literal["aipo", "grpo", "dr_grpo", "dapo", "gspo", "cispo"] = "aipo"
    """aipo weights each token by its masked importance ratio; the others are the losses of their papers."""
    ratio_type: Literal["token", "sequence"] = "token"
    """aipo: importance ratio of each token, or the geometric mean over its rollout."""
    adv_tau: PositiveFloat = 1.0
    """Factor of the advantages."""
    kl_tau: NonNegativeFloat = 0.0
    """Pull towards the policy that generated the rollouts."""
    token_mask_low: NonNegativeFloat = 0.125
    """aipo: tokens with a smaller importance ratio do not train."""
    token_mask_high: PositiveFloat = 8.0
    """aipo: tokens with a larger importance ratio do not train."""
    geo_mask_low: NonNegativeFloat = 0.1
    """aipo: rollouts whose geometric mean ratio is smaller do not train."""
    geo_mask_high: PositiveFloat = 10.0
    """aipo: rollouts whose geometric mean ratio is larger do not train."""
    sequence_mask_low: NonNegativeFloat = 0.0
    """aipo: rollouts whose smallest token ratio is below do not train."""
    sequence_mask_high: PositiveFloat = 100.0
    """aipo: rollouts whose largest token ratio is above do not train."""
    ratio_clip: PositiveFloat = 7.389
    """aipo: the ratio is cut off here."""
    clip_low: PositiveFloat | None = None
    """The other types: how far below 1 a ratio may go. Default: the paper's."""
    clip_high: PositiveFloat | None = None
    """The other types: how far above 1 a ratio may go. Default: the paper's."""


@dataclass(frozen=True, kw_only=True)
class NoiseSpec(PlainNumbers):
    """QeRL (arXiv:2510.11696): Gaussian noise on the generator's norm weights, which decays in stages."""

    enabled: bool = False
    """Add noise."""
    sigma_start: PositiveFloat = 5e-2
    """Standard deviation in the first stage that has noise."""
    sigma_end: PositiveFloat = 5e-4
    """Standard deviation in the last stage."""
    num_stages: PositiveInt = 10
    """Stages of equal length; the first has no noise."""


@dataclass(frozen=True, kw_only=True)
class SamplingSpec(PlainNumbers):
    """How completions are sampled."""

    max_tokens: PositiveInt = 512
    """Longest completion, in tokens."""
    temperature: PositiveFloat = 1.0
    """Divides the logits; the trainer does the same."""
    temp_scheduler: dict[str, Any] | None = None
    """`{type: linear or cosine, start: 1.0, end: 0.7, steps: 100}` instead of one temperature."""
    min_tokens: NonNegativeInt = 0
    """Only 0 while training: no end of text before this many tokens."""
    repetition_penalty: PositiveFloat = 1.0
    """Only 1 while training: anything else makes log-probabilities that the trainer cannot reproduce."""
    top_p: ClosedUnitInterval = 1.0
    """Only 1 while training."""
    top_k: int = -1
    """Only -1 (all tokens) while training."""
    seed: NonNegativeInt | None = None
    """Makes sampling repeatable. Default: the run's seed."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Options of the model's chat template, such as `{enable_thinking: false}`; in evaluation too."""


@dataclass(frozen=True, kw_only=True)
class EnvSpec(PlainNumbers):
    """An environment: prompts and rewards."""

    id: str = ""
    """reverse-text, arithmetic, math, code, guess-number, `reasoning-gym/<task>`,
    `verifiers:<taskset>`, or a function or class of a file, `file.py:name`."""
    name: str | None = None
    """Name in metrics. Default: the id."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment."""
    weight: PositiveFloat = 1.0
    """How often its prompts are drawn, relative to the other environments."""


@dataclass(frozen=True, kw_only=True)
class BufferSpec(PlainNumbers):
    """Which prompts are drawn again, and which groups are dropped."""

    online_difficulty_filtering: bool = False
    """Drop groups whose rewards are all the same, and draw other prompts in their place."""
    easy_threshold: float | None = None
    """Prompts whose mean reward reaches this leave the pool."""
    hard_threshold: float | None = None
    """Prompts whose mean reward stays at or below this leave the pool."""
    easy_fraction: ClosedUnitInterval = 0.0
    """Share of the easy prompts that come back into the pool when it is used up."""
    hard_fraction: ClosedUnitInterval = 0.0
    """Share of the hard prompts that come back into the pool when it is used up."""


@dataclass(frozen=True, kw_only=True)
class AdvantageSpec(PlainNumbers):
    """How rewards of a group become advantages."""

    type: Literal["default", "std", "leave_one_out", "custom"] = "default"
    """default: minus the group's mean; std: also divided by its standard deviation; leave_one_out: minus the mean of
    the others; custom: import_path."""
    import_path: str | None = None
    """custom: `package.module:function` or `file.py:function`, called as f(rewards_NG, lengths_NG, **kwargs)."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """custom: further arguments."""
    length_weighted_mean: bool = False
    """The group's mean weighs each reward by the length of its completion."""


@dataclass(frozen=True, kw_only=True)
class FilterSpec(PlainNumbers):
    """A check on completions."""

    type: Literal["repetition", "gibberish"] = "repetition"
    """repetition: the same few tokens over and over; gibberish: tokens that the model itself found most unlikely."""
    enforce: bool = False
    """Completions that it finds do not train; otherwise they are only counted."""
    window: PositiveInt = 32
    """repetition: tokens of the piece that repeats at most."""
    min_repeats: PositiveInt = 8
    """repetition: how often in a row."""
    logprob_threshold: float = -12.0
    """gibberish: mean log-probability, in nats, of the worst `span` tokens in a row."""
    span: PositiveInt = 16
    """gibberish: tokens in a row."""


@dataclass(frozen=True, kw_only=True)
class EvalSpec(PlainNumbers):
    """Evaluation on environments of its own, while training."""

    env: list[EnvSpec] = field(default_factory=list)
    """Environments to evaluate on; none = no evaluation."""
    interval: PositiveInt = 100
    """Optimizer steps between evaluations; there is always one at the end."""
    num_examples: PositiveInt = 64
    """Prompts of each environment."""
    rollouts_per_example: PositiveInt = 1
    """Completions of each prompt."""
    eval_base_model: bool = True
    """Evaluate before the first step too, as the reference."""
    temperature: NonNegativeFloat | None = None
    """0 takes the most likely tokens. Default: 0 for one completion of a prompt, sampling.temperature for several."""
    max_tokens: PositiveInt | None = None
    """Longest completion. Default: that of training."""


@dataclass(frozen=True, kw_only=True)
class EngineKeys(PlainNumbers):
    """The vLLM engine that generates."""

    model: NotEmptyStr | None = None
    """Hub id, local folder or `.gguf` file. Default: train.yaml's, and no other can be right."""
    host: NotEmptyStr = "127.0.0.1"
    """Address that a server listens on."""
    port: PortNumber = 8000
    """Port of a server."""
    dtype: DTypeName | Literal["auto"] = "auto"
    """Dtype of weights and compute; auto = the trainer's."""
    max_model_len: PositiveInt | None = None
    """Longest prompt and completion together, in tokens. Default: orch.yaml's seq_len."""
    max_num_seqs: PositiveInt = 64
    """Sequences that are generated at once."""
    kv_cache_dtype: NotEmptyStr = "auto"
    """Dtype of the KV cache, as vLLM names it."""
    kv_cache_gib: PositiveFloat | None = None
    """Memory of the KV cache, in GiB. Default: on a CPU what max_num_seqs x max_model_len needs, at most 2 GiB; on a
    GPU vLLM's own choice."""
    enforce_eager: bool = True
    """Do not capture CUDA graphs."""
    trust_remote_code: bool = False
    """Run code that comes with a hub repository; also where train.yaml says so."""
    tp: PositiveInt = 1
    """GPUs that share a model."""
    dp: PositiveInt = 1
    """Copies of the model."""
    enable_lora: bool = True
    """Serve adapters; false needs weight_sync: full."""
    max_lora_rank: PositiveInt | None = None
    """Largest rank to serve: 1, 8, 16, 32, 64, 128, 256, 320 or 512. Default: the smallest that holds lora_rank."""
    max_loras: PositiveInt = 2
    """Adapters in memory at once."""
    gpu_memory_utilization: PositiveFraction = 0.9
    """Share of the GPU's memory that vLLM may take."""
    enable_prefix_caching: bool = True
    """Compute the common start of prompts once."""
    seed: NonNegativeInt = 0
    """Of the engine."""
    own_process: bool = False
    """Run the engine in a process of its own, which the run starts and ends; also implied by --vllm-gpus."""
    vllm: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's engine, as it names them, such as `{block_size: 32}`."""


@dataclass(frozen=True, kw_only=True)
class InferenceSpec(EngineKeys):
    """The vLLM engine that generates, everything filled in."""

    model: str = ""
    """Hub id, local folder or `.gguf` file; the trainer's."""
    adapter_name: str = "policy"
    """How adapters are called in the engine; the version follows."""
    request_timeout: PositiveFloat = 1200.0
    """Seconds after which a request counts as lost."""
    api_key_var: str | None = None
    """Environment variable that holds the servers' API key."""


@dataclass(frozen=True, kw_only=True)
class RolloutKeys(PlainNumbers):
    """How many rollouts a step has, how they are made, and how rewards become advantages."""

    batch_size: PositiveInt = 128
    """Rollouts of an optimizer step."""
    rollouts_per_example: PositiveInt = 16
    """Rollouts of each prompt, whose rewards are compared; at least 2."""
    max_off_policy_steps: NonNegativeInt = 8
    """Rollouts of a policy that is more optimizer steps old than this are thrown away."""
    oversampling_factor: AtLeastOne = 1.0
    """Groups to start for each that a step needs, so that it does not wait for the slowest."""
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    """How completions are sampled."""
    buffer: BufferSpec = field(default_factory=BufferSpec)
    """Which prompts are drawn again, and which groups are dropped."""
    advantage: AdvantageSpec = field(default_factory=AdvantageSpec)
    """How rewards of a group become advantages."""
    filters: list[FilterSpec] = field(default_factory=list)
    """Checks on completions."""
    eval: EvalSpec = field(default_factory=EvalSpec)
    """Evaluation on environments of its own, while training."""


@dataclass(frozen=True, kw_only=True)
class OrchestratorSpec(RolloutKeys):
    """What makes the batch of each optimizer step."""

    seq_len: PositiveInt = 1024
    """Most tokens of a prompt and its completion together."""
    max_steps: PositiveInt = 1
    """Optimizer steps of the whole run."""
    max_async_level: NonNegativeInt | Literal["auto"] = "auto"
    """Optimizer steps that generation may run ahead of training; auto: 0 on one shared device that sleeps, else 1."""
    seed: NonNegativeInt = 1234
    """Of the order of prompts and of sampling."""


@dataclass(frozen=True, kw_only=True)
class RolloutBatchSpec(PlainNumbers):
    """How the rollouts of a step become micro-batches."""

    sequence_len: PositiveInt = 1024
    """Tokens in a packed row."""
    per_device_train_batch_size: PositiveInt = 2
    """Packed rows in a micro-batch."""
    min_micro_batches: PositiveInt = 1
    """Micro-batches that a step is cut into at least."""


@dataclass(frozen=True, kw_only=True)
class LinkSpec:
    """Where generation happens, and how weights get there."""

    feed: Literal["local", "folder"] = "local"
    """local: the orchestrator runs in the trainer's process; folder: elsewhere, and the two meet in output_dir."""
    weight_sync: Literal["auto", "adapter", "full"] = "auto"
    """What goes to the engine after a step: the adapter, or the merged weights. auto: the adapter on a GPU or over a
    quantised base, else the merged weights."""
    noise: NoiseSpec = field(default_factory=NoiseSpec)
    """On the engine's weights."""
    server_urls: list[str] = field(default_factory=list)
    """vLLM servers that run already; none = an engine of this run's own."""
    server_gpus: list[int] = field(default_factory=list)
    """GPUs of a server that this run starts and ends; none = the engine shares the trainer's."""
