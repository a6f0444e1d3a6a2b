"""The W&B workspace: the object that would be saved, and the sentences where it cannot be."""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatchcase
from typing import Any

import pytest
import wandb

from surogate.cli import dashboard
from surogate.errors import ConfigError
from surogate.metrics.catalogue import describe, metrics
from surogate.report.chart_list import OF_GRPO, OF_ROWS, Chart, charts
from surogate.report.workspace import KINDS, metric_pattern, workspace

# wandb-workspaces 0.4.13 with pydantic 2.14, when it is imported
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")

KNOWN = [metric.name for metric in metrics()]


def panels(kind: Any) -> dict[str, list[dict[str, Any]]]:
    """The panels of each section, as W&B's server would get them."""
    view = workspace(kind, "team", "project")._to_model()
    assert (view.entity, view.project) == ("team", "project")
    sections = view.spec.section.panel_bank_config.sections
    return {section.name: [panel.model_dump(by_alias=True) for panel in section.panels] for section in sections}


@pytest.mark.parametrize("chart", charts(OF_ROWS) + charts(OF_GRPO), ids=lambda chart: chart.title)
def test_a_chart_shows_metrics_that_there_are(chart: Chart):
    for name in chart.names:
        assert any(fnmatchcase(known, name) for known in KNOWN), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_panel_draws_known_metrics_over_the_optimizer_step(kind: str):
    found = panels(kind)
    plots = [panel for section, of in found.items() if section != "Samples" for panel in of]
    assert len(plots) >= 10 and all(panel["viewType"] == "Run History Line Plot" for panel in plots)
    for panel in plots:
        config = panel["config"]
        assert config["xAxis"] == "_step"
        if config.get("useMetricRegex"):
            assert any(re.search(config["metricRegex"], name) for name in KNOWN), config["chartTitle"]
        else:
            assert config["metrics"] and not [name for name in config["metrics"] if describe(name) is None]


@pytest.mark.parametrize(("kind", "table"), [("pt", "samples"), ("sft", "samples"), ("grpo", "rollouts")])
def test_there_is_a_panel_of_what_the_model_wrote(kind: str, table: str):
    (panel,) = panels(kind)["Samples"]
    assert table in str(panel)


def test_columns_of_the_list_of_runs_are_known_metrics():
    for kind in KINDS:
        columns = workspace(kind, "team", "project").runset_settings.pinned_columns  # type: ignore[arg-type]
        summaries = [column.removeprefix("summary:") for column in columns if column.startswith("summary:")]
        assert summaries and all(describe(name) for name in summaries)


def test_a_pattern_means_whole_names():
    pattern = metric_pattern(["train/loss", "val/*/loss"])
    assert [
        name for name in ("train/loss", "val/a/loss", "xtrain/loss", "val/a/losses") if re.search(pattern, name)
    ] == [
        "train/loss",
        "val/a/loss",
    ]


def test_without_the_package_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(ConfigError, match=r"pip install 'surogate\[wandb\]'"):
        dashboard.main(["wandb", "--entity", "team"])


def test_without_a_login_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / name))
    with pytest.raises(ConfigError, match="Log in with `wandb login`"):
        dashboard.main(["wandb"])


def test_the_workspace_is_saved_and_its_address_printed(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    import wandb_workspaces.workspaces as workspaces

    saved = []
    monkeypatch.setattr(workspaces.Workspace, "save", lambda self: saved.append(self))
    monkeypatch.setattr(workspaces.Workspace, "url", property(lambda self: f"https://wandb/{self.entity}/{self.name}"))
    monkeypatch.setattr(wandb, "Api", lambda: type("Api", (), {"default_entity": "me"})())
    assert dashboard.main(["wandb", "--kind", "grpo"]) == 0
    assert capsys.readouterr().out.strip() == "https://wandb/me/surogate grpo" and len(saved) == 1


def test_what_w_and_b_refuses_is_told(monkeypatch: pytest.MonkeyPatch):
    import wandb_workspaces.workspaces as workspaces

    def refuse(self: Any) -> None:
        raise wandb.errors.CommError("project not found")

    monkeypatch.setattr(workspaces.Workspace, "save", refuse)
    with pytest.raises(ConfigError, match=r"team/surogate: project not found.*--project"):
        dashboard.main(["wandb", "--entity", "team"])
