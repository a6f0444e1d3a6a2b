"""The page of a report, put together.

What is not here: its parts, and what it may do in a browser (html_page.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from surogate.html_page import text, write_page
from surogate.report.charts import figures
from surogate.report.facts import data, environment, health, settings
from surogate.report.runs import Run
from surogate.report.samples import samples
from surogate.report.style import SCRIPT, STYLE
from surogate.report.summary import state, summary

_FOOTER = """\
<footer>Written by surogate {version}. Curves of many steps are thinned; the smallest and the largest value of each
stretch stay. Every number is in metrics.jsonl of the run.</footer>"""


def page(runs: Sequence[Run], version: str) -> str:
    """Write some runs as a page.

    Args:
        runs: one, or several to lay over each other.
        version: of surogate.
    """
    sections = [
        summary(runs),
        _curves(runs),
        health(runs),
        samples(runs),
        data(runs),
        settings(runs),
        environment(runs),
    ]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return write_page(
        title=title,
        heading=title,
        subtitle=_subtitle(runs),
        style=STYLE,
        body="\n".join([*filter(None, sections), _FOOTER.format(version=text(version))]),
        script=SCRIPT,
    )


def _subtitle(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return text(" · ".join(run.name for run in runs))
    (run,) = runs
    is_finished = "finished" if run.finished_step is not None else "stopped"
    model = next((run.settings[key] for key in ("model", "train.model") if key in run.settings), "")
    rest = " · ".join(text(part) for part in (model, run.path) if part)
    return f'<span class="state {is_finished}">{text(state(run))}</span> · {rest}'


def _curves(runs: Sequence[Run]) -> str:
    drawn, further = figures(runs)
    if not drawn and not further:
        return ""
    parts = ["<h2>Curves</h2>", '<p class="quiet">Over optimizer steps.</p>', _grid("charts", drawn)]
    if further:
        grid = _grid("charts small", further)
        parts.append(f"<details><summary>Further metrics: {len(further)}</summary>{grid}</details>")
    return "\n".join(parts)


def _grid(classes: str, drawn: Sequence[str]) -> str:
    return "\n".join([f'<div class="{classes}">', *drawn, "</div>"])
