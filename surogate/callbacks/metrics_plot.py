"""MetricsPlot: a picture of curves over optimizer steps, drawn from metrics.jsonl when a run ends."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
from lightning_utilities.core.imports import RequirementCache
from typing_extensions import override

from surogate.callbacks.metrics import Record, read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAIN_COLOR = "#2f6db3"
VALIDATION_COLORS = ("#d8702a", "#3a9a6b", "#8a5fb0", "#b8a02a", "#5c6b7a")

_log = logging.getLogger(__name__)


class MetricsPlot(pl.Callback):
    """Draw a picture from metrics.jsonl when a run ends.

    Args:
        jsonl: the records.
        png: the picture.
        metric: whose curve is drawn first; without a value of it there is no picture.
    """

    def __init__(self, jsonl: Path, png: Path, metric: str) -> None:
        self._jsonl, self._png, self._metric = jsonl, png, metric

    def draw_curves(self, axes: Axes, records: list[Record], trained: list[tuple[int, float]]) -> None:
        """Draw what the records hold, and name the vertical axis.

        Args:
            axes: to draw into.
            records: all of them.
            trained: step and value of the plot's metric.
        """
        raise NotImplementedError

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if not RequirementCache("matplotlib"):
            _log.warning("%s is not drawn: matplotlib is not installed (pip install matplotlib)", self._png)
            return
        self.draw(read_records(self._jsonl))

    def draw(self, records: list[Record]) -> None:
        """Draw some records into the PNG."""
        trained = series(records, self._metric)
        if not trained:
            return
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure  # not pyplot: it would set a global state and look for a display
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_xlabel("optimizer step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#000000", alpha=0.1, linewidth=0.8)
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        self.draw_curves(axes, records, trained)
        figure.savefig(self._png)


def draw_trained(axes: Axes, points: list[tuple[int, float]]) -> None:
    """Draw the curve of training: few points as they are, many of them pale under a smoothed line."""
    steps, values = zip(*points, strict=True)
    if len(points) < 10:
        axes.plot(steps, values, color=TRAIN_COLOR, marker="o", markersize=4, label="training")
    else:
        axes.plot(steps, values, color=TRAIN_COLOR, alpha=0.25, linewidth=1)
        axes.plot(steps, smooth(values), color=TRAIN_COLOR, linewidth=2, label="training (smoothed)")


def smooth(values: Sequence[float]) -> np.ndarray:
    """Return a mean over neighbours, about a twentieth of at least ten values wide, centred so that it does not lag."""
    width = max(len(values) / 40, 1.0)
    reach = int(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    smoothed: np.ndarray = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
    return smoothed


def series(records: list[Record], name: str) -> list[tuple[int, float]]:
    """Return step and value of a metric, where it has a finite one."""
    found = [(record["step"], record.get(name)) for record in records]
    return [(step, value) for step, value in found if isinstance(value, int | float) and math.isfinite(value)]
