"""A real SLURM cluster on this machine: munged, slurmctld and two slurmd on loopback, all state in one folder.

`python tests/slurm/cluster.py FOLDER` starts one, prints how to use it, and stops it with Ctrl-C. Debian's packages
`slurm-wlm` and `munge` are all it needs; nothing outside the folder is read or written. Nothing is ended by name: the
daemons leave their pids in files, and the processes of a job are known by their environment.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("n1", "n2")
START_SECONDS = 60

# A requeued job waits until the credential of its last start has expired (2 minutes by default), and a lost node is
# noticed after SlurmdTimeout (5 minutes by default).
CONF = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000
ReturnToService=2
JobRequeue=1
MpiDefault=none
SlurmdTimeout=10
KillWait=5
MessageTimeout=5
BatchStartTimeout=10
PropagateResourceLimits=NONE
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs.

    Attributes:
        folder: of its configuration, logs, pids and state.
        environ: with what every command of SLURM finds it.
    """

    folder: Path
    environ: dict[str, str]

    def ask(self, *command: str) -> str:
        """Run a command of SLURM and return what it prints."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of SLURM, whatever comes of it."""
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False, timeout=60)

    def state(self, job: str) -> str:
        """Return a job's state, such as RUNNING; `` where it is gone."""
        return _field(self._show(job), "JobState")

    def restarts(self, job: str) -> int:
        """Return how often a job was started again."""
        return int(_field(self._show(job), "Restarts") or 0)

    def _show(self, job: str) -> str:
        done = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job],
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node."""
        subprocess.run(["slurmd", "-N", name], env=self.environ, check=True)

    def kill_node(self, name: str) -> None:
        """End a node as a power cut would: its slurmd, the managers of its steps and their processes, all at once."""
        pids = [_pid(self.folder / f"slurmd-{name}.pid"), *self._processes_on(name)]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _processes_on(self, node: str) -> list[int]:
        """Return the processes of jobs on a node, and the slurmstepd that started each."""
        found: set[int] = set()
        marks = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.environ['SLURM_CONF']}".encode()}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(OSError):
                if marks <= set((entry / "environ").read_bytes().split(b"\0")):
                    found.add(int(entry.name))
                    parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                    if Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd"):
                        found.add(int(parent))
        return sorted(found)


def missing() -> list[str]:
    """Return the programs that are not installed."""
    programs = (*DAEMONS, "sbatch", "srun", "scontrol")
    return [name for name in programs if shutil.which(name, path=_path()) is None]


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Start a cluster of two nodes, and stop it in the end.

    Args:
        folder: for everything of it; a short path, since a socket lies there.
    """
    folder.chmod(0o755)
    (folder / "state").mkdir()
    conf = folder / "slurm.conf"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    environ |= {"SLURM_CONF": str(conf)}
    environ["PATH"] = _path()
    cluster = Cluster(folder, environ)
    with ExitStack() as stack:
        stack.callback(_stop_all, cluster)
        _start_munge(folder)
        ports = _free_ports(1 + len(NODES))
        host = socket.gethostname().partition(".")[0]
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN"
            for name, port in zip(NODES, ports[1:], strict=True)
        )
        names = ",".join(NODES)
        conf.write_text(
            CONF.format(folder=folder, host=host, user=_user(), ctld_port=ports[0], nodes=nodes, names=names)
        )
        subprocess.run(["slurmctld"], env=environ, check=True)
        for name in NODES:
            cluster.start_node(name)
        wait_until(lambda: _idle(cluster) == len(NODES), START_SECONDS, lambda: _logs(folder))
        yield cluster


def wait_until(is_so: Callable[[], object], seconds: float, explain: Callable[[], str], every: float = 0.1) -> None:
    """Wait for something, and fail with an explanation where it does not come in time."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds} s\n{explain()}"
        time.sleep(every)


def _start_munge(folder: Path) -> None:
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "log-file": "munged.log"}
    options = [f"--{name}={folder / file}" for name, file in (files | {"seed-file": "munged.seed"}).items()]
    subprocess.run(
        ["munged", "--force", *options], env=os.environ | {"PATH": _path()}, check=True, stderr=subprocess.DEVNULL
    )


def _idle(cluster: Cluster) -> int:
    """Count the nodes that wait for work."""
    return cluster.run("sinfo", "--noheader", "--Node", "--format", "%T").stdout.split().count("idle")


def _stop_all(cluster: Cluster) -> None:
    """Cancel what still runs, end the daemons by their pids, and wait for them."""
    if (cluster.folder / "slurmctld.pid").exists():
        cluster.run("scancel", "--user", _user())
    for name in NODES:
        for pid in cluster._processes_on(name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    names = [*(f"slurmd-{name}" for name in NODES), "slurmctld", "munged"]
    pids = [_pid(file) for name in names if (file := cluster.folder / f"{name}.pid").exists()]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 30, lambda: _logs(cluster.folder))


def _path() -> str:
    """Return PATH with the folders that daemons lie in, which users other than root may lack."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _pid(file: Path) -> int:
    return int(file.read_text())


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _field(line: str, name: str) -> str:
    return next((part.partition("=")[2] for part in line.split() if part.startswith(f"{name}=")), "")


def _logs(folder: Path) -> str:
    return "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(folder.glob("*.log")))


def main() -> None:
    """Keep a cluster until Ctrl-C."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    with running(folder), suppress(KeyboardInterrupt):
        print(f"export SLURM_CONF={folder}/slurm.conf", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
