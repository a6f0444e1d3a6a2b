"""The command line answers without loading torch: the cause of its speed, tested instead of a time."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["torch", "lightning", "transformers", "peft", "datasets", "numpy", "matplotlib"]
VERBS = ["sft", "fit", "validate", "submit", "chat", "generate", "quickstart", "report", "dashboard", "env", "verify"]

PROBE = """
import sys
{statement}
loaded = [name for name in {heavy} if name in sys.modules]
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""

RUN_MAIN = """
from surogate.cli.main import main
try:
    main({argv})
except SystemExit as exit:
    assert not exit.code, exit.code
"""


def run_and_look(statement: str) -> subprocess.CompletedProcess[str]:
    code = PROBE.format(statement=statement, heavy=HEAVY)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["surogate", "surogate.errors", "surogate.config.read", "surogate.run_folder"])
def test_importing_a_light_module_does_not_load_torch(module: str):
    result = run_and_look(f"import {module}")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("argv", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_does_not_load_torch(argv: list[str]):
    result = run_and_look(RUN_MAIN.format(argv=argv))
    assert result.returncode == 0, result.stderr
    assert "surogate" in result.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_shows_an_example(verb: str):
    result = run_and_look(RUN_MAIN.format(argv=[verb, "--help"]))
    assert f"surogate {verb} " in result.stdout or f"surogate {verb}\n" in result.stdout
    assert "xample" in result.stdout
