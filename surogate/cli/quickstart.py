"""`surogate quickstart`: ask, train as `surogate sft configs/sft/quickstart.yaml` would, ask again, compare.

The one idea: nothing here trains. The run is the user's own command with a path or two overridden, so what the
quickstart shows is what `surogate sft` does.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from surogate.config.parts import ChatSpec
from surogate.config.read import read_config
from surogate.errors import CheckpointError, ConfigError
from surogate.locations import resolve
from surogate.models.inference import FoundModel, find_model
from surogate.quickstart import factbook
from surogate.quickstart.factbook import Question
from surogate.run_folder import RunFolder, read_json, write_json

CONFIG = Path("configs/sft/quickstart.yaml")
NUM_HELD_OUT_COUNTRIES = 60
DESCRIPTION = """\
Fine-tune SmolLM2-135M-Instruct with LoRA on short facts about countries, and ask about countries that training
never mentioned, before and after. Under 4 minutes of training on 2 CPU cores; no GPU, no hub. Run it again, and a
stopped run goes on, a finished one shows its result."""
EXAMPLE = """\
example:
  surogate quickstart
  surogate quickstart --seed 2 --output_dir output/quickstart-2"""


def main(argv: list[str]) -> int:
    """Run the quickstart."""
    arguments = _parser().parse_args(argv)
    from rich.console import Console

    from surogate.quickstart import report  # imports numpy

    console = Console(highlight=False)
    run = RunFolder(arguments.output_dir)
    config = _find_config()
    questions = _make_data(run, arguments.seed)
    console.print(f"\n[bold]1. Asking[/bold] {len(questions)} questions about held-out countries")
    before = _answers(run, "before", questions, _base(run, config))
    console.print("\n[bold]2. Training[/bold] an adapter on the other countries")
    _train(run, arguments.seed, config)
    console.print("\n[bold]3. Asking again[/bold]\n")
    after = _answers(run, "after", questions, find_model(str(run.path)))

    report.show_examples(console, questions, before, after)
    report.show_score(console, report.score(questions, before, after), questions)
    report.show_results(console, run, read_json(_record(run, "training")).get("seconds"))
    console.print(f"\nNext: {'surogate' if shutil.which('surogate') else sys.argv[0]} chat {run.path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="surogate quickstart",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="which countries are held out, and the run's train_seed")
    parser.add_argument("--output_dir", default="output/quickstart", help="folder for everything that is written")
    return parser


def _find_config() -> Path:
    """The quickstart's YAML, from the working folder or from the checkout that is installed."""
    for root in (Path(), Path(__file__).resolve().parents[2]):
        if (root / CONFIG).is_file():
            return root / CONFIG
    raise ConfigError(f"there is no {CONFIG} here; run surogate quickstart in a checkout of Surogate.")


def _make_data(run: RunFolder, seed: int) -> list[Question]:
    """Write the two datasets of a seed and return the held-out questions."""
    questions = factbook.read_questions(Path(resolve(factbook.LOCATION)))
    training, held_out = factbook.split_by_country(questions, NUM_HELD_OUT_COUNTRIES, seed)
    marker = _record(run, "seed")
    if (there := read_json(marker).get("seed", seed)) != seed:
        raise CheckpointError(
            f"{run.path} holds the quickstart with seed {there}, not {seed}. Choose another --output_dir, or remove "
            "that folder."
        )
    write_json(marker, {"seed": seed})
    factbook.write_jsonl(_data(run, "train"), training)
    factbook.write_jsonl(_data(run, "held_out"), held_out)
    return held_out


def _data(run: RunFolder, name: str) -> Path:
    return run.path / "data" / f"{name}.jsonl"


def _record(run: RunFolder, name: str) -> Path:
    """Where the quickstart keeps what a second call need not find out again."""
    return run.path / "quickstart" / f"{name}.json"


def _overrides(run: RunFolder, seed: int) -> list[str]:
    values = {
        "output_dir": run.path,
        "train_seed": seed,
        "datasets.0.path": _data(run, "train"),
        "validation_datasets.0.path": _data(run, "held_out"),
    }
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]


def _train(run: RunFolder, seed: int, config: Path) -> None:
    """Train, continue, or find the run finished; remember how long it took."""
    from surogate.cli import train

    was_finished, started = run.is_finished(), time.monotonic()
    train.run("sft", [str(config), *_overrides(run, seed)])
    if not was_finished:
        write_json(_record(run, "training"), {"seconds": time.monotonic() - started})


def _answers(run: RunFolder, moment: str, questions: Sequence[Question], found: FoundModel) -> list[str]:
    """Ask a model, unless its replies are already on record."""
    from surogate.quickstart.answers import answer_all

    path = _record(run, moment)
    asked = [question.instruction for question in questions]
    recorded = read_json(path)
    is_stale = any(folder.stat().st_mtime > path.stat().st_mtime for folder in found.adapters) if recorded else True
    if not is_stale and recorded["questions"] == asked:
        return list(recorded["replies"])
    replies = answer_all(found, asked)
    write_json(path, {"questions": asked, "replies": replies})
    return replies


def _base(run: RunFolder, config: Path) -> FoundModel:
    """The configuration's model before training, asked as the run will be."""
    settings = read_config("sft", config, _overrides(run, 0)).config
    return replace(find_model(settings.model), chat=ChatSpec(system=settings.system))
