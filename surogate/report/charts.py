"""The curves of some runs, as figures.

What is not here: which charts there are (chart_list.py), how they are drawn (drawing.py). The one idea: whatever a run
wrote that no chart names gets a small one of its own, so nothing is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from surogate.metrics.catalogue import describe
from surogate.report.chart_list import OF_GRPO, OF_ROWS, Chart, charts
from surogate.report.curves import Curve, drawable, finite, smoothed, thinned
from surogate.report.drawing import draw
from surogate.report.runs import Run

_SELDOM = ("val/", "rl/eval/", "precision/", "health/")
"""Groups that are measured now and then."""
_STEADY = ("train/learning_rate", "memory/")
"""What has no noise to be smoothed."""
_UNSHOWN = ("rl/clock/*", "rl/eval/*/standard_error")
_MAX_CURVES = 12


def figures(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Draw what some runs have: the charts, and a small one of each further metric."""
    names = list(dict.fromkeys(name for run in runs for name in run.names()))
    drawn, used = [], set()
    for chart in _charts_for(runs):
        of_chart = _names_of(chart, names)
        curves = _curves(chart, of_chart, runs)
        if not curves or (chart.hides_zero and not any(y for curve in curves for _, y in curve.points)):
            continue
        used |= set(of_chart)
        note = "bars: 95 % intervals" if any(curve.errors for curve in curves) else chart.unit
        drawn.append(draw(curves, title=chart.title, unit=note, may_be_log=chart.may_be_log, floor=chart.floor))
    return drawn, list(_rest([name for name in names if name not in used], runs))


def _charts_for(runs: Sequence[Run]) -> list[Chart]:
    """Return the charts of the runs' kinds; of both where there are both."""
    kinds = {run.is_grpo for run in runs}
    found = (charts(OF_ROWS) if False in kinds else []) + (charts(OF_GRPO) if True in kinds else [])
    return list({chart.names: chart for chart in reversed(found)}.values())[::-1]


def _names_of(chart: Chart, names: Sequence[str]) -> list[str]:
    found = [name for pattern in chart.names for name in names if fnmatchcase(name, pattern)]
    if chart.title == "Loss" and not any(name.startswith("val/") for name in found) and "val/loss" in names:
        found.append("val/loss")
    return list(dict.fromkeys(found))


def _rest(names: Iterable[str], runs: Sequence[Run]) -> Iterator[str]:
    for name in names:
        if any(fnmatchcase(name, pattern) for pattern in _UNSHOWN):
            continue
        curves = _curves(Chart(name, (name,)), [name], runs)
        if curves:
            described = describe(name)
            yield draw(curves, title=name, unit=described.unit if described else "")


def _curves(chart: Chart, names: Sequence[str], runs: Sequence[Run]) -> list[Curve]:
    """Return the curves of a chart: a colour a metric, or with several runs a colour a run."""
    curves: list[Curve] = []
    for number, run in enumerate(runs):
        for place, name in enumerate(name for name in names if run.series(name)):
            label = chart.label(name)
            if len(runs) > 1:
                label = run.name if len(names) == 1 else f"{run.name}: {label}"
            color, is_second = (number, place > 0) if len(runs) > 1 else (place, False)
            curves.append(_curve(run, name, label, color, is_second=is_second))
    return curves[:_MAX_CURVES]


def _curve(run: Run, name: str, label: str, color: int, *, is_second: bool) -> Curve:
    points, gaps = finite(run.series(name))
    errors = _errors(run, name) if name.startswith("rl/eval/") else []
    return Curve(
        label=label,
        points=points if errors else thinned(points),
        gaps=gaps,
        smoothed=[] if name.startswith((*_SELDOM, *_STEADY)) else smoothed(points),
        color=color,
        style="dots" if name.startswith(_SELDOM) else "dashed" if is_second else "line",
        errors=errors,
    )


def _errors(run: Run, name: str) -> list[float]:
    """Return half the 95 % interval of each point of a held-out reward; nothing where one is unknown."""
    errors = [drawable(1.96 * value) for value in run.values(f"{name.removesuffix('/reward')}/standard_error")]
    return errors if len(errors) == len(run.values(name)) else []
