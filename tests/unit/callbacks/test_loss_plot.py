from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure
from support.figures import labels

from surogate.callbacks import metrics_plot
from surogate.callbacks.loss_plot import LossPlot
from surogate.callbacks.metrics_plot import series, smooth


def curve(num_steps: int, *datasets: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(1, num_steps + 1):
        records.append({"step": step, "train/loss": 1 + 2 * math.exp(-step / 20)})
        if step % 10 == 0:
            losses = {f"val/{name}/loss": 1.2 + i for i, name in enumerate(datasets)}
            records.append({"step": step, **losses, "val/loss": 1.3})
    return records


def test_the_plot_is_a_png_of_some_size(tmp_path: Path) -> None:
    LossPlot(str(tmp_path)).draw(curve(40, "factbook"))
    content = (tmp_path / "loss.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 10_000


def test_every_curve_and_both_axes_have_a_name(tmp_path: Path, drawn: list[Figure]) -> None:
    LossPlot(str(tmp_path)).draw(curve(40, "a", "b"))
    axes = drawn[0].axes[0]
    assert labels(drawn[0]) == ["training (smoothed)", "validation a", "validation b"]
    assert axes.get_xlabel() == "optimizer step" and "loss" in axes.get_ylabel()
    assert list(axes.lines[2].get_xdata()) == [10, 20, 30, 40]


def test_a_total_over_datasets_is_drawn_only_where_there_is_nothing_else(tmp_path: Path, drawn: list[Figure]) -> None:
    LossPlot(str(tmp_path)).draw(curve(40))
    assert labels(drawn[0]) == ["training (smoothed)", "validation loss"]


def test_a_run_of_a_few_steps_is_drawn_point_by_point(tmp_path: Path, drawn: list[Figure]) -> None:
    LossPlot(str(tmp_path)).draw(curve(4))
    assert labels(drawn[0]) == ["training"]


def test_steps_whose_loss_was_not_a_number_leave_a_gap_in_the_data_only(tmp_path: Path, drawn: list[Figure]) -> None:
    records = [*curve(12), {"step": 13, "train/loss": None}]
    LossPlot(str(tmp_path)).draw(records)
    assert max(drawn[0].axes[0].lines[0].get_xdata()) == 12


def test_without_any_loss_no_file_is_written(tmp_path: Path) -> None:
    LossPlot(str(tmp_path)).draw([{"step": 1, "val/loss": 1.0}])
    assert not (tmp_path / "loss.png").exists()


def test_smoothing_neither_bends_a_constant_nor_lags_behind_a_slope() -> None:
    assert smooth([3.0] * 50) == pytest.approx([3.0] * 50)
    assert smooth(range(200))[50:150] == pytest.approx(range(50, 150))
    assert len(smooth([1.0] * 10)) == 10


def test_a_missing_matplotlib_is_said_and_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metrics_plot, "RequirementCache", lambda name: False)
    LossPlot(str(tmp_path)).on_fit_end(SimpleNamespace(is_global_zero=True), None)  # type: ignore[arg-type]
    assert "matplotlib is not installed" in caplog.text


def test_what_is_no_finite_number_is_not_drawn() -> None:
    values = ("x", None, math.inf, 2.0, [1])
    records = [{"step": step, "train/loss": value} for step, value in enumerate(values)]
    assert series(records, "train/loss") == [(3, 2.0)]
