from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from surogate import run_lock
from surogate.errors import CheckpointError, ConfigError
from surogate.run_folder import RunFolder
from surogate.run_lock import LOCK_FILE, lock_run_folder, run_folder_lock, unlock

HOLD = """
import sys, time
from surogate.run_lock import lock_run_folder
lock_run_folder(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "GRACE_SECONDS", 0.2)
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def start_holder(folder: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_second_process_is_told_who_writes_there_until_the_first_is_killed(tmp_path: Path) -> None:
    first = start_holder(tmp_path / "out")
    try:
        with pytest.raises(CheckpointError) as caught, run_folder_lock(tmp_path / "out"):
            pass
    finally:
        end(first)
    assert f"process {first.pid} on {os.uname().nodename}" in str(caught.value)
    assert str(caught.value).startswith(f"output_dir: {tmp_path / 'out'} is being written")
    with run_folder_lock(tmp_path / "out"):
        assert json.loads((tmp_path / "out" / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_lock_outlives_a_killed_process_for_a_moment_and_is_waited_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run_lock, "GRACE_SECONDS", 20.0)
    first = start_holder(tmp_path)
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {first.pid}"])
    with run_folder_lock(tmp_path):
        assert first.wait() == -signal.SIGKILL
    killer.wait()
    first.communicate()


def test_a_requeued_job_waits_longer_for_its_own_earlier_process(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    first = start_holder(tmp_path)
    killer = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {first.pid}"])
    with run_folder_lock(tmp_path):  # the grace of 0.2 seconds is over by then
        assert first.wait() == -signal.SIGKILL
    killer.wait()
    first.communicate()


def test_one_process_may_lock_a_folder_twice_and_frees_it_with_the_last(tmp_path: Path) -> None:
    with run_folder_lock(tmp_path), run_folder_lock(tmp_path / "." / "x" / ".."):
        pass
    end(start_holder(tmp_path))
    outer, inner = lock_run_folder(tmp_path), lock_run_folder(tmp_path)
    unlock(inner)
    assert is_locked(tmp_path)
    unlock(outer)
    assert not is_locked(tmp_path)


def is_locked(folder: Path) -> bool:
    with (folder / LOCK_FILE).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_forked_worker_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    locked = lock_run_folder(tmp_path)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, b"x")
        signal.pause()
    os.read(read, 1)  # by then the child has given up its copy
    unlock(locked)
    still_locked = is_locked(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    assert not still_locked


def test_a_checkpoint_dir_elsewhere_is_locked_too(tmp_path: Path) -> None:
    first = start_holder(tmp_path / "disk")
    try:
        with pytest.raises(CheckpointError, match=r"^checkpoint_dir: .*disk is being written"):
            lock_run_folder(tmp_path / "b", tmp_path / "disk")
    finally:
        end(first)
    assert not is_locked(tmp_path / "b"), "a refused command must not keep the other folder"
    with RunFolder(tmp_path / "b", tmp_path / "disk").lock():
        assert is_locked(tmp_path / "b") and is_locked(tmp_path / "disk")


@pytest.mark.parametrize("key", ["output_dir", "checkpoint_dir"])
def test_a_folder_that_cannot_be_made_is_told_by_its_key(tmp_path: Path, key: str) -> None:
    (tmp_path / "file").touch()
    folders = {"output_dir": tmp_path / "out", key: tmp_path / "file" / "deeper"}
    with pytest.raises(ConfigError, match=rf"^{key}: .*file/deeper cannot be made or written \(Not a directory\)"):
        lock_run_folder(**folders)
    with pytest.raises(ConfigError, match="a file is in the way"):
        lock_run_folder(tmp_path / "file")


def test_a_file_system_without_locks_is_said_and_the_run_goes_on(tmp_path: Path, monkeypatch, caplog) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_folder_lock(tmp_path):
        pass
    assert "knows no locks (No locks available)" in caplog.text


def test_other_ranks_touch_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with run_folder_lock(tmp_path / "out"):
        assert not (tmp_path / "out").exists()
