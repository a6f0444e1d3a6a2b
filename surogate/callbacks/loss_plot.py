"""LossPlot: loss.png, training and validation loss over optimizer steps."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

from typing_extensions import override

from surogate.callbacks.metrics import Record
from surogate.callbacks.metrics_plot import VALIDATION_COLORS, MetricsPlot, draw_trained, series
from surogate.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LossPlot(MetricsPlot):
    """Draw training and validation loss.

    Args:
        folder: output_dir of the run.
    """

    def __init__(self, folder: str) -> None:
        run_folder = RunFolder(folder)
        super().__init__(run_folder.metrics_jsonl, run_folder.loss_png, "train/loss")

    @override
    def draw_curves(self, axes: Axes, records: list[Record], trained: list[tuple[int, float]]) -> None:
        draw_trained(axes, trained)
        for name, color in zip(_validation_names(records), cycle(VALIDATION_COLORS), strict=False):
            steps, losses = zip(*series(records, name), strict=True)
            label = name.replace("val/", "validation ").removesuffix("/loss")
            axes.plot(steps, losses, color=color, linewidth=1.5, marker="o", markersize=5, label=label)
        axes.set_ylabel("loss (nats per supervised token)")
        axes.legend(frameon=False)


def _validation_names(records: list[Record]) -> list[str]:
    """Return `val/<dataset>/loss` of each dataset, or `val/loss` where that is all there is."""
    names = sorted({key for record in records for key in record if key.startswith("val/") and key.endswith("/loss")})
    names = [name for name in names if series(records, name)]
    return [name for name in names if name != "val/loss"] or names
