"""RewardPlot: reward.png, the reward in training and in evaluations over optimizer steps."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

from typing_extensions import override

from surogate.callbacks.metrics import Record
from surogate.callbacks.metrics_plot import VALIDATION_COLORS, MetricsPlot, draw_trained, series
from surogate.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NORMAL_QUANTILE = 1.96
"""Standard errors on either side of a mean that make an interval of 95 %."""


class RewardPlot(MetricsPlot):
    """Draw the mean reward in training, and in evaluations with its 95 % interval.

    Args:
        folder: output_dir of the run.
    """

    def __init__(self, folder: str) -> None:
        run_folder = RunFolder(folder)
        super().__init__(run_folder.metrics_jsonl, run_folder.reward_png, "rl/reward/mean")

    @override
    def draw_curves(self, axes: Axes, records: list[Record], trained: list[tuple[int, float]]) -> None:
        draw_trained(axes, trained)
        names = _evaluations(records)
        for name, color in zip(names, cycle(VALIDATION_COLORS), strict=False):
            steps, means = zip(*series(records, name), strict=True)
            errors = dict(series(records, f"{name.removesuffix('/reward')}/standard_error"))
            label = f"evaluation: {name.removeprefix('rl/eval/').removesuffix('/reward')}"
            bars = [NORMAL_QUANTILE * errors.get(step, 0.0) for step in steps]
            axes.errorbar(steps, means, yerr=bars, color=color, marker="o", capsize=3, label=label)
        axes.set_ylabel("mean reward")
        axes.legend(frameon=False, title="95 % intervals" if names else None)


def _evaluations(records: list[Record]) -> list[str]:
    names = {name for record in records for name in record}
    names = {name for name in names if name.startswith("rl/eval/") and name.endswith("/reward")}
    return sorted(name for name in names if series(records, name))
