"""A page of HTML that opens without a network: light and dark, and closed to whatever its content would like to do.

The one idea: whatever comes from data passes through `text`, which leaves nothing that a browser would obey, and the
page forbids itself to load anything, and to run anything but its own script, which it names by its digest.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape

from surogate.visible_text import visible

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
<h1>{heading}</h1>
<p class="quiet">{subtitle}</p>
</header>
{body}
</main>
{script}</body>
</html>
"""


def text(value: object) -> str:
    """Return a value so that a browser shows it and obeys nothing in it."""
    return escape(visible(str(value)))


def write_page(*, title: str, heading: str, subtitle: str, style: str, body: str, script: str = "") -> str:
    """Put a page together.

    Args:
        title: of the browser's tab.
        heading: the first line.
        subtitle: HTML under it.
        style: CSS.
        body: HTML.
        script: JavaScript that runs at the end.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    return _PAGE.format(
        policy=policy,
        title=text(title),
        heading=text(heading),
        subtitle=subtitle,
        style=style,
        body=body,
        script=f"<script>{script}</script>\n" if script else "",
    )
