"""LossPlot: loss.png, drawn from metrics.jsonl when a run ends."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
from lightning_utilities.core.imports import RequirementCache
from typing_extensions import override

from surogate.callbacks.metrics import Record, read_records
from surogate.run_folder import RunFolder

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
    """

    def __init__(self, jsonl: Path, png: Path) -> None:
        self._jsonl, self._png = jsonl, png

    def draw(self, records: list[Record], path: Path) -> None:
        """Draw the records into a PNG; nothing where they hold nothing to draw."""
        raise NotImplementedError

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if not RequirementCache("matplotlib"):
            _log.warning("%s is not drawn: matplotlib is not installed (pip install matplotlib)", self._png)
            return
        self.draw(read_records(self._jsonl), self._png)


class LossPlot(MetricsPlot):
    """Draw training and validation loss over optimizer steps.

    Args:
        folder: output_dir of the run.
    """

    def __init__(self, folder: str) -> None:
        run_folder = RunFolder(folder)
        super().__init__(run_folder.metrics_jsonl, run_folder.loss_png)

    @override
    def draw(self, records: list[Record], path: Path) -> None:
        draw(records, path)


def draw(records: list[Record], path: Path) -> None:
    """Draw the loss curves of some records into a PNG; nothing where no record has a training loss."""
    train = _series(records, "train/loss")
    if not train:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: it would set a global state and look for a display
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_curves(axes, records, train)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per supervised token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#000000", alpha=0.1, linewidth=0.8)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    figure.savefig(path)


def _draw_curves(axes: Axes, records: list[Record], train: list[tuple[int, float]]) -> None:
    steps, losses = zip(*train, strict=True)
    if len(train) < 10:
        axes.plot(steps, losses, color=TRAIN_COLOR, marker="o", markersize=4, label="training")
    else:
        axes.plot(steps, losses, color=TRAIN_COLOR, alpha=0.25, linewidth=1)
        axes.plot(steps, smooth(losses), color=TRAIN_COLOR, linewidth=2, label="training (smoothed)")
    for name, color in zip(_validation_names(records), cycle(VALIDATION_COLORS), strict=False):
        steps, losses = zip(*_series(records, name), strict=True)
        label = name.replace("val/", "validation ").removesuffix("/loss")
        axes.plot(steps, losses, color=color, linewidth=1.5, marker="o", markersize=5, label=label)


def smooth(values: Sequence[float]) -> np.ndarray:
    """Return a mean over neighbours, about a twentieth of at least ten values wide, centred so that it does not lag."""
    width = max(len(values) / 40, 1.0)
    reach = int(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    smoothed: np.ndarray = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
    return smoothed


def _series(records: list[Record], name: str) -> list[tuple[int, float]]:
    found = [(record["step"], record.get(name)) for record in records]
    return [(step, value) for step, value in found if isinstance(value, int | float) and math.isfinite(value)]


def _validation_names(records: list[Record]) -> list[str]:
    """Return `val/<dataset>/loss` of each dataset, or `val/loss` where that is all there is."""
    names = sorted({key for record in records for key in record if key.startswith("val/") and key.endswith("/loss")})
    names = [name for name in names if _series(records, name)]
    return [name for name in names if name != "val/loss"] or names
