"""`surogate env`: what this machine can do, in a second or two, without torch."""

from __future__ import annotations

import argparse
import json

from surogate.machine.survey import survey
from surogate.machine.text import to_text

DESCRIPTION = """\
Say what this machine can do: GPUs and driver, which recipes, storage formats and kernels are native, emulated or
unavailable and why, the packages with their versions and how to install what is missing, releases that are known to be
bad, cores, memory, disks, SLURM. The exit code is 1 where something must be changed."""
EXAMPLES = """\
examples:
  surogate env
  surogate env --json > environment.json
  surogate env --full        # also imports torch and tries each GPU"""


def main(argv: list[str]) -> int:
    """Print the survey; 0 where nothing must be changed."""
    parser = argparse.ArgumentParser(
        prog="surogate env",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON, whose keys stay")
    parser.add_argument("--full", action="store_true", help="import torch and what stands on it, and try each GPU")
    options = parser.parse_args(argv)
    result = survey(full=options.full)
    print(json.dumps(result, indent=2) if options.json else to_text(result), end="\n" if options.json else "")
    return 1 if result["problems"] else 0
