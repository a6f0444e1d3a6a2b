"""Folders of runs, made by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml


def write_run(folder: Path, records: Iterable[dict[str, Any]], **files: Any) -> Path:
    """Write a run's folder: metrics.jsonl, and further files whose names have `__` in place of the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        kind = path.suffix
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(yaml.safe_dump(content) if kind == ".yaml" and not isinstance(content, str) else text)
    return folder


def steps(count: int, loss: float | None = 2.0) -> list[dict[str, Any]]:
    """Records of so many steps."""
    return [
        {
            "step": step,
            "epoch": 0,
            "train/loss": loss,
            "train/grad_norm": 1.0,
            "train/learning_rate": 1e-4,
            "speed/tokens_per_second": 100.0,
            "speed/step_seconds": 0.5,
            "memory/peak_gib": 3.0,
        }
        for step in range(1, count + 1)
    ]
