"""What train.yaml, infer.yaml and orch.yaml contradict each other in. No torch.

Each check yields the keys involved, with their file in front (`orch.batch_size`), and one sentence that says what to
change. The problem is told at the first of them that the user typed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from surogate.config.checks import quantised_by
from surogate.config.flat_grpo import GrpoConfig, InferConfig, OrchConfig
from surogate.config.settle import VLLM_RANKS, served_rank, smallest_rank_for, why_no_adapter

Disagreement = tuple[tuple[str, ...], str]
"""The keys involved and the sentence."""


@dataclass(frozen=True)
class Files:
    """The three files as they were typed.

    Attributes:
        train, infer, orch: the typed values, nothing taken from another file.
        given: what the user set, by key with its file in front.
    """

    train: GrpoConfig
    infer: InferConfig
    orch: OrchConfig
    given: dict[str, Any]


def disagreements(files: Files) -> Iterator[Disagreement]:
    """Yield every reason why three files that can run by themselves cannot run together."""
    yield from _models(files)
    yield from _said_twice(files)
    if files.train.max_steps == -1 and files.orch.max_steps is None:
        yield (
            ("orch.max_steps", "train.max_steps"),
            "max_steps is missing. Set it here or in train.yaml: rollouts are made without end, so the run must know "
            "when to stop.",
        )
    yield from _lengths(files)
    yield from _ranks(files)
    yield from _weight_sync(files)
    yield from _ahead(files)


def _models(f: Files) -> Iterator[Disagreement]:
    for key, name in {"infer.model": f.infer.model, "orch.model.name": f.orch.model.name}.items():
        if name is not None and f.train.model and name != f.train.model:
            file, _, short = key.partition(".")
            yield (
                (key, "train.model"),
                f"{short} is {name} in {file}.yaml and {f.train.model} in train.yaml. All parts work on one model: "
                f"remove it here, or name the same one.",
            )


_SAME = {
    "max_steps": "max_steps",
    "output_dir": "output_dir",
    "max_async_level": "max_async_level",
    "seed": "train_seed",
    "ckpt.interval": "save_steps",
    "ckpt.keep_last": "save_total_limit",
    "report_to": "report_to",
    "model.tokenizer": "tokenizer",
}
"""Keys of orch.yaml and what they are called in train.yaml."""


def _said_twice(f: Files) -> Iterator[Disagreement]:
    for of_orch, of_train in _SAME.items():
        in_orch, in_train = f.given.get(f"orch.{of_orch}"), f.given.get(f"train.{of_train}")
        both_speak = all(value not in (None, -1, []) for value in (in_orch, in_train))
        if both_speak and in_orch != in_train:
            yield (
                (f"orch.{of_orch}", f"train.{of_train}"),
                f"{of_orch} is {_show(in_orch)} in orch.yaml, and {of_train} is {_show(in_train)} in train.yaml. They "
                "are the same thing: keep one of them.",
            )


def _show(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _lengths(f: Files) -> Iterator[Disagreement]:
    seq_len = f.orch.seq_len or f.train.sequence_len
    if seq_len > f.train.sequence_len:
        yield (
            ("orch.seq_len", "train.sequence_len"),
            f"seq_len {seq_len} in orch.yaml is more than sequence_len {f.train.sequence_len} in train.yaml, and a "
            "rollout must fit into a packed row. Lower seq_len or raise sequence_len.",
        )
    if f.infer.max_model_len is not None and f.infer.max_model_len < seq_len:
        yield (
            ("infer.max_model_len", "orch.seq_len"),
            f"max_model_len {f.infer.max_model_len} in infer.yaml is less than the {seq_len} tokens of a rollout "
            "(seq_len in orch.yaml), so the engine could not hold one. Raise it, or remove it.",
        )
    limits = {"sampling.max_tokens": f.orch.sampling.max_tokens, "eval.max_tokens": f.orch.eval.max_tokens or 0}
    for key, max_tokens in limits.items():
        if max_tokens >= seq_len:
            yield (
                (f"orch.{key}", "orch.seq_len", "train.sequence_len"),
                f"{key} {max_tokens} leaves no room for a prompt in a rollout of {seq_len} tokens. Lower it, or raise "
                "seq_len in orch.yaml and sequence_len in train.yaml.",
            )


def _ranks(f: Files) -> Iterator[Disagreement]:
    limit, rank = f.infer.max_lora_rank, served_rank(f.train)
    if f.train.weight_sync == "full" or limit is None or limit not in VLLM_RANKS or rank <= limit:
        return
    fitting = smallest_rank_for(f.train)
    shown = f"lora_rank {rank}" if rank == f.train.lora_rank else f"the adapter's rank {rank}"
    yield (
        ("infer.max_lora_rank", "train.lora_rank"),
        f"{shown} of train.yaml is more than max_lora_rank {limit} of infer.yaml. "
        + (f"Set max_lora_rank to {fitting}, or remove it." if fitting else "Lower lora_rank."),
    )


def _weight_sync(f: Files) -> Iterator[Disagreement]:
    quantised = quantised_by(f.train)
    obstacle = why_no_adapter(f.train, f.infer, f.orch)
    if f.train.weight_sync == "full" and quantised:
        yield (
            ("train.weight_sync", f"train.{quantised}"),
            "weight_sync: full is refused with a quantised base: merged weights have no place in few bits. Use "
            "weight_sync: adapter.",
        )
    if obstacle and f.train.weight_sync == "adapter":
        key, why = obstacle
        remedy = f"Remove {key.partition('.')[2]}." if quantised else "Use weight_sync: full."
        yield (key, "train.weight_sync"), f"weight_sync: adapter cannot work, because {why}. {remedy}"
    if obstacle and f.train.weight_sync == "auto" and quantised:
        key, why = obstacle
        yield (
            (key, f"train.{quantised}"),
            f"Neither the adapter nor merged weights could go to the generator: {why}, and nothing can be merged into "
            f"a base that {_names(quantised)} stores in few bits. Change {key.partition('.')[2]}, or train on a base "
            "in full precision.",
        )


def _names(quantised: str) -> str:
    return "the model" if quantised == "model" else quantised


def _ahead(f: Files) -> Iterator[Disagreement]:
    level, limit = f.train.max_async_level, f.orch.max_off_policy_steps
    if f.orch.max_async_level == "auto" and isinstance(level, int) and level > limit:
        yield (
            ("orch.max_off_policy_steps", "train.max_async_level"),
            f"max_off_policy_steps {limit} in orch.yaml is less than max_async_level {level} in train.yaml: generation "
            "would run ahead only for its rollouts to be thrown away. Raise the former or lower the latter.",
        )
