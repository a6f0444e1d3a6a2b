"""VllmServer: vLLM's OpenAI-compatible server as a child process: started, watched, ended.

What is not here: talking to it (vllm_client.py) and what its process does first (vllm_process.py). The one idea: the
server leads a session of its own, so that ending it ends all its processes, and the kernel ends it with its launcher.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from surogate.config.parts_grpo import InferenceSpec
from surogate.errors import ConfigError, GeneratorError
from surogate.rl.generators.checks import require_vllm
from surogate.rl.generators.vllm_arguments import ENVIRONMENT, ModelShape, engine_arguments, engine_environment
from surogate.rl.generators.vllm_process import DIE_WITH_PARENT

MODEL_NAME = "policy"
"""What requests call the base model."""
SERVED_ADAPTERS = 4
"""Adapters that the server keeps: requests that are running stay with the one that they began with."""
SECONDS_TO_END = 10.0
POLL_SECONDS = 0.25
LOG_LINES = 15


class VllmServer:
    """A server's process; not running before `launch`.

    Launch it in a thread that lives as long as the server should: the kernel kills it when that thread ends.

    Args:
        spec: of infer.yaml.
        model_dir: folder of the model.
        has_gpu: vLLM runs on a GPU.
        log_path: where its output goes; None leaves it on the console.
        start_timeout: seconds until it must answer.
        visible_gpus: numbers of the GPUs that it may use, as the machine counts them; None = those of this process.
    """

    def __init__(
        self,
        spec: InferenceSpec,
        model_dir: Path,
        *,
        has_gpu: bool,
        log_path: Path | None = None,
        start_timeout: float = 300,
        visible_gpus: Sequence[int] | None = None,
    ) -> None:
        self.url = f"http://{spec.host}:{spec.port}"
        self._spec = spec
        self._command = server_command(spec, model_dir, has_gpu=has_gpu)
        self._environment = server_environment(spec, model_dir, has_gpu=has_gpu)
        if visible_gpus is not None:
            self._environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, visible_gpus))
        self._log_path = log_path
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def exit_code(self) -> int | None:
        """Of the process; None while it runs, and before it is launched."""
        return None if self._process is None else self._process.poll()

    @property
    def is_running(self) -> bool:
        """Whether the process exists."""
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start the process; `wait` for it before use.

        Raises:
            ConfigError: vLLM is not installed, or the port is taken.
        """
        if self.is_running:
            return
        require_vllm()
        check_port(self._spec.host, self._spec.port)
        log = None if self._log_path is None else self._log_path.open("ab")
        self._process = subprocess.Popen(
            self._command,
            env=os.environ | self._environment | {DIE_WITH_PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=None if log is None else subprocess.STDOUT,
            start_new_session=True,
        )
        if log is not None:
            log.close()

    async def wait(self) -> None:
        """Wait until it answers.

        Raises:
            GeneratorError: it ended, or did not answer in time.
        """
        deadline = time.monotonic() + self._start_timeout
        while not await asyncio.to_thread(self._answers):
            if self.exit_code is not None:
                raise GeneratorError(f"the vLLM server ended with exit code {self.exit_code} at its start{self._log()}")
            if time.monotonic() > deadline:
                raise GeneratorError(f"the vLLM server did not answer in {self._start_timeout:g} s{self._log()}")
            await asyncio.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End it and every process of its session; may be called twice."""
        if self._process is None:
            return
        group = self._process.pid
        for ending in (signal.SIGTERM, signal.SIGKILL):
            if not is_group_alive(group):
                break
            os.killpg(group, ending)
            deadline = time.monotonic() + SECONDS_TO_END
            while time.monotonic() < deadline and is_group_alive(group):
                time.sleep(0.05)
        self._process.wait()

    def serve(self) -> int:
        """Run it until it ends or this process is told to end by SIGINT or SIGTERM; return the exit code."""
        told: list[int] = []

        def end(number: int, frame: FrameType | None) -> None:
            told.append(number)

        handlers = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.launch()
            while self.is_running and not told:
                time.sleep(POLL_SECONDS)
        finally:
            self.stop()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return 0 if told else int(self.exit_code or 0)

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.url}/health", timeout=5) as response:
                return response.status == 200
        except (URLError, OSError):
            return False

    def _log(self) -> str:
        """The end of the log, for an error."""
        if self._log_path is None:
            return ""
        lines = self._log_path.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "; its log, {}, ends with:\n{}".format(self._log_path, "\n".join(lines))


def is_group_alive(group: int) -> bool:
    """Whether a process group has a process that is more than an entry which nobody has asked about (a zombie)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member_of = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(member_of) == group and state not in ("Z", "X"):
            return True
    return False


def check_port(host: str, port: int) -> None:
    """Make sure that a server can listen on a port.

    Raises:
        ConfigError: something does already, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"the generator cannot listen on {host}:{port} ({error.strerror}): set another port in infer.yaml"
            ) from error


def usable_port(host: str, port: int) -> int:
    """Return the port where it is free, else one that is; for a server that nobody else needs to find."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for wanted in (port, 0):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, wanted))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    return port


def server_command(spec: InferenceSpec, model_dir: Path, *, has_gpu: bool) -> list[str]:
    """Return the command line of the server."""
    arguments: dict[str, Any] = {
        **engine_arguments(spec, model_dir, has_gpu=has_gpu),
        "host": spec.host,
        "port": spec.port,
        "served_model_name": MODEL_NAME,
        "enable_scale_out": True,
        "uvicorn_log_level": "warning",
    }
    if spec.enable_lora:
        arguments["max_cpu_loras"] = max(SERVED_ADAPTERS, arguments["max_cpu_loras"])
    if spec.dp > 1:
        arguments["data_parallel_size"] = spec.dp
    flags = [flag for key, value in arguments.items() for flag in as_flags(key, value)]
    return [sys.executable, "-m", "surogate.rl.generators.vllm_process", *flags]


def as_flags(key: str, value: Any) -> list[str]:
    """Spell an argument of vLLM's engine as its command line wants it."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", json.dumps(value) if isinstance(value, dict | list) else str(value)]


def server_environment(spec: InferenceSpec, model_dir: Path, *, has_gpu: bool) -> dict[str, str]:
    """Return the environment variables of the server, beside this process's own."""
    wanted = {**ENVIRONMENT, "VLLM_LOGGING_LEVEL": "INFO"}
    if not has_gpu:
        # `auto` keeps a core for itself: 125 tokens/s on two cores, where these give 178
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        wanted["VLLM_CPU_OMP_THREADS_BIND"] = "nobind" if "OMP_NUM_THREADS" in os.environ else cores
    defaults = {key: value for key, value in wanted.items() if key not in os.environ}
    always = {
        **engine_environment(spec, ModelShape.read(model_dir)),
        # adapters, and the endpoints that exchange weights; both are unauthenticated, so `host` should be private
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_SERVER_DEV_MODE": "1",
    }
    return defaults | always
