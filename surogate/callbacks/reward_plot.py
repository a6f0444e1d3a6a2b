"""RewardPlot: reward.png, drawn from metrics.jsonl when a run ends."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

from typing_extensions import override

from surogate.callbacks.loss_plot import TRAIN_COLOR, VALIDATION_COLORS, MetricsPlot, smooth
from surogate.callbacks.metrics import Record
from surogate.run_folder import RunFolder


class RewardPlot(MetricsPlot):
    """Draw the reward in training and in evaluations over optimizer steps.

    Args:
        folder: output_dir of the run.
    """

    def __init__(self, folder: str) -> None:
        run_folder = RunFolder(folder)
        super().__init__(run_folder.metrics_jsonl, run_folder.reward_png)

    @override
    def draw(self, records: list[Record], path: Path) -> None:
        draw(records, path)


def draw(records: list[Record], path: Path) -> None:
    """Draw the rewards of some records into a PNG; nothing where no record has one."""
    train = [record for record in records if record.get("rl/reward/mean") is not None]
    if not train:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, means = [record["step"] for record in train], [record["rl/reward/mean"] for record in train]
    axes.plot(steps, means, color=TRAIN_COLOR, alpha=0.3, linewidth=1, marker="." if len(train) < 40 else None)
    axes.plot(steps, smooth(means) if len(means) >= 10 else means, color=TRAIN_COLOR, linewidth=2, label="training")
    for name, color in zip(_evaluations(records), cycle(VALIDATION_COLORS), strict=False):
        points = [
            (record["step"], record[name], record[f"{name[:-7]}/standard_error"])
            for record in records
            if name in record
        ]
        xs, ys, errors = zip(*points, strict=True)
        label = f"evaluation: {name.removeprefix('rl/eval/').removesuffix('/reward')}"
        axes.errorbar(xs, ys, yerr=[1.96 * e for e in errors], color=color, marker="o", capsize=3, label=label)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("mean reward")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#000000", alpha=0.1, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, title="95 % intervals" if _evaluations(records) else None)
    figure.savefig(path)


def _evaluations(records: list[Record]) -> list[str]:
    names = {name for record in records for name in record}
    return sorted(name for name in names if name.startswith("rl/eval/") and name.endswith("/reward"))
