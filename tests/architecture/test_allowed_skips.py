from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"


@pytest.fixture
def run(tmp_path: Path):
    """Run a test file under the repository's conftest, with an allow-list."""

    def run_file(source: str, allowed: str = "") -> subprocess.CompletedProcess[str]:
        (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
        (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs CUDA\n")
        (tmp_path / "allowed_skips.txt").write_text(allowed)
        (tmp_path / "test_it.py").write_text(source)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
        env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    return run_file


def test_an_unlisted_skip_fails_the_run(run):
    result = run("import pytest\ndef test_a(): pytest.skip('later')\ndef test_b(): pass\n")
    assert result.returncode == pytest.ExitCode.TESTS_FAILED
    assert "skips that are not allowed" in result.stdout
    assert "\ntest_it.py::test_a\n" in result.stdout


def test_an_expected_failure_fails_the_run(run):
    result = run("import pytest\n@pytest.mark.xfail\ndef test_a(): assert False\n")
    assert result.returncode == pytest.ExitCode.TESTS_FAILED


def test_a_skipped_module_fails_the_run(run):
    result = run("import pytest\npytest.importorskip('no_such_package')\ndef test_a(): pass\n")
    assert result.returncode != pytest.ExitCode.OK


def test_listing_a_skip_is_not_enough_where_the_test_does_not_need_a_gpu(run):
    result = run("import pytest\ndef test_a(): pytest.skip('later')\n", allowed="test_it.py::test_a\n")
    assert result.returncode == pytest.ExitCode.TESTS_FAILED


def test_a_listed_gpu_test_may_be_skipped(run):
    source = "import pytest\n@pytest.mark.gpu\ndef test_a(): pytest.skip('no device')\n"
    assert run(source, allowed="# why\ntest_it.py::test_*\n").returncode == pytest.ExitCode.OK
    assert run(source, allowed="").returncode == pytest.ExitCode.TESTS_FAILED


def test_a_run_without_skips_passes(run):
    assert run("def test_a(): pass\n").returncode == pytest.ExitCode.OK
