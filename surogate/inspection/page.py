"""An inspection as one HTML page without a script.

What is not here: what is measured (measures.py), and what a page may do in a browser (html_page.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from surogate.html_page import text, write_page
from surogate.inspection.report import Finding, Histogram, PackingReport, Report, SourceReport
from surogate.inspection.row_samples import Piece, RowSample

_STYLE = """
:root {
  --ground: #fff; --card: #f6f7f8; --line: #e3e5e8; --ink: #1d2023; --quiet: #666d75;
  --bar: #2f8f5b; --supervised: #d3f0df; --supervised-ink: #0b5a30;
  --problem: #b3261e; --warning: #8a5a00; --note: #666d75;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #15171a; --card: #1d2024; --line: #2e3237; --ink: #e4e6e9; --quiet: #979ea7;
    --bar: #4bb37c; --supervised: #17402a; --supervised-ink: #b4ecc9;
    --problem: #ff8a80; --warning: #e5b567; --note: #979ea7;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 3.5rem 1.5rem 6rem; }
h1 { font-size: 1.9rem; font-weight: 600; letter-spacing: -0.01em; margin: 0; }
h2 { font-size: 1.15rem; font-weight: 600; margin: 3.5rem 0 1rem; }
h3 { font-size: 0.95rem; font-weight: 600; margin: 0 0 0.25rem; overflow-wrap: anywhere; }
p { margin: 0.25rem 0; }
.quiet, figcaption { color: var(--quiet); overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: 1.5rem; margin: 2.5rem 0 0; }
.tiles dt { color: var(--quiet); font-size: 0.85rem; }
.tiles dd { margin: 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.findings { list-style: none; margin: 0; padding: 0; }
.findings li { display: grid; grid-template-columns: 6rem 1fr; gap: 0.5rem; padding: 0.7rem 0;
  border-top: 1px solid var(--line); }
.findings li:last-child { border-bottom: 1px solid var(--line); }
.findings b { font-weight: 600; }
.findings span { overflow-wrap: anywhere; }
.problem b { color: var(--problem); } .warning b { color: var(--warning); } .note b { color: var(--note); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th, td { padding: 0.5rem 0 0.5rem 1.25rem; text-align: right; border-bottom: 1px solid var(--line);
  font-weight: inherit; white-space: nowrap; }
thead th { color: var(--quiet); font-size: 0.85rem; line-height: 1.3; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { padding-left: 0; text-align: left; white-space: normal; overflow-wrap: anywhere;
  min-width: 8rem; }
tfoot { font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 2.5rem; }
figure { margin: 0; }
figcaption { font-size: 0.9rem; margin-bottom: 0.75rem; }
svg { display: block; width: 100%; height: auto; }
svg rect { fill: var(--bar); }
svg rect:hover { opacity: 0.7; }
svg line { stroke: var(--line); }
svg text { fill: var(--quiet); font-size: 11px; }
.legend span, .row span.s { background: var(--supervised); color: var(--supervised-ink); }
.legend span { padding: 0.1rem 0.3rem; border-radius: 0.2rem; }
.row { margin: 1.75rem 0; }
.row pre { margin: 0.5rem 0 0; padding: 1.1rem 1.25rem; background: var(--card); border-radius: 0.5rem;
  color: var(--quiet); font: 0.86rem/1.75 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.row span.s { padding: 0.12rem 0; }
.row span.t { outline: 1px solid var(--line); outline-offset: -1px; border-radius: 0.2rem; font-weight: 600; }
.row span:hover { box-shadow: 0 0 0 1px var(--quiet); border-radius: 0.1rem; }
"""


def page(report: Report, title: str) -> str:
    """Write a report as a page.

    Args:
        report: of an inspection.
        title: what was inspected.
    """
    sections = [_tiles(report), _findings(report.findings)]
    if report.sources:
        sections += [_sources(report.sources), _histograms(report.sources)]
    if report.samples:
        sections.append(_samples(report.samples))
    return write_page(
        title=title, heading="Data inspection", subtitle=text(title), style=_STYLE, body="\n".join(sections)
    )


def _tiles(report: Report) -> str:
    if not report.packing:
        return ""
    train = [source for source in report.sources if source.role == "train"]
    tokens = sum(source.tokens for source in train)
    facts = {
        "rows to train on": f"{sum(source.rows for source in train):,}",
        "tokens": _short(tokens),
        "supervised": f"{sum(source.loss_tokens for source in train) / tokens:.1%}",
        **_packing_facts(report.packing),
    }
    return '<dl class="tiles">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts.items()) + "</dl>"


def _packing_facts(packing: PackingReport) -> dict[str, str]:
    return {
        f"packs of {packing.sequence_len:,} filled": f"{packing.efficiency:.1%}",
        "steps an epoch": f"{packing.steps:,}",
        "tokens a step": _short(packing.tokens_per_step),
    }


def _short(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{number:,.0f}"


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<h2>Findings</h2>\n<p>Nothing to remark.</p>"
    items = [
        f'<li class="{finding.level}"><b>{finding.level}</b><span>'
        f"{f'<strong>{text(finding.source)}:</strong> ' if finding.source else ''}{text(finding.text)}</span></li>"
        for finding in findings
    ]
    return '<h2>Findings</h2>\n<ul class="findings">\n' + "\n".join(items) + "\n</ul>"


_COLUMNS = ("source", "for", "rows", "documents", "tokens", "supervised", "median", "95%", "longest")
_CHECK_COLUMNS = (
    *("source", "for", "ends supervised", "all supervised", "none supervised", "too long", "tokens lost"),
    *("BOS twice", "unknown", "repeats", "shared"),
)
_MIX_COLUMNS = ("weight", "share of rows", "share of tokens", "times an epoch")


def _sources(sources: Sequence[SourceReport]) -> str:
    measures = _table(_COLUMNS, [_measures(source) for source in sources], _total(sources))
    train = [source for source in sources if source.role == "train"]
    rows = sum(source.rows * source.epochs for source in train)
    tokens = sum(source.drawn_tokens for source in train)
    mix = [
        (
            source.name,
            "" if source.weight is None else f"{source.weight:g}",
            f"{source.rows * source.epochs / rows:.1%}",
            f"{source.drawn_tokens / tokens:.1%}",
            f"{source.epochs:.2g}",
        )
        for source in train
    ]
    checks = _table(_CHECK_COLUMNS, [_checks(source) for source in sources])
    mixing = f"<h2>What an epoch draws</h2>\n{_table(('source', *_MIX_COLUMNS), mix)}" if len(train) > 1 else ""
    return f"<h2>Sources</h2>\n{measures}\n{mixing}\n<h2>Checks</h2>\n{checks}"


def _measures(source: SourceReport) -> tuple[str, ...]:
    return (
        source.name,
        source.role,
        f"{source.rows:,}",
        f"{source.documents:,}",
        f"{source.tokens:,}",
        f"{source.loss_tokens / source.tokens:.1%}",
        *(f"{source.percentile(percent):,}" for percent in (50, 95, 100)),
    )


def _checks(source: SourceReport) -> tuple[str, ...]:
    ended, of_all = source.ends
    counts = (
        source.full_rows,
        source.info["bad"],
        source.too_long,
        source.info["lost_tokens"],
        source.scan.double_bos,
        source.scan.unknown,
        source.repeats.within,
        source.repeats.across,
    )
    return (source.name, source.role, f"{ended:,} of {of_all:,}", *(f"{count:,}" for count in counts))


def _total(sources: Sequence[SourceReport]) -> tuple[str, ...]:
    train = [source for source in sources if source.role == "train"]
    if len(train) < 2:
        return ()
    counts = (sum(values) for values in zip(*((s.rows, s.documents, s.tokens) for s in train), strict=True))
    rows, documents, tokens = counts
    share = sum(source.loss_tokens for source in train) / tokens
    return ("all", "train", f"{rows:,}", f"{documents:,}", f"{tokens:,}", f"{share:.1%}", "", "", "")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], total: Sequence[str] = ()) -> str:
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "\n".join(
        f'<tr><th scope="row">{text(row[0])}</th>' + "".join(f"<td>{text(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    foot = "".join(f"<td>{text(cell)}</td>" for cell in total)
    foot = f"<tfoot><tr>{foot}</tr></tfoot>" if foot else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody>{foot}</table></div>'


def _histograms(sources: Sequence[SourceReport]) -> str:
    figures = []
    for source in sources:
        if source.role == "train":
            figures.append(_figure(f"{source.name}: tokens a row", source.lengths, "{:,.0f}"))
            figures.append(_figure(f"{source.name}: supervised share of a row", source.shares, "{:.0%}"))
    return '<h2>Distributions</h2>\n<div class="figures">\n' + "\n".join(figures) + "\n</div>"


_WIDTH, _HEIGHT, _AXIS = 440, 120, 18


def _figure(caption: str, histogram: Histogram, form: str) -> str:
    """Draw a histogram as an inline SVG whose bars say their count when pointed at."""
    most, width = max(histogram.counts), _WIDTH / len(histogram.counts)
    bars = []
    for place, count in enumerate(histogram.counts):
        low, high = (form.format(edge) for edge in histogram.edges[place : place + 2])
        height = max(count / most * (_HEIGHT - 8), 1.5) if count else 0
        bars.append(
            f'<rect x="{place * width + 1:.1f}" y="{_HEIGHT - height:.1f}" width="{width - 2:.1f}" '
            f'height="{height:.1f}" rx="1"><title>{low} to {high}: {count:,} rows</title></rect>'
        )
    half = len(histogram.counts) // 2
    first, middle, last = (form.format(histogram.edges[i]) for i in (0, half, -1))
    axis = (
        f'<line x1="0" y1="{_HEIGHT}" x2="{_WIDTH}" y2="{_HEIGHT}"/><text x="0" y="{_HEIGHT + 14}">{first}</text>'
        f'<text x="{half * width:g}" y="{_HEIGHT + 14}" text-anchor="middle">{middle}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 14}" text-anchor="end">{last}</text>'
    )
    return (
        f'<figure><figcaption>{text(caption)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT + _AXIS}" role="img" '
        f'aria-label="{text(caption)}">{"".join(bars)}{axis}</svg></figure>'
    )


def _samples(samples: Sequence[RowSample]) -> str:
    legend = (
        '<p class="quiet legend">The model learns to write what is <span>marked</span>; the rest it only reads. '
        "Frames are special tokens. Point at a token for its number and id.</p>"
    )
    return "<h2>Rows</h2>\n" + legend + "\n" + "\n".join(map(_row, samples))


def _row(sample: RowSample) -> str:
    facts = f"{sample.origin}, {sample.num_tokens:,} tokens, {sample.num_loss_tokens:,} supervised"
    return (
        f'<section class="row"><h3>{text(sample.source)}</h3><p class="quiet">{text(facts)}</p>'
        f"<pre>{''.join(map(_token, sample.pieces))}</pre></section>"
    )


def _token(piece: Piece) -> str:
    if not piece.token_ids:
        return escape(piece.text)
    classes = " ".join(["s"] * piece.supervised + ["t"] * piece.special)
    ids = " ".join(map(str, piece.token_ids))
    marks = ", supervised" if piece.supervised else ""
    kind = f' class="{classes}"' if classes else ""
    return f'<span{kind} title="token {piece.position}, id {ids}{marks}">{escape(piece.text)}</span>'
