"""The page of a report, put together.

What is not here: its parts. The one idea: the page forbids itself to load anything, and to run anything but its own
script, which it names by its digest.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from surogate.report.charts import figures
from surogate.report.facts import data, environment, health, settings
from surogate.report.runs import Run
from surogate.report.samples import samples
from surogate.report.style import SCRIPT, STYLE
from surogate.report.summary import state, summary
from surogate.report.text import text

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header>
<h1>{title}</h1>
<p class="quiet">{subtitle}</p>
</header>
{body}
<footer>Written by surogate {version}. Curves of many steps are thinned; the smallest and the largest value of each
stretch stay. Every number is in metrics.jsonl of the run.</footer>
</main>
<script>{script}</script>
</body>
</html>
"""


def page(runs: Sequence[Run], version: str) -> str:
    """Write some runs as a page.

    Args:
        runs: one, or several to lay over each other.
        version: of surogate.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    sections = [
        summary(runs),
        _curves(runs),
        health(runs),
        samples(runs),
        data(runs),
        settings(runs),
        environment(runs),
    ]
    return _PAGE.format(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        title=text(runs[0].name if len(runs) == 1 else f"{len(runs)} runs"),
        subtitle=_subtitle(runs),
        style=STYLE,
        script=SCRIPT,
        version=text(version),
        body="\n".join(filter(None, sections)),
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
