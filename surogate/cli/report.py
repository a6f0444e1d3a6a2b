"""`surogate report RUN [RUN...]`: one page of one run, or of several side by side, that opens without a network."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from surogate import __version__
from surogate.errors import ConfigError

PAGE = "report.html"
DESCRIPTION = """\
Write a run as one HTML page: curves, throughput, memory, data, samples, settings, environment. Several runs are laid
over each other, with where their settings differ. The page needs no network and can be sent to somebody. It works
while a run goes on, and after one that crashed."""
EXAMPLES = """\
examples:
  surogate report output
  surogate report output/a output/b output/c --output comparison.html"""


def main(argv: list[str]) -> int:
    """Write a report."""
    options = _parser().parse_args(argv)
    from surogate.report.page import page
    from surogate.report.runs import read_runs

    runs = read_runs(options.runs)
    default = Path(options.runs[0]) / PAGE if len(runs) == 1 else Path(PAGE)
    path = Path(options.output) if options.output else default
    draft = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(page(runs, __version__), encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise ConfigError(f"--output: {path} could not be written: {error.strerror}. Name another file.") from error
    print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="surogate report",
        usage="surogate report RUN [RUN ...] [--output PAGE.HTML]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run: its output_dir")
    parser.add_argument(
        "--output", metavar="PAGE.HTML", help=f"default RUN/{PAGE}; with several runs {PAGE} in the working folder"
    )
    return parser
