"""The top of a report: headline numbers, and what somebody should look at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from surogate.html_page import text
from surogate.report.drawing import short
from surogate.report.runs import Run
from surogate.report.text import cut, table

_UP = "rl/eval/"


def summary(runs: Sequence[Run]) -> str:
    """Return tiles for one run, a table for several, and notes."""
    top = _tiles(runs[0]) if len(runs) == 1 else _comparison(runs)
    items = [
        f'<li class="{level}"><b>{level}</b><span>{f"<strong>{text(run.name)}:</strong> " if len(runs) > 1 else ""}'
        f"{cut(sentence, 400)}</span></li>"
        for run in runs
        for level, sentence in notes(run)
    ]
    return top + ('\n<ul class="notes">\n' + "\n".join(items) + "\n</ul>" if items else "")


def state(run: Run) -> str:
    """Say in a few words how far a run came."""
    if run.finished_step is not None:
        return f"finished after {run.finished_step:,} steps"
    goal = f" of {run.goal:,}" if run.goal else ""
    if not run.records:
        return "no step recorded"
    return f"not finished: {run.last_step:,}{goal} steps"


def headlines(run: Run) -> dict[str, tuple[str, str]]:
    """Return the numbers that sum a run up: what it is -> value, and a remark."""
    return {name: found for name, found in _headlines(run) if found[0]}


def _headlines(run: Run) -> Iterator[tuple[str, tuple[str, str]]]:
    goal = f"of {run.goal:,}" if run.goal and run.goal != run.last_step else ""
    yield "steps", (f"{run.last_step:,}", goal)
    if run.is_grpo:
        yield from _of_rewards(run)
    else:
        yield from _of_losses(run)
    speed = run.values("speed/tokens_per_second") or run.values("speed/generated_tokens_per_second")
    yield "tokens/s", (f"{median(speed):,.0f}", "median") if speed else ("", "")
    seconds = _training_seconds(run)
    yield "training time", (duration(seconds), "without validation" if not run.is_grpo else "")
    memory = run.values("memory/peak_gib")
    yield "peak memory", (f"{max(memory):.3g} GiB", "") if memory else ("", "")


def _of_losses(run: Run) -> Iterator[tuple[str, tuple[str, str]]]:
    train = run.values("train/loss")
    yield "training loss", (short(train[-1]), f"first {short(train[0])}") if train else ("", "")
    held_out = run.values("val/loss")
    yield "validation loss", (f"{held_out[-1]:.4g}", _beginning(held_out)) if held_out else ("", "")
    if held_out:
        yield "perplexity", (short(_exp(held_out[-1])), f"first {short(_exp(held_out[0]))}")
    names = [name for name in run.names() if name.startswith("val/") and name.endswith("/accuracy")]
    for name in names[:1]:
        values = run.values(name)
        yield "accuracy", (f"{values[-1]:.1%}", f"first {values[0]:.1%}") if values else ("", "")


def _of_rewards(run: Run) -> Iterator[tuple[str, tuple[str, str]]]:
    rewards = run.values("rl/reward/mean")
    yield "training reward", (f"{rewards[-1]:.3g}", _beginning(rewards)) if rewards else ("", "")
    for name in run.names():
        if not (name.startswith(_UP) and name.endswith("/reward")):
            continue
        values, errors = run.values(name), run.values(f"{name.removesuffix('/reward')}/standard_error")
        if values:
            error = f" ±{1.96 * errors[-1]:.2g}" if errors else ""
            label = name.removeprefix(_UP).removesuffix("/reward")
            yield f"held-out reward, {label}", (f"{values[-1]:.3g}{error}", _beginning(values))
    lengths = run.values("rl/completion/mean_len")
    yield "tokens a completion", (f"{lengths[-1]:.0f}", _beginning(lengths)) if lengths else ("", "")


def _beginning(values: Sequence[float]) -> str:
    return f"first {values[0]:.4g}" if len(values) > 1 else ""


def _tiles(run: Run) -> str:
    tiles = "".join(_tile(name, *found) for name, found in headlines(run).items())
    return f'<dl class="tiles">{tiles}</dl>'


def _tile(name: str, value: str, remark: str) -> str:
    shown = f'<dd class="note">{text(remark)}</dd>' if remark else ""
    return f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd>{shown}</div>"


def _comparison(runs: Sequence[Run]) -> str:
    of_runs = [headlines(run) for run in runs]
    titles = list(dict.fromkeys(name for found in of_runs for name in found))
    rows = [
        (run.name, state(run), *(found.get(title, ("", ""))[0] for title in titles))
        for run, found in zip(runs, of_runs, strict=True)
    ]
    return "<h2>Runs</h2>" + table(("run", "state", *titles), rows, "numbers")


def notes(run: Run) -> Iterator[tuple[str, str]]:
    """Return what somebody should look at, with how grave it is: `problem`, `warning` or `note`."""
    for name in run.names():
        broken = [step for step, value in run.series(name) if value is None or not math.isfinite(value)]
        if broken:
            level = "problem" if name in ("train/loss", "train/grad_norm", "val/loss") else "note"
            yield level, f"{name} was not a finite number in {len(broken):,} records, first at step {broken[0]:,}."
    if run.health:
        yield "warning", f"Steps that were skipped or out of line: {len(run.health):,} were saved; see Health."
    if not run.records:
        yield "warning", "No step was recorded: the run ended before its first log line."
    elif run.finished_step is None:
        goes_on = "starts again" if run.checkpoint_step is None else f"goes on from step {run.checkpoint_step:,}"
        yield "note", f"When this page was written the run had not finished. The same command {goes_on}."
    held_out = [(step, value) for step, value in run.series("val/loss") if value is not None]
    if len(held_out) > 2:
        best_step, best = min(held_out, key=lambda point: point[1])
        last_step, last = held_out[-1]
        if last > best * 1.01 and best_step != last_step:
            yield (
                "warning",
                f"Validation loss was lowest at step {best_step:,} ({best:.4g}) and is {last:.4g} at the end.",
            )


def _training_seconds(run: Run) -> float:
    """Return the seconds of all recorded steps."""
    total, before = 0.0, 0
    for step, seconds in run.series("speed/step_seconds"):
        total += (seconds or 0.0) * max(step - before, 0)
        before = step
    return total


def duration(seconds: float) -> str:
    """Write seconds as `12 s`, `4 min 05 s` or `3 h 07 min`; nothing where there are none."""
    if seconds <= 0 or not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700))
