"""`surogate inspect cfg.yaml`: the data of a run, on the terminal and as a page, before anything is trained.

What is not here: what is measured (inspection/measures.py) and the page (inspection/page.py). The one idea: the data
module is made from the same lowered configuration as the run's own, so it reads and fills the same cache.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surogate.config.flat import SCHEMAS, TrainConfig
from surogate.config.lower import to_environment, to_lightning
from surogate.config.parts import BatchSpec, ChatSpec, DatasetSpec
from surogate.config.read import likely_verb, read_config
from surogate.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from surogate.inspection.report import Finding, Histogram, Report, SourceReport
    from surogate.inspection.row_samples import RowSample

PAGE = "inspect.html"
DESCRIPTION = """\
Tokenise the data of a run as `surogate sft` or `surogate pt` would, and look at it: what is supervised, what is cut or
left out, how rows end, repeats and leaks, how full the packs are, and some rows with their mask. The exit code is 1
where something must be changed before training."""
EXAMPLES = """\
examples:
  surogate inspect cfg.yaml
  surogate inspect cfg.yaml --sequence_len 2048 --samples 10
  surogate inspect pretraining.yaml --output data.html"""

_STYLES = {"problem": "bold red", "warning": "yellow", "note": "dim"}
_SIGNS = {"problem": "✗", "warning": "!", "note": "·"}
_BARS = " ▁▂▃▄▅▆▇█"


def main(argv: list[str]) -> int:
    """Inspect the data of a configuration; 0 where nothing must be changed."""
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        raise ConfigError("Name the configuration first: surogate inspect cfg.yaml [--key value ...]")
    options, overrides = _parser().parse_known_args(argv)
    mode = options.mode or likely_verb(options.config)
    config = read_config(mode, options.config, overrides).config
    os.environ.update(to_environment(config))
    from rich.console import Console

    from surogate.inspection.page import page

    report = _inspect(config, options.samples)
    console = Console(highlight=False)
    show(console, report)
    path = Path(options.output or Path(config.output_dir) / PAGE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(report, f"{options.config}, {mode}, {config.model}"), encoding="utf-8")
    console.print(f"\nThe same as a page: {path}", markup=False, soft_wrap=True)
    return 1 if report.has_problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="surogate inspect",
        usage="surogate inspect CFG.YAML [--mode sft|pt] [--samples N] [--output PAGE.HTML] [--key value ...]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CFG.YAML", help="flat configuration of the run")
    parser.add_argument("--mode", choices=sorted(SCHEMAS), help="its verb; default pt where all data is text, else sft")
    parser.add_argument("--samples", type=_not_negative, default=3, help="rows to show of each source; default 3")
    parser.add_argument("--output", metavar="PAGE.HTML", help=f"default OUTPUT_DIR/{PAGE}")
    return parser


def _not_negative(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _inspect(config: TrainConfig, samples: int) -> Report:
    """Make the data module of a run and inspect it; a row that cannot be used is a finding too."""
    from surogate.inspection.measures import DataSettings, inspect
    from surogate.inspection.report import Finding, Report

    data, settings = data_module(to_lightning(config)["data"])
    try:
        data.prepare_data()
        data.setup()
    except DataError as error:
        return Report(findings=[Finding("problem", "", str(error))])
    return inspect(data, DataSettings(**settings), samples)


def data_module(nested: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Make the data module of a lowered configuration, and give the specs that it was made with."""
    arguments = dict(nested["init_args"])
    specs = {
        "datasets": [DatasetSpec(**values) for values in arguments["datasets"]],
        "validation_datasets": [DatasetSpec(**values) for values in arguments["validation_datasets"]],
        "batch": BatchSpec(**arguments["batch"]),
        "chat": ChatSpec(**arguments["chat"]),
    }
    module, _, name = nested["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**{**arguments, **specs}), specs


def show(console: Console, report: Report) -> None:
    """Print a report."""
    if report.sources:
        console.print(_table(report.sources))
        for source in report.sources:
            if source.role == "train":
                console.print(_distributions(source))
    if packing := report.packing:
        console.print(
            f"\nA pack of {packing.sequence_len:,} tokens is {packing.efficiency:.1%} full. An epoch is "
            f"{packing.steps:,} optimizer steps of {packing.tokens_per_step:,.0f} tokens on one device."
        )
    console.print()
    for finding in report.findings:
        console.print(_line(finding))
    if not report.findings:
        console.print("Nothing to remark.")
    for sample in report.samples:
        console.print()
        console.print(_heading(sample))
        console.print(_marked(sample, with_colour=console.color_system is not None and not console.no_color))


def _table(sources: Sequence[SourceReport]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    from surogate.inspection.row_samples import visible

    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("source", overflow="fold")
    table.add_column("for")
    for title in ("rows", "documents", "tokens", "supervised", "epochs"):
        table.add_column(title, justify="right", no_wrap=True)
    for source in sources:
        table.add_row(
            Text(visible(source.name)),
            source.role,
            f"{source.rows:,}",
            f"{source.documents:,}",
            f"{source.tokens:,}",
            f"{source.loss_tokens / source.tokens:.1%}",
            f"{source.epochs:.2g}" if source.role == "train" else "",
        )
    return table


def _distributions(source: SourceReport) -> Text:
    """Draw both histograms of a source, each as one line."""
    from rich.text import Text

    from surogate.inspection.row_samples import visible

    ended, turns = source.ends
    shortest, median, long, longest = map(source.percentile, (0, 50, 95, 100))
    return Text.assemble(
        (visible(source.name), "bold"),
        ("\n  tokens a row      ", "dim"),
        (_sparkline(source.lengths), "green"),
        f"  {shortest:,} to {longest:,}, median {median:,}, 95% up to {long:,}",
        ("\n  supervised share  ", "dim"),
        (_sparkline(source.shares), "green"),
        f"  {source.mean_share:.1%} on average, {source.full_rows:,} rows from end to end",
        ("\n  ends supervised   ", "dim"),
        f"{ended:,} of {turns:,} {'texts' if source.is_text else 'turns'}",
    )


def _sparkline(histogram: Histogram) -> str:
    most = max(histogram.counts)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in histogram.counts)


def _line(finding: Finding) -> Text:
    from rich.text import Text

    from surogate.inspection.row_samples import visible

    sign = f"{_SIGNS[finding.level]} {finding.level}  "
    return Text.assemble((sign, _STYLES[finding.level]), visible(str(finding)))


def _heading(sample: RowSample) -> Text:
    from rich.text import Text

    from surogate.inspection.row_samples import visible

    text = f"{sample.source}, {sample.origin}: {sample.num_loss_tokens:,} of {sample.num_tokens:,} tokens supervised"
    return Text(visible(text), style="bold")


def _marked(sample: RowSample, *, with_colour: bool) -> Text:
    """Write a row: supervised in green, the rest dim, special tokens reversed; without colour, supervised in ⟦ ⟧."""
    from rich.text import Text

    text = Text()
    for supervised, pieces in groupby(sample.pieces, key=lambda piece: piece.supervised):
        style = "green" if supervised else "dim"
        before, after = ("⟦", "⟧") if supervised and not with_colour else ("", "")
        text.append(before)
        for piece in pieces:
            text.append(piece.text, f"{style} reverse" if piece.special else style)
        text.append(after)
    return text
