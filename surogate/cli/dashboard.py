"""`surogate dashboard wandb`: a W&B workspace with the charts that this kind of run fills."""

from __future__ import annotations

import argparse

from surogate.errors import ConfigError
from surogate.report.workspace import KINDS, workspace

DESCRIPTION = """\
Make a workspace in a W&B project: charts by section, units, sensible axes, the tables of samples. It is a view beside
those that are there; nothing is changed or removed. Needs a login (`wandb login`) and the packages of
`pip install 'surogate[wandb]'`. Without an account, `surogate report RUN` shows the same charts as a page."""
EXAMPLES = """\
examples:
  surogate dashboard wandb --kind sft
  surogate dashboard wandb --kind grpo --entity my-team --project arithmetic"""


def main(argv: list[str]) -> int:
    """Make a workspace."""
    options = _parser().parse_args(argv)
    made = workspace(options.kind, options.entity or _default_entity(), options.project)
    import wandb

    try:
        made.save()
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise ConfigError(
            f"W&B did not take the workspace for {made.entity}/{made.project}: {' '.join(str(error).split())} Look at "
            "--entity and --project; the project exists once a run with report_to: [wandb] has been there."
        ) from error
    print(made.url)
    return 0


def _default_entity() -> str:
    """Ask W&B whose login this is."""
    import wandb

    try:
        entity = wandb.Api().default_entity
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise ConfigError(
            f"W&B does not say who is logged in ({' '.join(str(error).split())}). Log in with `wandb login`, or set "
            "WANDB_API_KEY."
        ) from error
    if not entity:
        raise ConfigError("W&B knows no default entity of this login. Name one with --entity.")
    return str(entity)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="surogate dashboard",
        usage="surogate dashboard wandb [--kind pt|sft|grpo] [--project NAME] [--entity NAME]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("service", choices=["wandb"], help="where the dashboard is made")
    parser.add_argument(
        "--kind", choices=KINDS, default="sft", help="of the runs; sft is qlora too; default %(default)s"
    )
    parser.add_argument("--project", default="surogate", help="project of W&B; default %(default)s, as of runs")
    parser.add_argument("--entity", help="account or team of W&B; default that of the login")
    return parser
