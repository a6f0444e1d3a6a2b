"""Starting and ending a server's process, with processes that are not vLLM's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from surogate.config.parts_grpo import InferenceSpec
from surogate.errors import ConfigError, GeneratorError
from surogate.rl.generators.vllm_process import DIE_WITH_PARENT
from surogate.rl.generators.vllm_server import (
    VllmServer,
    as_flags,
    is_group_alive,
    server_command,
    server_environment,
)

SECONDS = 10


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def server_of(model_dir: Path, script: str, start_timeout: float = SECONDS) -> VllmServer:
    """A server whose process runs a Python script in the place of vLLM."""
    spec = InferenceSpec(port=free_port())
    log_path = model_dir / "server.log"
    server = VllmServer(spec, model_dir, has_gpu=False, log_path=log_path, start_timeout=start_timeout)
    server._command = [sys.executable, "-c", script]
    return server


WITH_CHILD = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""


def wait_for(text: str, path: Path) -> str:
    deadline = time.monotonic() + SECONDS
    while text not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text()


def test_every_flag_is_one_of_vllms_server(model_dir: Path) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    spec = InferenceSpec(
        dp=2, tp=2, kv_cache_gib=1.0, enable_prefix_caching=False, vllm={"compilation_config": {"level": 0}}
    )
    parser = make_arg_parser(FlexibleArgumentParser())
    known = {option for action in parser._actions for option in action.option_strings}
    flags = [part for part in server_command(spec, model_dir, has_gpu=True) if part.startswith("--")]
    assert {"--no-enable-prefix-caching", "--enable-scale-out", "--data-parallel-size"} <= set(flags)
    assert set(flags) <= known


def test_values_are_spelled_as_the_command_line_wants_them() -> None:
    assert as_flags("enforce_eager", True) == ["--enforce-eager"]
    assert as_flags("enforce_eager", False) == ["--no-enforce-eager"]
    assert as_flags("config", {"a": [1]}) == ["--config", '{"a": [1]}']
    assert as_flags("port", 1) == ["--port", "1"]


def test_the_environment_keeps_what_the_user_set(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "VLLM_LOGGING_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    environment = server_environment(InferenceSpec(), model_dir, has_gpu=False)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"].split(",")[0].isdigit()
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    environment = server_environment(InferenceSpec(), model_dir, has_gpu=False)
    assert "OMP_WAIT_POLICY" not in environment
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in server_environment(InferenceSpec(), model_dir, has_gpu=True)


def test_a_port_that_is_taken_is_told_before_anything_starts(model_dir: Path) -> None:
    server = server_of(model_dir, "")
    with socket.socket() as other:
        other.bind(("127.0.0.1", server._spec.port))
        other.listen()
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{server._spec.port} \(Address already"):
            server.launch()
    assert server.exit_code is None


def test_a_server_that_ends_at_its_start_is_told_with_its_last_words(model_dir: Path) -> None:
    server = server_of(model_dir, "import sys; sys.exit('out of memory')")
    server.launch()
    with pytest.raises(GeneratorError, match=r"exit code 1 at its start; its log, .*, ends with:\nout of memory"):
        asyncio.run(server.wait())


def test_a_server_that_never_answers_is_given_up(model_dir: Path) -> None:
    server = server_of(model_dir, "import time; time.sleep(600)", start_timeout=0.1)
    server.launch()
    try:
        with pytest.raises(GeneratorError, match=r"did not answer in 0\.1 s"):
            asyncio.run(server.wait())
    finally:
        server.stop()
    assert server.exit_code == -signal.SIGTERM


def test_stopping_ends_every_process_of_the_session(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surogate.rl.generators.vllm_server.SECONDS_TO_END", 0.2)
    server = server_of(model_dir, WITH_CHILD)
    server.stop()
    server.launch()
    wait_for("child", model_dir / "server.log")
    assert server._process is not None
    group = server._process.pid
    assert is_group_alive(group)
    server.stop()
    server.stop()
    assert not is_group_alive(group)
    assert server.exit_code == -signal.SIGKILL


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_dies_with_its_launcher(tmp_path: Path, ending: signal.Signals) -> None:
    process = (
        "import os, time; from surogate.rl.generators.vllm_process import *;"
        f"die_with_parent(int(os.environ[{DIE_WITH_PARENT!r}]));"
        "print('child', os.getpid(), flush=True); time.sleep(600)"
    )
    launcher = (
        "import os, subprocess, sys, time;"
        f"subprocess.Popen([sys.executable, '-c', {process!r}], start_new_session=True,"
        f" env=os.environ | {{{DIE_WITH_PARENT!r}: str(os.getpid())}}); time.sleep(600)"
    )
    log = tmp_path / "log"
    with log.open("w") as file:
        parent = subprocess.Popen([sys.executable, "-c", launcher], stdout=file)
    child = int(wait_for("\n", log).split()[1])
    assert is_group_alive(child)
    parent.send_signal(ending)
    parent.wait()
    deadline = time.monotonic() + SECONDS
    while is_group_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_whose_launcher_is_gone_already_ends_at_once() -> None:
    script = "from surogate.rl.generators.vllm_process import die_with_parent; die_with_parent(1 << 30)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL


def test_serving_ends_with_the_server_or_with_a_signal(model_dir: Path) -> None:
    assert server_of(model_dir, "import sys; sys.exit(3)").serve() == 3
    parent = os.getpid()
    told = server_of(model_dir, f"import os, signal, time; os.kill({parent}, signal.SIGINT); time.sleep(600)")
    assert told.serve() == 0
    assert not told.is_running
