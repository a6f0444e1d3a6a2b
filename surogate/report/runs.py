"""A run's folder, read for a report: its numbers, what it was asked for, where it ran, and what it wrote.

What is not here: how anything is shown. The one idea: a run may have stopped anywhere, so every file may be missing or
half written, and what can be read is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from surogate.errors import DataError
from surogate.metrics.records import Record, parse_object, read_records
from surogate.run_folder import RunFolder, read_json

_FLAT_FILES = ("surogate.yaml", "train.yaml", "infer.yaml", "orch.yaml")
_NESTED_FILE = "config.yaml"
_SIGNS = ("metrics.jsonl", "config.yaml", "environment.json")
"""A folder with one of these is a run's."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a folder holds.

    Attributes:
        name: of the run; where several are shown no two have the same.
        path: of the folder.
        records: of metrics.jsonl, by step.
        settings: what the run was asked for, flattened: `datasets.0.path` -> value.
        settings_text: the same, as it stands in the run's own files, by file name.
        environment: of environment.json.
        goal: optimizer steps asked for, None where nobody said.
        finished_step: where the finished run ended, None where it has not.
        checkpoint_step: newest checkpoint, None where there is none.
        health: what was saved of bad steps, by file name.
    """

    name: str
    path: Path
    records: Sequence[Record]
    settings: dict[str, Any]
    settings_text: dict[str, str]
    environment: dict[str, Any]
    goal: int | None = None
    finished_step: int | None = None
    checkpoint_step: int | None = None
    health: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def is_grpo(self) -> bool:
        """Whether it learnt from rewards."""
        return "orch.yaml" in self.settings_text or any("rl/reward/mean" in record for record in self.records)

    @property
    def last_step(self) -> int:
        """The last optimizer step of which there is a record; 0 where there is none."""
        return int(self.records[-1]["step"]) if self.records else 0

    def series(self, name: str) -> list[tuple[int, float | None]]:
        """Return step and value of each record with a metric; None where it was not finite."""
        return [(int(record["step"]), _number(record[name])) for record in self.records if name in record]

    def values(self, name: str) -> list[float]:
        """Return the finite values of a metric."""
        return [value for _, value in self.series(name) if value is not None]

    def names(self) -> list[str]:
        """Return the metrics that it has, in the order in which they came."""
        found = dict.fromkeys(name for record in self.records for name in record)
        return [name for name in found if name not in ("step", "epoch")]


def read_runs(paths: Iterable[str]) -> list[Run]:
    """Read some folders.

    Raises:
        DataError: one of them is no run's folder.
    """
    folders = [Path(path) for path in paths]
    for folder in folders:
        if not any((folder / sign).is_file() for sign in _SIGNS):
            raise DataError(
                f"{folder} holds no metrics.jsonl, config.yaml or environment.json, so it is not the folder of a run. "
                "Name the output_dir of a run."
            )
    return [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _read(path: Path, name: str) -> Run:
    folder = RunFolder(path)
    texts = {file: text for file in _FLAT_FILES if (text := _text(path / file))}
    settings = _flat_settings(texts)
    if not texts and (nested := _text(path / _NESTED_FILE)):
        texts, settings = {_NESTED_FILE: nested}, leaves(_yaml(nested))
    records = read_records(folder.metrics_jsonl)
    finished_step = read_json(folder.finished_json).get("step")
    goal = _trainer(_yaml(_text(path / _NESTED_FILE))).get("max_steps")
    return Run(
        name=name,
        path=path,
        records=sorted(records, key=lambda record: int(record["step"])),
        settings=settings,
        settings_text=texts,
        environment=read_json(folder.environment_json),
        goal=goal if isinstance(goal, int) and goal > 0 else None,
        finished_step=finished_step if type(finished_step) is int else None,
        checkpoint_step=next(iter(folder.checkpoints.steps()), None),
        health={file.name: read_json(file) for file in sorted((path / "health").glob("*.json"))},
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """Name each folder by its last part, and by more of its path where that is not enough."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of_one[-length:]) for of_one in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, start=1)]


def _flat_settings(texts: dict[str, str]) -> dict[str, Any]:
    """Return the flat keys of all files; those of the files of GRPO have the file's name in front."""
    values: dict[str, Any] = {}
    for file, text in texts.items():
        prefix = "" if file == _FLAT_FILES[0] else file.removesuffix(".yaml")
        values |= leaves(_yaml(text), prefix)
    return values


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten dicts and lists of dicts to `datasets.0.path`: value; other lists stay whole."""
    if isinstance(value, dict):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = enumerate(value)
    else:
        return {prefix: value} if prefix else {}
    return {
        path: leaf
        for key, child in items
        for path, leaf in leaves(child, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _trainer(nested: Any) -> dict[str, Any]:
    trainer = nested.get("trainer") if isinstance(nested, dict) else None
    return trainer if isinstance(trainer, dict) else {}


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that there is not
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_json_lines(path: Path, limit: int) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file, at most so many; what is half written is skipped."""
    rows: list[dict[str, Any]] = []
    for line in _text(path).split("\n"):
        if len(rows) == limit:
            break
        if (row := parse_object(line)) is not None:
            rows.append(row)
    return rows


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
