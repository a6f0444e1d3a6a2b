"""The charts of a run, by section: what a report draws and what the W&B workspace shows.

What is not here: drawing (drawing.py). The one idea: a chart is a list of metrics by name, and a test looks each of
them up among the metrics that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Chart:
    """A picture of some metrics.

    Attributes:
        title: of the picture.
        names: of its metrics, where `*` stands for anything.
        unit: of all of them.
        may_be_log: small and large values matter alike.
        floor: value that the axis begins at, None where the values decide.
        hides_zero: nothing to see where all values are 0.
        label: what a metric is called in the legend; default its name without the group.
    """

    title: str
    names: tuple[str, ...]
    unit: str = ""
    may_be_log: bool = False
    floor: float | None = None
    hides_zero: bool = False
    label: Callable[[str], str] = field(default=lambda name: name.partition("/")[2].replace("_", " ").replace("/", " "))


def _dataset_label(name: str) -> str:
    return name.rpartition("/")[0].replace("val/", "validation ").replace("train", "training")


def _held_out_label(name: str) -> str:
    return "training" if name == "rl/reward/mean" else f"{name.split('/')[2]} (held out)"


def _part_label(name: str) -> str:
    return name.removeprefix("speed/").removesuffix("_seconds").replace("_", " ")


def _tokens_label(name: str) -> str:
    return {"speed/tokens_per_second": "all", "speed/supervised_tokens_per_second": "supervised"}.get(
        name, name.removeprefix("speed/").removesuffix("_tokens_per_second")
    )


def _memory_label(name: str) -> str:
    return {"memory/peak_gib": "most so far", "gpu/memory_used_gib": "of all processes"}.get(name, name)


Sections = Mapping[str, tuple[Chart, ...]]

_OPTIMISATION = (
    Chart("Gradient norm", ("train/grad_norm",), "before clipping", may_be_log=True),
    Chart("Learning rate", ("train/learning_rate",), floor=0.0),
)
_MACHINE = (
    Chart("Step time", ("speed/step_seconds",), "seconds", floor=0.0),
    Chart("Memory", ("memory/peak_gib", "gpu/memory_used_gib"), "GiB", floor=0.0, label=_memory_label),
    Chart("GPU utilisation", ("gpu/utilisation_percent", "gpu/lowest_utilisation_percent"), "%", floor=0.0),
)
_PARTS_OF_A_STEP = ("generate", "score", "wait_for_rollouts", "train", "sync", "evaluate")
_HEALTH = (Chart("Skipped steps", ("health/skipped_steps",), "in a log line", floor=0.0, hides_zero=True),)
_PRECISION = (
    Chart("Signal to noise of layers", ("precision/*/output_snr_db",), "dB", label=lambda name: name.split("/")[1]),
)

OF_ROWS: Sections = {
    "Quality": (
        Chart("Loss", ("train/loss", "val/*/loss"), "nats per supervised token", may_be_log=True, label=_dataset_label),
        Chart("Perplexity", ("val/*/perplexity",), may_be_log=True, label=_dataset_label),
        Chart("Accuracy", ("train/accuracy", "val/*/accuracy"), "share of supervised tokens", label=_dataset_label),
    ),
    "Optimisation": _OPTIMISATION,
    "Speed and memory": (
        Chart(
            "Throughput",
            ("speed/tokens_per_second", "speed/supervised_tokens_per_second"),
            "tokens/s",
            floor=0.0,
            label=_tokens_label,
        ),
        *_MACHINE,
    ),
    "Data": (Chart("Packing", ("data/packing_efficiency",), "share of tokens that are not padding"),),
    "Health": (*_HEALTH, *_PRECISION),
}
"""Of a run on rows."""

OF_GRPO: Sections = {
    "Rewards": (
        Chart("Reward", ("rl/reward/mean", "rl/eval/*/reward"), label=_held_out_label),
        Chart("Reward by environment", ("rl/reward/*/mean",), label=lambda name: name.split("/")[2]),
        Chart("Groups without signal", ("rl/groups/without_signal",), "share", floor=0.0),
    ),
    "Policy": (
        Chart("Entropy", ("rl/entropy",), "nats", floor=0.0),
        Chart("KL of generator and trainer", ("rl/generator_kl", "rl/parity/kl"), "nats", may_be_log=True),
        Chart("Importance ratio", ("rl/importance_ratio/p99", "rl/importance_ratio/mean", "rl/importance_ratio/p01")),
        Chart(
            "Tokens left out or clipped",
            ("rl/masked_fraction/any", "rl/clipped_fraction/low", "rl/clipped_fraction/high"),
            "share",
            floor=0.0,
        ),
        Chart("Staleness", ("rl/staleness/mean", "rl/staleness/max"), "versions", floor=0.0),
    ),
    "Completions": (
        Chart("Completion length", ("rl/completion/mean_len", "rl/completion/max_len"), "tokens", floor=0.0),
        Chart("Truncated and filtered", ("rl/completion/truncated", "rl/completion/filtered"), "share", floor=0.0),
    ),
    "Optimisation": (Chart("Policy loss", ("train/loss",)), *_OPTIMISATION),
    "Speed and memory": (
        Chart(
            "Where the time goes",
            tuple(f"speed/{part}_seconds" for part in _PARTS_OF_A_STEP),
            "seconds",
            floor=0.0,
            label=_part_label,
        ),
        Chart(
            "Throughput",
            ("speed/generated_tokens_per_second", "speed/trained_tokens_per_second"),
            "tokens/s",
            floor=0.0,
            label=_tokens_label,
        ),
        *_MACHINE,
    ),
    "Health": (*_HEALTH, *_PRECISION),
}
"""Of a run on rewards."""


def charts(sections: Sections) -> list[Chart]:
    """Return the charts of all sections, in order."""
    return [chart for of_section in sections.values() for chart in of_section]
