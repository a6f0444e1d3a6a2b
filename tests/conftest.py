"""What holds for every test: no hub, GPU tests only on a GPU, and no skip that is not on the list.

The one idea: a skipped test is a test that nobody runs, so each needs a line in tests/allowed_skips.txt.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import mkdtemp

import pytest

# Threads that wait for each other in a loop take ten times as long where anything else wants a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

# Tokenised data of a test must not be found by the next one's run; subprocesses inherit the folder.
os.environ["SUROGATE_CACHE"] = CACHE = mkdtemp(prefix="surogate-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")
UNLISTED = pytest.StashKey[list[str]]()


@pytest.fixture(scope="module", autouse=True)
def what_a_module_started_ends_with_it() -> Iterator[None]:
    """W&B's process, which other tests would take for one of theirs."""
    yield
    if wandb := sys.modules.get("wandb"):
        wandb.teardown()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[UNLISTED] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.skipped and not (item.get_closest_marker("gpu") and is_allowed(item.nodeid)):
        item.config.stash[UNLISTED].append(item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    if report.skipped:
        collector.config.stash[UNLISTED].append(collector.nodeid)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.stash[UNLISTED] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if unlisted := config.stash[UNLISTED]:
        terminalreporter.section("skips that are not allowed", red=True)
        for nodeid in unlisted:
            terminalreporter.line(nodeid)
        terminalreporter.line(f"Make them run; only tests marked gpu may be listed in {ALLOWED_SKIPS.name}.")


def is_allowed(nodeid: str) -> bool:
    lines = ALLOWED_SKIPS.read_text().splitlines() if ALLOWED_SKIPS.exists() else []
    return any(fnmatchcase(nodeid, line.strip()) for line in lines if line.strip() and not line.startswith("#"))
