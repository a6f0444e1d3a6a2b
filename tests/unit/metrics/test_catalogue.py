"""The table of metrics: found by name, without contradictions, and what the guide shows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from surogate.metrics.catalogue import GROUPS, describe, metrics
from surogate.metrics.reference import filled
from surogate.metrics.table import Metric

GUIDE = Path(__file__).resolve().parents[3] / "docs/guides/metrics.md"
UNITS_BY_ENDING = {
    "tokens_per_second": "tokens/s",
    "_seconds": "seconds",
    "_gib": "GiB",
    "_percent": "%",
    "_celsius": "°C",
    "_watts": "W",
    "_len": "tokens",
    "_db": "dB",
}


def test_a_metric_stands_in_the_table_once():
    assert not [name for name, count in Counter(metric.name for metric in metrics()).items() if count > 1]


@pytest.mark.parametrize("metric", list(metrics()), ids=lambda metric: metric.name)
def test_a_name_says_its_unit(metric: Metric):
    ending = next((ending for ending in UNITS_BY_ENDING if metric.name.endswith(ending)), None)
    assert ending is None or metric.unit == UNITS_BY_ENDING[ending]
    if metric.unit in ("seconds", "GiB", "tokens/s", "%"):
        assert ending is not None, f"{metric.name} is in {metric.unit} and does not say so"


def test_a_metric_has_a_group_and_a_meaning():
    assert not [metric.name for metric in metrics() if "/" not in metric.name or not metric.meaning]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("train/loss", "train/loss"),
        ("val/loss", "val/loss"),
        ("val/corpus/loss", "val/<dataset>/loss"),
        ("val/data/de/part 1/accuracy", "val/<dataset>/accuracy"),
        ("data/a/epochs", "data/<dataset>/epochs"),
        ("precision/model.layers.0.mlp.up_proj/output_snr_db", "precision/<layer>/output_snr_db"),
        ("rl/reward/mean", "rl/reward/mean"),
        ("rl/reward/sums/mean", "rl/reward/<env>/mean"),
        ("rl/env/sums/num_turns", "rl/env/<env>/<name>"),
        ("train/losses", None),
        ("xtrain/loss", None),
        ("loss", None),
    ],
)
def test_a_name_is_found_exactly_or_in_its_family(name: str, found: str | None):
    metric = describe(name)
    assert (metric.name if metric else None) == found


def test_the_guide_is_what_the_table_says():
    page = GUIDE.read_text()
    assert page == filled(page), "run `make reference`"


def test_the_guide_has_every_group():
    page = GUIDE.read_text()
    assert not [group.key for group in GROUPS if f"<!-- metrics: {group.key} -->" not in page]
