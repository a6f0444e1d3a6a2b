"""The first lines of a vLLM server's process: end with the launcher, then become vLLM.

    python -m surogate.rl.generators.vllm_process --model ...

Nothing heavy may be imported here. The one idea: importing vLLM takes ten seconds, in which a launcher can be killed;
so the kernel is told at once that this process must not outlive it.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal

DIE_WITH_PARENT = "SUROGATE_VLLM_DIES_WITH_PARENT"
"""Environment variable with the launcher's process id; the processes that the server starts end with their own parent
(vllm_worker.register)."""
SERVER_MODULE = "vllm.entrypoints.openai.api_server"


def die_with_parent(parent: int | None) -> None:
    """Have the kernel kill this process when the thread that started it ends; at once where the parent is gone already.

    vLLM's engine processes outlive a server that is killed. Linux only, like vLLM.

    Args:
        parent: process id of the parent when this process was started.
    """
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    # A batch system signals all processes of a job ahead of its end, and the trainer finishes its step with this one.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if parent := os.environ.get(DIE_WITH_PARENT):
        die_with_parent(int(parent))
    runpy.run_module(SERVER_MODULE, run_name="__main__", alter_sys=True)
