"""What the quickstart tells at its end, as text.

What is not here: the scores themselves (score.py). The one idea: examples are picked by their place alone, so they show
failures as often as the score does.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from surogate.quickstart.factbook import Question
from surogate.quickstart.score import Gain, gain, is_right
from surogate.run_folder import RunFolder

EXAMPLES_PER_TOPIC = 4
MAX_REPLY_LEN = 60
"""Characters of a reply that an example shows."""
MARKS = {True: "[green]✓[/green]", False: "[red]✗[/red]"}


def show_examples(console: Console, questions: Sequence[Question], before: Sequence[str], after: Sequence[str]) -> None:
    """Print some held-out questions with both replies."""
    for topic, indices in _by_topic(questions).items():
        table = Table("country", "expected", "before", "after", title=f"Examples: {topic}", box=SIMPLE, expand=True)
        for i in indices[:: max(len(indices) // EXAMPLES_PER_TOPIC, 1)][:EXAMPLES_PER_TOPIC]:
            expected = questions[i].output
            replies = [
                f"{MARKS[is_right(reply, expected)]} {escape(shorten(reply, MAX_REPLY_LEN, placeholder=' …'))}"
                for reply in (before[i], after[i])
            ]
            table.add_row(escape(questions[i].country), expected, *replies)
        console.print(table)


def score(questions: Sequence[Question], before: Sequence[str], after: Sequence[str]) -> dict[str, Gain]:
    """Return the gain of each topic, and of all questions under `all`."""
    gains = {}
    for topic, indices in {**_by_topic(questions), "all": range(len(questions))}.items():
        gains[topic] = gain(
            [is_right(before[i], questions[i].output) for i in indices],
            [is_right(after[i], questions[i].output) for i in indices],
            [questions[i].country for i in indices],
        )
    return gains


def show_score(console: Console, gains: dict[str, Gain], questions: Sequence[Question]) -> None:
    """Print the shares of right answers, and how sure their gain is."""
    num_countries = len({question.country for question in questions})
    title = f"Right answers to {len(questions)} questions about {num_countries} held-out countries"
    table = Table("topic", "before", "after", "gain, 95 % interval", title=title, box=SIMPLE)
    for topic, result in gains.items():
        interval = (
            f"{100 * (result.after - result.before):+.0f} points ({100 * result.low:+.0f} to {100 * result.high:+.0f})"
        )
        table.add_row(topic, f"{result.before:.0%}", f"{result.after:.0%}", interval)
    console.print(table)


def show_results(console: Console, run: RunFolder, seconds: float | None) -> None:
    """Print how long training took and where things lie."""
    if seconds is not None:
        console.print(f"\nTraining took {seconds:.0f} seconds, loading and validation included.")
    for name, path in {"adapter": run.adapter_dir, "loss curve": run.loss_png, "metrics": run.metrics_jsonl}.items():
        console.print(f"  {name:<12}{path}")


def _by_topic(questions: Sequence[Question]) -> dict[str, list[int]]:
    topics: dict[str, list[int]] = {}
    for i, question in enumerate(questions):
        topics.setdefault(question.topic, []).append(i)
    return topics
