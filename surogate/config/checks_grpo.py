"""Combinations that cannot run within train.yaml or orch.yaml. No torch.

Each check yields the keys involved, as the user knows them, and one sentence that says what to change. infer.yaml is in
checks_infer.py, and what the files contradict each other in in cross_check.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from surogate.config.checks import trainer_contradictions
from surogate.config.contradiction import Contradiction
from surogate.config.environments import why_unknown
from surogate.config.flat_grpo import GrpoConfig, OrchConfig
from surogate.config.keys import keys_of
from surogate.config.parts_grpo import EnvSpec, EvalSpec, FilterSpec, LossSpec, NoiseSpec
from surogate.config.user_file import is_file_target, why_missing


def train_contradictions(config: GrpoConfig, given: dict[str, Any]) -> Iterator[Contradiction]:
    """Yield every reason why train.yaml cannot run; see checks.contradictions."""
    yield from trainer_contradictions(config, given)
    yield from _adapter_only(config)
    yield from _loss(config.loss)
    yield from _noise(config.noise_scheduler)


def train_alone(config: GrpoConfig, given: dict[str, Any]) -> Iterator[Contradiction]:
    """Yield the same where no orch.yaml completes it."""
    yield from train_contradictions(config, given)
    if config.max_steps == -1:
        yield ("max_steps",), f"max_steps is missing. {_NO_END}"


_NO_END = "Set it: rollouts are made without end, so the run must know when to stop."


def _adapter_only(c: GrpoConfig) -> Iterator[Contradiction]:
    sentences = {
        "lora": "lora: false is refused: reinforcement learning trains an adapter on a frozen base. Remove the key.",
        "from_scratch": "from_scratch is refused: a reward can only improve a model that writes already. Train it with "
        "`surogate pt` first.",
        "freeze_modules": "freeze_modules is refused: under the adapter the whole base is frozen anyway. Remove it.",
        "master_dtype": "master_dtype is refused: an adapter trains in lora_dtype. Remove it.",
        "lora_dropout": "lora_dropout must be 0 in reinforcement learning: with dropout the trainer's probabilities "
        "are not those that the rollouts were sampled from. Remove it.",
    }
    for key, sentence in sentences.items():
        if getattr(c, key) != keys_of(GrpoConfig)[key].default:
            yield (key,), sentence


_OF_AIPO = (
    "ratio_type",
    "token_mask_low",
    "token_mask_high",
    "geo_mask_low",
    "geo_mask_high",
    "sequence_mask_low",
    "sequence_mask_high",
    "ratio_clip",
)
_OF_CLIPPED = ("clip_low", "clip_high")


def _loss(loss: LossSpec) -> Iterator[Contradiction]:
    foreign, instead = (_OF_CLIPPED, _OF_AIPO) if loss.type == "aipo" else (_OF_AIPO, _OF_CLIPPED)
    for key in foreign:
        if getattr(loss, key) != keys_of(LossSpec)[key].default:
            others = "the types other than aipo" if loss.type == "aipo" else "type aipo"
            yield (
                (f"loss.{key}", "loss.type"),
                f"loss.{key} belongs to {others}, and this run has loss.type: {loss.type}, which knows "
                f"{', '.join(instead)}. Remove one of the two.",
            )
    for mask in ("token_mask", "geo_mask", "sequence_mask"):
        low, high = getattr(loss, f"{mask}_low"), getattr(loss, f"{mask}_high")
        if low >= high:
            yield (
                (f"loss.{mask}_low", f"loss.{mask}_high"),
                f"loss.{mask}_low {low} is not below loss.{mask}_high {high}, so nothing would train.",
            )
        elif not low < 1 < high:
            yield (
                (f"loss.{mask}_low", f"loss.{mask}_high"),
                f"loss.{mask}_low {low} and loss.{mask}_high {high} leave out the ratio 1, that of a policy that has "
                "not moved. Choose them on both sides of 1.",
            )
    if loss.clip_low is not None and loss.clip_low > 1:
        yield ("loss.clip_low",), f"loss.clip_low {loss.clip_low} is more than 1, and no ratio is below 0."


def _noise(noise: NoiseSpec) -> Iterator[Contradiction]:
    if not noise.enabled:
        for key in ("sigma_start", "sigma_end", "num_stages"):
            if getattr(noise, key) != keys_of(NoiseSpec)[key].default:
                yield (f"noise_scheduler.{key}",), f"noise_scheduler.{key} needs noise_scheduler.enabled: true."
        return
    if noise.sigma_end > noise.sigma_start:
        yield (
            ("noise_scheduler.sigma_end", "noise_scheduler.sigma_start"),
            f"noise_scheduler.sigma_end {noise.sigma_end} is more than sigma_start {noise.sigma_start}, and the noise "
            "decays. Swap them.",
        )
    if noise.num_stages < 2:
        yield ("noise_scheduler.num_stages",), "noise_scheduler.num_stages must be 2 or more: the first has no noise."


def orch_contradictions(config: OrchConfig, given: dict[str, Any]) -> Iterator[Contradiction]:
    """Yield every reason why orch.yaml cannot run; see checks.contradictions."""
    yield from _environments("env", config.env)
    if not config.env:
        yield ("env",), "env is empty. List at least one environment."
    yield from _groups(config)
    yield from _sampling(config, given)
    yield from _buffer(config)
    yield from _advantage(config)
    yield from _filters(config.filters, given)
    yield from _evaluation(config.eval, given)
    for index, url in enumerate(config.client.base_url):
        if not url.startswith(("http://", "https://")):
            yield ("client.base_url",), f"client.base_url[{index}] must start with http:// or https://, got {url!r}."
    for key in ("timeout", "api_key_var"):
        if f"client.{key}" in given and not config.client.base_url:
            yield (f"client.{key}",), f"client.{key} needs client.base_url, the server to ask."


def orch_alone(config: OrchConfig, given: dict[str, Any]) -> Iterator[Contradiction]:
    """Yield the same where no train.yaml completes it."""
    yield from orch_contradictions(config, given)
    sentences = {
        "model.name": (config.model.name, "Name the model that train.yaml names."),
        "seq_len": (config.seq_len, "Set it, at most to train.yaml's sequence_len."),
        "max_steps": (config.max_steps, _NO_END),
        "output_dir": (config.output_dir, "Set it to train.yaml's, the folder that the parts share."),
    }
    for key, (value, what_to_do) in sentences.items():
        if value is None:
            yield (key,), f"{key} is missing. {what_to_do}"


def _environments(key: str, specs: list[EnvSpec]) -> Iterator[Contradiction]:
    seen: dict[str, int] = {}
    for index, spec in enumerate(specs):
        place = f"{key}[{index}]"
        problem = why_unknown(spec.id) if spec.id else "is empty. Give the id of an environment."
        if problem:
            yield (f"{place}.id", place), f"{place}.id{f' {spec.id!r}' if spec.id else ''} {problem}"
        name = spec.name or spec.id
        if name in seen:
            yield (
                (f"{place}.name", f"{place}.id", place),
                f"{place} is called {name}, as {key}[{seen[name]}] is. Give each its own name, by which metrics tell "
                "them apart.",
            )
        seen.setdefault(name, index)


def _groups(c: OrchConfig) -> Iterator[Contradiction]:
    if c.rollouts_per_example == 1:
        yield (
            ("rollouts_per_example",),
            "rollouts_per_example must be 2 or more: an advantage compares the rollouts of a prompt with each other, "
            "and of a single one it is always 0.",
        )
    elif c.batch_size % c.rollouts_per_example:
        below = c.batch_size // c.rollouts_per_example * c.rollouts_per_example
        nearest = " or ".join(str(size) for size in (below, below + c.rollouts_per_example) if size)
        yield (
            ("batch_size", "rollouts_per_example"),
            f"batch_size {c.batch_size} is not a multiple of rollouts_per_example {c.rollouts_per_example}, and a step "
            f"has whole groups. Use {nearest}.",
        )
    level = c.max_async_level
    if isinstance(level, int) and level > c.max_off_policy_steps:
        yield (
            ("max_off_policy_steps", "max_async_level"),
            f"max_off_policy_steps {c.max_off_policy_steps} is less than max_async_level {level}: generation would run "
            "ahead only for its rollouts to be thrown away. Raise the former or lower the latter.",
        )


_UNTRUNCATED: dict[str, tuple[tuple[Any, ...], str]] = {
    "top_p": ((1.0,), "leaves out unlikely tokens"),
    "top_k": ((-1, 0), "leaves out unlikely tokens"),
    "repetition_penalty": ((1.0,), "changes probabilities by what was said before"),
    "min_tokens": ((0,), "forbids the end of text for a while"),
}
"""The values of sampling keys that leave the policy as it is, and what others do."""


_SET_BY_RENDERING = {
    *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs"),
}
"""Arguments of the function that applies a chat template, which are no options of the template."""


def _sampling(c: OrchConfig, given: dict[str, Any]) -> Iterator[Contradiction]:
    s = c.sampling
    for key, (allowed, effect) in _UNTRUNCATED.items():
        if getattr(s, key) not in allowed:
            yield (
                (f"sampling.{key}",),
                f"sampling.{key} {effect}, so rollouts would come from another distribution than the one that trains, "
                f"and importance ratios would be wrong. Use {allowed[0]}, or remove the key.",
            )
    for name in s.chat_template_kwargs:
        if name in _SET_BY_RENDERING:
            yield (
                ("sampling.chat_template_kwargs",),
                f"sampling.chat_template_kwargs has {name}, which the run sets itself. It is for options that the "
                "model's template has of its own, such as {enable_thinking: false}. Remove it.",
            )
    if s.temp_scheduler is not None:
        if "sampling.temperature" in given:
            yield (
                ("sampling.temp_scheduler", "sampling.temperature"),
                "sampling.temperature and sampling.temp_scheduler are both set. Keep one of them.",
            )
        yield from ((("sampling.temp_scheduler",), text) for text in _temperatures(s.temp_scheduler))


def _temperatures(schedule: dict[str, Any]) -> Iterator[str]:
    name = "sampling.temp_scheduler"
    unknown = sorted(schedule.keys() - {"type", "start", "end", "steps"})
    missing = [key for key in ("start", "end", "steps") if key not in schedule]
    if unknown:
        yield f"{name}.{unknown[0]} is not a key. Known are type, start, end and steps."
    if missing:
        yield f"{name} lacks {' and '.join(missing)}. Write {{type: linear, start: 1.0, end: 0.7, steps: 100}}."
    if schedule.get("type", "linear") not in ("linear", "cosine"):
        yield f"{name}.type must be linear or cosine, got {schedule['type']!r}."
    for key in ("start", "end"):
        value = schedule.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            yield f"{name}.{key} must be a number above 0, got {value!r}."
    steps = schedule.get("steps", 1)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        yield f"{name}.steps must be a whole number above 0, got {steps!r}."


def _buffer(c: OrchConfig) -> Iterator[Contradiction]:
    b = c.buffer
    if b.easy_threshold is not None and b.hard_threshold is not None and b.hard_threshold >= b.easy_threshold:
        yield (
            ("buffer.hard_threshold", "buffer.easy_threshold"),
            f"buffer.hard_threshold {b.hard_threshold} is not below buffer.easy_threshold {b.easy_threshold}, so every "
            "prompt would leave the pool. Mean rewards between the two stay.",
        )
    for level in ("easy", "hard"):
        if getattr(b, f"{level}_fraction") and getattr(b, f"{level}_threshold") is None:
            yield (f"buffer.{level}_fraction",), f"buffer.{level}_fraction needs buffer.{level}_threshold."


def _advantage(c: OrchConfig) -> Iterator[Contradiction]:
    a = c.advantage
    if a.type == "custom":
        if not a.import_path:
            yield ("advantage.type",), "advantage.type: custom needs advantage.import_path, the function to call."
        elif not a.import_path.partition(":")[2].isidentifier():
            yield (
                ("advantage.import_path",),
                f"advantage.import_path must be package.module:function or file.py:function, got {a.import_path!r}.",
            )
        elif problem := _why_not_there(a.import_path):
            yield ("advantage.import_path",), f"advantage.import_path {a.import_path!r}: {problem}"
        if a.length_weighted_mean:
            yield (
                ("advantage.length_weighted_mean",),
                "advantage.length_weighted_mean has no meaning with advantage.type: custom, whose function decides.",
            )
        return
    for key, value in {"import_path": a.import_path, "kwargs": a.kwargs}.items():
        if value:
            yield (f"advantage.{key}",), f"advantage.{key} needs advantage.type: custom; this run has {a.type}."


def _why_not_there(target: str) -> str | None:
    """Return what keeps a function from being found, as far as that is known without importing anything."""
    if is_file_target(target):
        return why_missing(target)
    package = target.partition(":")[0].partition(".")[0]
    if package and find_spec(package) is None:
        return f"there is no package {package}; install it, or give a file.py:function."
    return None


_OF_FILTER = {"repetition": ("window", "min_repeats"), "gibberish": ("logprob_threshold", "span")}


def _filters(specs: list[FilterSpec], given: dict[str, Any]) -> Iterator[Contradiction]:
    first: dict[str, int] = {}
    for index, spec in enumerate(specs):
        yield from _filter(f"filters[{index}]", spec, given)
        if spec.type in first:
            yield (
                (f"filters[{index}].type", f"filters[{index}]"),
                f"filters[{index}] repeats the type of filters[{first[spec.type]}]. Keep one of them.",
            )
        first.setdefault(spec.type, index)


def _filter(place: str, spec: FilterSpec, given: dict[str, Any]) -> Iterator[Contradiction]:
    for type_, keys in _OF_FILTER.items():
        for key in keys:
            if type_ != spec.type and f"{place}.{key}" in given:
                yield (
                    (f"{place}.{key}", f"{place}.type"),
                    f"{place}.{key} belongs to type: {type_}, but this entry has type: {spec.type}. Remove one of the "
                    "two.",
                )
    if spec.logprob_threshold >= 0:
        yield (
            (f"{place}.logprob_threshold",),
            f"{place}.logprob_threshold must be below 0, as log-probabilities are, got {spec.logprob_threshold}.",
        )
    if spec.type == "repetition" and spec.min_repeats < 2:
        yield (f"{place}.min_repeats",), f"{place}.min_repeats must be 2 or more: once is no repetition."


def _evaluation(spec: EvalSpec, given: dict[str, Any]) -> Iterator[Contradiction]:
    yield from _environments("eval.env", spec.env)
    for index in range(len(spec.env)):
        if f"eval.env[{index}].weight" in given:
            yield (
                (f"eval.env[{index}].weight",),
                f"eval.env[{index}].weight has no meaning: each environment is evaluated on eval.num_examples prompts. "
                "Remove it.",
            )
    if spec.env and spec.temperature == 0 and spec.rollouts_per_example > 1:
        yield (
            ("eval.rollouts_per_example", "eval.temperature"),
            f"eval.rollouts_per_example {spec.rollouts_per_example} needs eval.temperature above 0: at 0 all "
            "completions of a prompt are the same one. Set a temperature, or remove the key.",
        )
    for key in keys_of(EvalSpec):
        if key != "env" and f"eval.{key}" in given and not spec.env:
            yield (f"eval.{key}",), f"eval.{key} needs eval.env, the environments to evaluate on."
