"""The W&B workspace of a project: the charts of chart_list.py, as W&B shows them.

The one idea: the same list makes the page and the workspace, so both show the same, by the same names. wandb-workspaces
is an optional package and is imported when it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from surogate.errors import ConfigError
from surogate.report.chart_list import OF_GRPO, OF_ROWS, Chart, Sections

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

Kind = Literal["pt", "sft", "grpo"]
KINDS: tuple[str, ...] = get_args(Kind)

_TABLES: Mapping[str, tuple[str, ...]] = {"pt": ("samples",), "sft": ("samples",), "grpo": ("rollouts",)}
"""Tables that runs log, by what they are called in W&B."""

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "pt": ("summary:val/loss", "summary:train/loss", "summary:speed/tokens_per_second", "summary:memory/peak_gib"),
    "sft": ("summary:val/loss", "summary:train/loss", "summary:speed/tokens_per_second", "summary:memory/peak_gib"),
    "grpo": ("summary:rl/reward/mean", "summary:rl/completion/mean_len", "summary:speed/step_seconds"),
}
"""What stands beside a run in the list of runs."""

_OPEN_SECTIONS = 3


def workspace(kind: Kind, entity: str, project: str) -> Workspace:
    """Return the workspace of a kind of runs, not saved yet.

    Args:
        kind: which verb the runs are of; sft is also qlora.
        entity: account or team of W&B.
        project: of W&B.

    Raises:
        ConfigError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ConfigError(
            "surogate dashboard wandb needs the packages wandb and wandb-workspaces. Install them with "
            "`pip install 'surogate[wandb]'`."
        ) from error
    sections = [
        workspaces.Section(name=title, panels=[_panel(chart) for chart in charts], is_open=place < _OPEN_SECTIONS)
        for place, (title, charts) in enumerate(_sections(kind).items())
    ]
    tables: list[Any] = [panels.WeavePanelSummaryTable(table_name=name) for name in _TABLES[kind]]
    sections.append(workspaces.Section(name="Samples", panels=tables, is_open=True))
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"surogate {kind}",
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis="Step", group_by_prefix="first"),
        runset_settings=workspaces.RunsetSettings(pinned_columns=list(_COLUMNS[kind])),
    )


def _sections(kind: Kind) -> Sections:
    return OF_GRPO if kind == "grpo" else OF_ROWS


def _panel(chart: Chart) -> Any:
    import wandb_workspaces.reports.v2 as panels

    settings: dict[str, Any] = {"title": chart.title, "x": "Step", "title_y": chart.unit or None}
    if chart.may_be_log:
        settings["log_y"] = True
    if chart.floor is not None:
        settings["range_y"] = (chart.floor, None)
    if any("*" in name for name in chart.names):
        return panels.LinePlot(metric_regex=metric_pattern(chart.names), **settings)
    return panels.LinePlot(y=list(chart.names), **settings)


def metric_pattern(names: Sequence[str]) -> str:
    """Return a regular expression for metrics some of which are families."""
    return "|".join(f"^{re.escape(name).replace(re.escape('*'), '.+')}$" for name in names)
