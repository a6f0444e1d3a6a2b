"""`surogate verify resume` and `surogate verify loss`: proofs on the user's own configuration, model and data."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from surogate.config.flat import SCHEMAS, TrainConfig
from surogate.config.launcher import launcher
from surogate.config.lower import to_environment, to_lightning
from surogate.config.read import likely_verb, read_config
from surogate.config.slurm import DistributedSpec
from surogate.errors import ConfigError

NUM_STEPS = 5
DESCRIPTION = """\
Prove on a configuration, with its own model and data, what training relies on. Everything happens in a temporary folder
beside output_dir; the run itself is left alone. The exit code is 1 where the proof fails.

  resume   2N steps in one go against N steps, a new process, and N more: losses, weights, optimizer and data position
  loss     one global batch with other micro-batch sizes, packing, recompute, LM head pieces and attention kernels"""
EXAMPLES = """\
examples:
  surogate verify resume cfg.yaml
  surogate verify resume cfg.yaml --steps 20 --gpus 2
  surogate verify loss cfg.yaml --model_dtype float32"""


def main(argv: list[str]) -> int:
    """Verify a configuration; 0 where it holds."""
    _refuse_grpo(argv)
    options, overrides = _parser().parse_known_args(argv)
    if (found := launcher()) is not None:
        raise ConfigError(f"surogate verify starts its runs itself; {found.name} must not start it as well. Set gpus.")
    mode = options.mode or likely_verb(options.config)
    config: TrainConfig = read_config(mode, options.config, overrides).config
    # On this machine, however many the run itself is for.
    devices = config.distributed.gpus_per_node or config.gpus
    config = replace(config, distributed=DistributedSpec(), gpus=devices)
    os.environ.update(to_environment(config))
    from surogate.verification.launching import stops_on_signals

    with stops_on_signals(), _folder_beside(Path(config.output_dir), keep=options.keep) as folder:
        return {"resume": _resume, "loss": _loss}[options.what](config, folder, options.steps)


def _refuse_grpo(argv: list[str]) -> None:
    if {"--train", "--infer", "--orch"} & {argument.partition("=")[0] for argument in argv}:
        raise ConfigError(
            "surogate verify takes a configuration of sft or pt. What a GRPO run learns from is sampled by an engine "
            "whose order of work is not repeated; its own checks are in docs/guides/rl-training.md."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="surogate verify",
        usage="surogate verify resume|loss CFG.YAML [--mode sft|pt] [--steps N] [--keep] [--key value ...]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=["resume", "loss"], help="what to prove")
    parser.add_argument("config", metavar="CFG.YAML", help="flat configuration of the run")
    parser.add_argument("--mode", choices=sorted(SCHEMAS), help="its verb; default pt where all data is text, else sft")
    parser.add_argument(
        "--steps",
        type=_positive,
        default=NUM_STEPS,
        help=f"resume: steps before and after the stop; default {NUM_STEPS}",
    )
    parser.add_argument("--keep", action="store_true", help="leave the temporary folder, with the output of the runs")
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


@contextmanager
def _folder_beside(output_dir: Path, *, keep: bool) -> Iterator[Path]:
    """Give an empty folder on the disk of output_dir, which is removed at the end.

    Raises:
        ConfigError: there is none to be made there.
    """
    try:
        output_dir.absolute().parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{output_dir.name}.verify-", dir=output_dir.absolute().parent))
    except OSError as error:
        raise ConfigError(f"output_dir: no folder can be made beside {output_dir} ({error.strerror}).") from error
    try:
        yield folder
    finally:
        if keep:
            print(f"Kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _resume(config: TrainConfig, folder: Path, num_steps: int) -> int:
    from surogate.verification.launching import Launcher
    from surogate.verification.resume import verify_resume
    from surogate.verification.text import resume_text

    report = verify_resume(config, folder, num_steps, Launcher(folder))
    print(resume_text(report), end="")
    return 1 if report.verdict == "broken" else 0


def _loss(config: TrainConfig, folder: Path, num_steps: int) -> int:
    from surogate.cli.fit import launch
    from surogate.verification.invariance import Measured
    from surogate.verification.text import loss_text

    try:
        launch(loss_configuration(config, folder))
    except Measured as measured:
        print(loss_text(measured.report), end="")
        return 0 if measured.report.is_invariant else 1
    raise ConfigError("The data holds no batch to measure.")


def loss_configuration(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Return the nested configuration that measures the first batch on one device, and nothing besides."""
    alone: dict[str, Any] = {"output_dir": str(folder), "gpus": 1, "zero_level": 1, "report_to": [], "log_file": None}
    nested = to_lightning(replace(config, **alone, lora_dropout=0.0))
    init_args = {
        "micro_batch_size": config.per_device_train_batch_size,
        "sequence_len": config.sequence_len,
        "is_packed": config.sample_packing,
    }
    callback = {"class_path": "surogate.verification.invariance.LossInvariance", "init_args": init_args}
    nested["trainer"] |= {"callbacks": [callback], "limit_val_batches": 0, "num_sanity_val_steps": 0}
    return nested
