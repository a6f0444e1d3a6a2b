"""What every metric is called, its unit, what it means, and when to worry.

What is not here: how a number is computed. The one idea: this table is the only place that describes metrics. The
guide (docs/guides/metrics.md) and the W&B workspace are made from it, and a test looks up in it what real runs write.

Names have a group in front (`train/loss`) and end in their unit where they have one: `_seconds`, `_gib`, `_percent`,
`_per_second`. `len` counts tokens; losses, entropies and KL are in nats. What varies stands in angle brackets.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of a run, or a family of them.

    Attributes:
        name: as it stands in metrics.jsonl, with `<...>` for what varies.
        unit: `nats`, `tokens`, `seconds`, `GiB`, `share` (0 to 1) ...; empty where it has none.
        meaning: what it is.
        worry: when to look closer; empty where no value is bad by itself.
    """

    name: str
    unit: str
    meaning: str
    worry: str = ""


@dataclass(frozen=True, slots=True)
class MetricGroup:
    """Metrics that one section describes.

    Attributes:
        key: names the group where a page asks for it.
        title: of the section.
        metrics: in the order in which they are read.
    """

    key: str
    title: str
    metrics: tuple[Metric, ...]


TRAIN = MetricGroup(
    "train",
    "Training",
    (
        Metric(
            "train/loss",
            "nats",
            "mean over supervised tokens; of a GRPO run the policy loss",
            "it rises for many steps, or is null (not finite): the learning rate is too high, or a row is broken. In "
            "GRPO never by itself: it does not fall as rewards rise",
        ),
        Metric("train/perplexity", "", "exp of the loss", "as the loss"),
        Metric(
            "train/accuracy",
            "share",
            "supervised tokens predicted right",
            "near 1 while `val/loss` rises: the data is learnt by heart",
        ),
        Metric(
            "train/grad_norm",
            "",
            "length of the gradient before clipping, mean over steps",
            "spikes to many times its usual size, or 0",
        ),
        Metric("train/learning_rate", "", "of the last step"),
    ),
)

VALIDATION = MetricGroup(
    "val",
    "Validation",
    (
        Metric(
            "val/loss",
            "nats",
            "mean over the supervised tokens of all validation sets",
            "it rises while `train/loss` falls: stop, or train on more data",
        ),
        Metric("val/<dataset>/loss", "nats", "of one validation set", "one rises, another falls: change the mix"),
        Metric("val/<dataset>/perplexity", "", "exp of that loss"),
        Metric("val/<dataset>/accuracy", "share", "supervised tokens predicted right"),
    ),
)

SPEED = MetricGroup(
    "speed",
    "Speed",
    (
        Metric(
            "speed/tokens_per_second",
            "tokens/s",
            "trained on by all ranks together, padding left out; validation and saving do not count as time",
            "it falls during the run: something else uses the machine, or rows grow longer",
        ),
        Metric(
            "speed/supervised_tokens_per_second",
            "tokens/s",
            "of these, the ones that count in the loss",
            "a small part of the above: most work reads prompts",
        ),
        Metric(
            "speed/step_seconds",
            "seconds",
            "an optimizer step takes, mean of the log line; in GRPO from the end of a step to the end of the next",
            "in GRPO far above its parts together: checkpoints, or records on a slow disk",
        ),
    ),
)

DATA = MetricGroup(
    "data",
    "Data",
    (
        Metric(
            "data/packing_efficiency",
            "share",
            "of a packed row that is not padding",
            "below 0.9, in GRPO below 0.7: set `sample_packing`, or a `sequence_len` that fits the rows",
        ),
        Metric("data/<dataset>/share", "share", "of the rows drawn so far", "far from its `weight`"),
        Metric(
            "data/<dataset>/epochs",
            "passes",
            "over the data set so far; in GRPO over an environment's prompts",
            "above 4 or so in fine-tuning: it is learnt by heart",
        ),
        Metric(
            "data/<env>/easy",
            "prompts",
            "GRPO: prompts that have left the pool as always solved",
            "nearly all of them: the task is done",
        ),
        Metric("data/<env>/hard", "prompts", "GRPO: prompts that have left it as never solved", "nearly all of them"),
    ),
)

MEMORY = MetricGroup(
    "memory",
    "Memory",
    (
        Metric(
            "memory/peak_gib",
            "GiB",
            "most held so far by torch on the first GPU of rank 0; without one, by the process",
            "near what the device has: the next long row may not fit",
        ),
    ),
)

GPU = MetricGroup(
    "gpu",
    "GPUs",
    (
        Metric(
            "gpu/utilisation_percent",
            "%",
            "of the time in which a GPU computed anything, mean of rank 0's machine (`log_gpu_util`)",
            "below 80: data, logging or another rank keeps it waiting",
        ),
        Metric(
            "gpu/lowest_utilisation_percent", "%", "of its least busy GPU", "far below the mean: it waits for others"
        ),
        Metric("gpu/memory_used_gib", "GiB", "taken by all processes, largest of its GPUs", "near what the device has"),
        Metric("gpu/temperature_celsius", "°C", "of its hottest GPU", "above 85: it will slow down"),
        Metric("gpu/power_watts", "W", "mean of its GPUs"),
    ),
)

HEALTH = MetricGroup(
    "health",
    "Health",
    (
        Metric(
            "health/skipped_steps",
            "steps",
            "of a log line whose loss or gradient was not finite; they changed no weight, and means leave them out",
            "above 0: the log names the rows, and `health/` in the run's folder keeps them",
        ),
    ),
)

PRECISION = MetricGroup(
    "precision",
    "Precision",
    (
        Metric(
            "precision/<layer>/output_snr_db",
            "dB",
            "signal-to-noise ratio of a layer's output against full precision (`precision_canary_steps`)",
            "the log names layers below their limit",
        ),
        Metric(
            "precision/<layer>/grad_cosine",
            "",
            "between the gradient that the layer passes on and the exact one",
            "below 0.95",
        ),
    ),
)
