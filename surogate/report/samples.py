"""What the model wrote: answers to held-out prompts over the run, or rollouts with their rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from surogate.html_page import text
from surogate.report.drawing import short
from surogate.report.runs import Run, read_json_lines
from surogate.report.text import cut
from surogate.run_folder import RunFolder

NUM_SHOWN = 5
_MAX_ROWS = 20_000
Row = dict[str, Any]


def samples(runs: Sequence[Run]) -> str:
    """Return the section, or nothing where no run wrote anything."""
    parts = []
    for run in runs:
        shown = "\n".join(_of_run(run))
        if shown:
            parts.append(f"<h3>{text(run.name)}</h3>\n{shown}" if len(runs) > 1 else shown)
    return "<h2>Samples</h2>\n" + "\n".join(parts) if parts else ""


def _of_run(run: Run) -> Iterator[str]:
    folder = RunFolder(run.path)
    yield from _answers(read_json_lines(run.path / "samples.jsonl", _MAX_ROWS))
    evaluations = _steps(folder.evaluations_dir)
    rollouts = _steps(folder.rollouts_dir)
    if evaluations:
        yield from _evaluations(evaluations[0], evaluations[-1])
    elif rollouts:
        yield from _rollouts(rollouts[-1])
    if folder.samples_txt.is_file():
        written = folder.samples_txt.read_text(encoding="utf-8", errors="replace").strip()
        yield '<p class="quiet">After the last step; what follows the bar is the model\'s.</p>'
        yield f"<pre>{cut(written, 6000)}</pre>"


def _answers(rows: Sequence[Row]) -> Iterator[str]:
    """Show each held-out prompt with its reference and the answers before and after."""
    prompts = list(dict.fromkeys(str(row.get("prompt")) for row in rows))
    for prompt in prompts[:NUM_SHOWN]:
        of_prompt = sorted((row for row in rows if str(row.get("prompt")) == prompt), key=_step)
        first, last = of_prompt[0], of_prompt[-1]
        lines = [("prompt", prompt), ("reference", last.get("reference", ""))]
        if first is not last:
            lines.append((_at(first), first.get("answer", "")))
        yield _sample([*lines, (_at(last), last.get("answer", ""))])


def _step(row: Row) -> int:
    step = row.get("step")
    return step if isinstance(step, int) else 0


def _at(row: Row) -> str:
    return f"step {_step(row):,}" if _step(row) else "before training"


def _evaluations(first: Path, last: Path) -> Iterator[str]:
    """Show held-out prompts with an answer of the first and one of the last evaluation."""
    before, after = _by_example(first), _by_example(last)
    shared = [example for example in after if example in before] if first != last else list(after)
    for example in shared[:: max(len(shared) // NUM_SHOWN, 1)][:NUM_SHOWN]:
        row, old = after[example], before.get(example)
        lines = [("prompt", row.get("prompt", ""))]
        if old is not None and first != last:
            lines.append((f"{_named(first)}, reward {_reward(old)}", old.get("completion", "")))
        yield _sample([*lines, (f"{_named(last)}, reward {_reward(row)}", row.get("completion", ""))])


def _rollouts(path: Path) -> Iterator[str]:
    """Show the best and the worst rollouts of a step."""
    rows = [row for row in read_json_lines(path, _MAX_ROWS) if isinstance(row.get("reward"), int | float)]
    rows.sort(key=lambda row: float(row["reward"]), reverse=True)
    chosen = rows if len(rows) <= NUM_SHOWN else [*rows[:2], rows[len(rows) // 2], *rows[-2:]]
    for row in chosen:
        completion = (f"{_named(path)}, reward {_reward(row)}", row.get("completion", ""))
        yield _sample([("prompt", row.get("prompt", "")), completion])


def _by_example(path: Path) -> dict[str, Row]:
    """Return the first rollout of each example."""
    found: dict[str, Row] = {}
    for row in read_json_lines(path, _MAX_ROWS):
        found.setdefault(str(row.get("example")), row)
    return found


def _named(path: Path) -> str:
    step = int(path.stem.removeprefix("step_"))
    return f"step {step:,}" if step else "before training"


def _reward(row: Row) -> str:
    reward = row.get("reward")
    return short(float(reward)) if isinstance(reward, int | float) else "unknown"


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*.jsonl") if path.stem.removeprefix("step_").isdecimal())


def _sample(lines: Sequence[tuple[str, object]]) -> str:
    (title, prompt), *rest = lines
    shown = "".join(
        f"<dt>{text(name)}</dt><dd{' class=last' if place == len(rest) - 1 else ''}>{cut(value) or '—'}</dd>"
        for place, (name, value) in enumerate(rest)
    )
    asked = f'<p class="quiet">{text(title)}</p><p class="text">{cut(prompt)}</p>'
    return f'<section class="sample">{asked}<dl>{shown}</dl></section>'
