"""A folder with rows and a model that exists, and a way to read a configuration in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from surogate.config.read import Resolved, read_config
from surogate.config.read_grpo import GrpoResolved, read_grpo
from surogate.errors import ConfigError

MINIMAL_GRPO = {
    "train": "model: some/model\n",
    "infer": "max_loras: 2\n",
    "orch": "env: [{id: arithmetic}]\nmax_steps: 9\n",
}
MINIMAL = "model: some/model\ndatasets:\n  - path: rows.jsonl\n"


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Resolved]:
    """Read lines that follow a minimal configuration of three lines, with overrides."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')

    def read_lines(more: str = "", *overrides: str, whole: str | None = None) -> Resolved:
        (tmp_path / "cfg.yaml").write_text(MINIMAL + more if whole is None else whole)
        return read_config("sft", "cfg.yaml", list(overrides))

    return read_lines


@pytest.fixture
def problems(read: Callable[..., Resolved]) -> Callable[..., list[str]]:
    """The problems of a configuration, one a line."""

    def lines(more: str = "", *overrides: str, whole: str | None = None) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read(more, *overrides, whole=whole)
        first, *rest = str(caught.value).splitlines()
        return rest or [first]

    return lines


@pytest.fixture
def read_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., GrpoResolved]:
    """Read three files: the given lines follow those of a minimal file, or stand in its place."""
    monkeypatch.chdir(tmp_path)

    def read_three(*overrides: str, whole: dict[str, str] | None = None, **more: str) -> GrpoResolved:
        for file, minimal in MINIMAL_GRPO.items():
            (tmp_path / f"{file}.yaml").write_text((whole or {}).get(file, minimal + more.get(file, "") + "\n"))
        return read_grpo("train.yaml", "infer.yaml", "orch.yaml", list(overrides))

    return read_three


@pytest.fixture
def problems_of(read_files: Callable[..., GrpoResolved]) -> Callable[..., list[str]]:
    """The problems of three files, one a line."""

    def lines(*overrides: str, whole: dict[str, str] | None = None, **more: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read_files(*overrides, whole=whole, **more)
        first, *rest = str(caught.value).splitlines()
        return rest or [first]

    return lines
