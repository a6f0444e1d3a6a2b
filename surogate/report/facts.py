"""The lower half of a report: health, data, settings and where they differ, environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surogate.html_page import text
from surogate.report.runs import Run
from surogate.report.text import cut, table

_EXPECTED_TO_DIFFER = {"output_dir", "run_name", "train.output_dir", "train.run_name", "wandb_name"}
_MAX_HEALTH = 50
_MAX_ROWS = 5


def health(runs: Sequence[Run]) -> str:
    """Return the steps that were skipped or out of line, with the rows that they were made of."""
    rows = [
        (*((run.name,) if len(runs) > 1 else ()), found.get("step", ""), found.get("what", ""), _rows_of(found), file)
        for run in runs
        for file, found in sorted(run.health.items(), key=lambda item: _order(item[1]))
    ]
    if not rows:
        return ""
    titles = (*(("run",) if len(runs) > 1 else ()), "step", "what happened", "rows", "all of it in health/")
    more = f'<p class="quiet">The first {_MAX_HEALTH} of {len(rows):,}.</p>' if len(rows) > _MAX_HEALTH else ""
    return "<h2>Health</h2>\n" + table(titles, rows[:_MAX_HEALTH]) + more


def _order(found: Mapping[str, Any]) -> int:
    step = found.get("step")
    return step if isinstance(step, int) else 0


def _rows_of(found: Mapping[str, Any]) -> str:
    """Name the rows of a step: those of micro-batches whose loss is not finite, where there are any."""
    micros = [micro for rank in _dicts(found.get("ranks")) for micro in _dicts(rank.get("micro_batches"))]
    guilty = [micro for micro in micros if micro.get("is_finite") is False and micro.get("rows")]
    rows = [row for micro in guilty or micros for row in _dicts(micro.get("rows"))]
    names = [str(row.get("origin") or f"row {row.get('row')} of source {row.get('source')}") for row in rows]
    more = f" and {len(names) - _MAX_ROWS:,} more" if len(names) > _MAX_ROWS else ""
    return ", ".join(names[:_MAX_ROWS]) + more


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def data(runs: Sequence[Run]) -> str:
    """Return what the runs were trained and validated on."""
    rows = [
        (*((run.name,) if len(runs) > 1 else ()), *_data_row(role, source))
        for run in runs
        for role in ("train", "validation")
        for source in _sources(run, role)
    ]
    if not rows:
        return ""
    titles = (*(("run",) if len(runs) > 1 else ()), "source", "for", "rows", "tokens", "supervised", "share of tokens",
              "passes an epoch", "fingerprint")  # fmt: skip
    return "<h2>Data</h2>\n" + table(titles, rows, "numbers")


def _sources(run: Run, role: str) -> list[dict[str, Any]]:
    summary = run.environment.get("data")
    return _dicts(summary.get(role)) if isinstance(summary, dict) else []


def _data_row(role: str, source: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(source.get("name", "")),
        role,
        *(_number(source.get(key), "{:,}") for key in ("rows", "tokens")),
        _number(source.get("supervised_share"), "{:.1%}"),
        _number(source.get("epoch_token_share"), "{:.1%}"),
        _number(source.get("passes_per_epoch"), "{:.3g}"),
        str(source.get("fingerprint", "")),
    )


def settings(runs: Sequence[Run]) -> str:
    """Return what the runs were asked for: of several, first where they differ."""
    parts = ["<h2>Settings</h2>"]
    if len(runs) > 1:
        parts.append(_differences(runs))
    for run in runs:
        for file, written in run.settings_text.items():
            title = f"{run.name}: {file}" if len(runs) > 1 else file
            is_open = " open" if len(runs) == 1 and len(run.settings_text) == 1 and file != "config.yaml" else ""
            parts.append(
                f"<details{is_open}><summary>{text(title)}</summary><pre>{cut(written, 40_000)}</pre></details>"
            )
    return "\n".join(parts) if len(parts) > 1 else ""


def _differences(runs: Sequence[Run]) -> str:
    keys = sorted({key for run in runs for key in run.settings} - _EXPECTED_TO_DIFFER)
    rows = []
    for key in keys:
        values = [run.settings.get(key) for run in runs]
        if any(value != values[0] for value in values):
            rows.append((key, *(None if value is None else _shown(value) for value in values)))
    if not rows:
        return "<p>All of them were asked for the same.</p>"
    return table(("where they differ", *(run.name for run in runs)), rows, "keys")


def environment(runs: Sequence[Run]) -> str:
    """Return versions, hardware and command of each run."""
    described = [_environment(run.environment) for run in runs]
    keys = list(dict.fromkeys(key for found in described for key in found))
    if not keys:
        return ""
    rows = [(key, *(found.get(key, "") for found in described)) for key in keys]
    titles = ("", *(run.name for run in runs)) if len(runs) > 1 else ("", "")
    return "<h2>Environment</h2>\n" + table(titles, rows, "keys")


def _environment(found: Mapping[str, Any]) -> dict[str, str]:
    git = found.get("git")
    gpus, command = found.get("gpus"), found.get("command")
    described = {
        "command": " ".join(map(str, command)) if isinstance(command, list) else str(command or ""),
        "surogate": str(found.get("surogate") or ""),
        "commit": f"{git.get('commit')}{' with changes' if git.get('dirty') else ''}" if isinstance(git, dict) else "",
        "ranks": f"{found.get('world_size')}, {found.get('strategy')}" if "world_size" in found else "",
        "GPUs": ", ".join(map(str, gpus)) if isinstance(gpus, list) else "",
        "CPU": f"{found.get('cpu')}, {found.get('cpu_cores')} cores, {found.get('memory_gib')} GiB"
        if "cpu" in found
        else "",
        "platform": str(found.get("platform") or ""),
        "python": str(found.get("python") or ""),
        "CUDA": str(found.get("cuda") or ""),
    }
    packages = found.get("packages")
    versions = {str(name): str(version) for name, version in packages.items()} if isinstance(packages, dict) else {}
    return {key: value for key, value in {**described, **versions}.items() if value}


def _number(value: object, form: str) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return form.format(value) if is_number else ""
    except OverflowError:  # a whole number that is larger than any float
        return str(value)


def _shown(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
