"""What `surogate quickstart-grpo` tells at its end: the reward curve, answers and right answers before and after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from surogate.errors import CheckpointError
from surogate.quickstart.report import MARKS
from surogate.quickstart.score import gain
from surogate.run_folder import RunFolder

Rows = list[dict[str, Any]]

_NUM_EXAMPLES = 8
_BLOCKS = "▁▂▃▄▅▆▇█"


def first_and_last(run: RunFolder) -> tuple[Rows, Rows]:
    """Return the rollouts of the evaluations before the first step and after the last.

    Raises:
        CheckpointError: the run has not got so far.
    """
    paths = sorted(run.evaluations_dir.glob("step_*.jsonl"))
    if len(paths) < 2:
        raise CheckpointError(f"{run.path} has {len(paths)} evaluations; two are needed. Remove it and start again.")
    return _read(paths[0]), _read(paths[-1])


def _read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def show_curve(console: Console, run: RunFolder) -> None:
    """Print the mean reward of each step as a line of bars."""
    records = [json.loads(line) for line in run.metrics_jsonl.read_text(encoding="utf-8").splitlines()]
    rewards = [record["rl/reward/mean"] for record in records if record.get("rl/reward/mean") is not None]
    bars = "".join(_BLOCKS[min(int(reward * len(_BLOCKS)), len(_BLOCKS) - 1)] for reward in rewards)
    console.print(f"\nMean reward of the {len(rewards)} steps: {rewards[0]:.2f} {bars} {rewards[-1]:.2f}")


def show_examples(console: Console, before: Rows, after: Rows) -> None:
    """Print some held-out questions with an answer from before and one from after."""
    table = Table("question", "before", "after", title="Held-out questions", box=SIMPLE)
    firsts = _firsts(before)
    later = dict(_firsts(after))
    for example, row in firsts[:: max(len(firsts) // _NUM_EXAMPLES, 1)][:_NUM_EXAMPLES]:
        table.add_row(escape(_question(row)), *(_answer(answer) for answer in (row, later[example])))
    console.print(table)


def _firsts(rows: Rows) -> list[tuple[str, dict[str, Any]]]:
    """Return the first rollout of each example."""
    return list({row["example"]: row for row in reversed(rows)}.items())[::-1]


def _question(row: dict[str, Any]) -> str:
    return str(row["prompt"]).rpartition("\n")[2]


def _answer(row: dict[str, Any]) -> str:
    return f"{MARKS[row['reward'] == 1]} {escape(row['completion'].strip().partition(chr(10))[0])}"


def show_gain(console: Console, before: Rows, after: Rows) -> None:
    """Print the shares of right answers, and how sure their gain is; questions are what is drawn again."""
    result = gain(_right(before), _right(after), [row["example"] for row in before])
    interval = (
        f"{100 * (result.after - result.before):+.0f} points ({100 * result.low:+.0f} to {100 * result.high:+.0f})"
    )
    num_questions = len({row["example"] for row in before})
    title = f"Right answers to {num_questions} held-out questions, {len(before)} answers"
    table = Table("before", "after", "gain, 95 % interval", title=title, box=SIMPLE)
    table.add_row(f"{result.before:.0%}", f"{result.after:.0%}", interval)
    console.print(table)


def _right(rows: Sequence[dict[str, Any]]) -> list[bool]:
    return [row["reward"] == 1 for row in rows]


def show_results(console: Console, run: RunFolder, seconds: float | None) -> None:
    """Print how long training took and where things lie."""
    if seconds is not None:
        console.print(f"\nTraining took {seconds:.0f} seconds, loading and evaluation included.")
    places = {
        "adapter": run.adapter_dir,
        "reward curve": run.reward_png,
        "metrics": run.metrics_jsonl,
        "rollouts": run.rollouts_dir,
    }
    for name, path in places.items():
        console.print(f"  {name:<14}{path}")
