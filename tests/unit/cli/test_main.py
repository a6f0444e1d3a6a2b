from __future__ import annotations

import errno
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from surogate import __version__
from surogate.cli import main as command
from surogate.errors import CheckpointError, ConfigError, DataError, HardwareError, ModelError, Stopped


@pytest.fixture
def verb_that(monkeypatch: pytest.MonkeyPatch):
    """Make `surogate sft` do something else."""

    def replace(action):
        monkeypatch.setattr(command.importlib, "import_module", lambda name: SimpleNamespace(main=action))

    return replace


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_verbs(argv, capsys):
    assert command.main(argv) == 0
    assert "surogate VERB --help" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"surogate {__version__}\n"


def test_a_full_disk_is_a_sentence_wherever_it_is_met_and_other_errors_of_the_system_are_not(verb_that, capsys):
    def fail(error):
        def action(argv):
            raise error

        verb_that(action)
        return command.main(["sft", "cfg.yaml"])

    assert fail(OSError(errno.ENOSPC, "No space left on device", "out/metrics.jsonl")) == CheckpointError.exit_code
    assert capsys.readouterr().err == (
        "error: out/metrics.jsonl could not be written: No space left on device. "
        "Make room; the same command then continues.\n"
    )
    assert fail(OSError(errno.ENOSPC, "No space left on device")) == CheckpointError.exit_code
    assert "A file of the run could not be written" in capsys.readouterr().err
    with pytest.raises(PermissionError):
        fail(PermissionError(errno.EACCES, "Permission denied"))


@pytest.mark.parametrize(("typed", "meant"), [("stf", "sft"), ("validat", "validate"), ("grop", "grpo")])
def test_an_unknown_verb_names_its_neighbour(typed, meant, capsys):
    assert command.main([typed, "cfg.yaml"]) == 2
    assert capsys.readouterr().err == f"error: {typed!r} is not a verb. Did you mean {meant}?\n"


@pytest.mark.parametrize("verb", ["dpo"])
def test_a_verb_that_has_not_landed_is_named_in_one_sentence(verb, capsys):
    assert command.main([verb, "cfg.yaml"]) == 2
    assert capsys.readouterr().err.startswith(f"error: surogate {verb} is not there yet: ")


@pytest.mark.parametrize("error", [ConfigError, DataError, ModelError, CheckpointError, HardwareError])
def test_an_error_for_the_user_is_printed_without_a_traceback(error, verb_that, capsys):
    def fail(argv):
        raise error("what happened and what to do")

    verb_that(fail)
    assert command.main(["sft", "cfg.yaml"]) == error.exit_code
    assert capsys.readouterr().err == "error: what happened and what to do\n"


def test_an_error_of_ours_keeps_its_traceback(verb_that):
    def fail(argv):
        raise RuntimeError("a bug")

    verb_that(fail)
    with pytest.raises(RuntimeError):
        command.main(["sft", "cfg.yaml"])


def test_another_rank_says_the_first_line_only(verb_that, capsys, monkeypatch):
    def fail(argv):
        raise DataError("first\nsecond")

    verb_that(fail)
    monkeypatch.setenv("LOCAL_RANK", "1")
    command.main(["sft", "cfg.yaml"])
    assert capsys.readouterr().err == "rank 1: first\n"


def test_an_interrupt_exits_as_shells_expect(verb_that, capsys):
    def interrupt(argv):
        raise KeyboardInterrupt

    verb_that(interrupt)
    assert command.main(["sft", "cfg.yaml"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_verb_gets_its_arguments_and_gives_the_exit_code(verb_that):
    verb_that(lambda argv: len(argv))
    assert command.main(["sft", "cfg.yaml", "--lora_rank", "3"]) == 3


def test_python_dash_m_is_the_same_command():
    result = subprocess.run([sys.executable, "-m", "surogate", "nope"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "error: 'nope' is not a verb. `surogate --help` lists all verbs.\n"


@pytest.mark.parametrize(("agreed", "rank", "code"), [(True, "1", 0), (False, "1", 143), (True, "0", 143)])
def test_a_rank_that_lightning_started_ends_with_0_once_all_have_agreed_to_stop(
    verb_that, agreed, rank, code, monkeypatch, capsys
):
    def stop(argv):
        monkeypatch.setattr(command.STOP_SIGNALS, "is_agreed", agreed)
        raise Stopped(signal.SIGTERM)

    verb_that(stop)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert command.main(["sft"]) == code
    assert capsys.readouterr().err == ("stopped by SIGTERM\n" if rank == "0" else "")
