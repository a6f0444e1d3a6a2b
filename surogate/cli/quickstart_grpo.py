"""`surogate quickstart-grpo`: reinforcement learning on a small real model, and what it changed.

The one idea: nothing here trains. The run is `surogate grpo` with the three files of configs/grpo/arithmetic and a path
or two overridden, and its own evaluations before the first step and after the last one are what is compared.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from surogate.errors import ConfigError
from surogate.run_folder import RunFolder, read_json, write_json

CONFIGS = Path("configs/grpo/arithmetic")
DESCRIPTION = """\
Teach SmolLM2-135M-Instruct one-digit arithmetic by rewards alone: a vLLM engine in this process samples answers, right
ones get 1, and LoRA makes them likelier (GRPO). Before and after, it is asked questions that training never showed. No
GPU, no hub. Run it again, and a stopped run goes on, a finished one shows its result."""
EXAMPLE = """\
example:
  surogate quickstart-grpo
  surogate quickstart-grpo --seed 2 --output_dir output/quickstart-grpo-2
  surogate quickstart-grpo --train.qlora_bnb true --output_dir output/quickstart-grpo-nf4"""


def main(argv: list[str]) -> int:
    """Run the quickstart."""
    arguments, overrides = _parser().parse_known_args(argv)
    run = RunFolder(arguments.output_dir)
    _train(run, arguments.seed, overrides)
    from rich.console import Console

    from surogate.quickstart import rewards  # imports numpy

    console = Console(highlight=False)
    before, after = rewards.first_and_last(run)
    rewards.show_curve(console, run)
    rewards.show_examples(console, before, after)
    rewards.show_gain(console, before, after)
    rewards.show_results(console, run, read_json(_record(run)).get("seconds"))
    command = "surogate" if shutil.which("surogate") else sys.argv[0]
    prompt = r"3 + 4 = 7\n9 - 2 = 7\n2 * 3 = 6\n4 + 4 ="
    console.print(f"\nNext: {command} generate {run.path} --raw --prompt '{prompt}'", soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="surogate quickstart-grpo",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seed", type=int, default=0, help="the run's train_seed")
    parser.add_argument("--output_dir", default="output/quickstart-grpo", help="folder for everything that is written")
    return parser


def _find_configs() -> Path:
    """The quickstart's files, from the working folder or from the checkout that is installed."""
    for root in (Path(), Path(__file__).resolve().parents[2]):
        if (root / CONFIGS).is_dir():
            return root / CONFIGS
    raise ConfigError(f"there is no {CONFIGS} here; run surogate quickstart-grpo in a checkout of Surogate.")


def _record(run: RunFolder) -> Path:
    return run.path / "quickstart" / "training.json"


def _train(run: RunFolder, seed: int, overrides: list[str]) -> None:
    """Train, continue, or find the run finished; remember how long it took."""
    from surogate.cli import grpo

    folder = _find_configs()
    files = [part for name in ("train", "infer", "orch") for part in (f"--{name}", str(folder / f"{name}.yaml"))]
    own = ["--train.output_dir", str(run.path), "--train.train_seed", str(seed)]
    was_finished, started = run.is_finished(), time.monotonic()
    grpo.main([*files, *own, *overrides])
    if not was_finished:
        write_json(_record(run), {"seconds": time.monotonic() - started})
