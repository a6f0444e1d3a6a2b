from __future__ import annotations

import json
from pathlib import Path

import pytest

from surogate.cli import env
from surogate.machine import host
from surogate.machine import survey as module
from surogate.machine.gpus import Gpu, Gpus
from surogate.machine.survey import SCHEMA, survey
from surogate.machine.text import to_text

KEYS = {
    "schema", "surogate", "python", "gpus", "driver", "torch_cuda", "devices", "packages", "cpu", "memory", "disks",
    "slurm", "problems",
}  # fmt: skip
L4 = Gpu(index=1, name="NVIDIA L4", capability=(8, 9), memory_gib=22.5)
H100 = Gpu(index=0, name="NVIDIA H100 80GB HBM3", capability=(9, 0), memory_gib=79.6)


def with_gpus(*gpus: Gpu, cuda: tuple[int, int] | None = (13, 0), problem: str | None = None) -> Gpus:
    return Gpus(gpus=list(gpus), driver="580.65.06", cuda=cuda, source="nvml", problem=problem)


def test_the_keys_of_the_json_stay() -> None:
    found = survey(gpus=with_gpus(H100))
    assert found["schema"] == SCHEMA == 1
    assert found.keys() == KEYS
    assert found["gpus"][0] == {"index": 0, "name": H100.name, "capability": "9.0", "memory_gib": 79.6}
    assert found["devices"][0].keys() == {"device", "capability", "abilities"}
    assert found["devices"][0]["abilities"][0].keys() == {"kind", "name", "status", "why"}
    assert found["packages"][0].keys() == {"name", "version", "wanted", "needed_for", "state", "note"}
    assert found["cpu"].keys() == {"name", "cores", "usable_cores", "bfloat16"}
    assert found["memory"].keys() == {"total_gib", "free_gib"}
    assert found["disks"][0].keys() == {"for", "path", "free_gib", "total_gib"}
    assert found["slurm"].keys() == {"sbatch", "srun", "inside"}
    assert json.loads(json.dumps(found)) == found


def test_each_kind_of_gpu_is_a_device_and_the_cpu_is_one_where_there_is_none() -> None:
    several = survey(gpus=with_gpus(H100, L4, H100))
    assert [device["capability"] for device in several["devices"]] == ["9.0", "8.9"]
    assert [device["device"] for device in survey(gpus=Gpus())["devices"]] == ["CPU"]


@pytest.mark.parametrize(
    ("gpus", "cuda", "said"),
    [
        (with_gpus(H100), None, "build without CUDA"),
        (with_gpus(H100, cuda=(12, 8)), "13.0", "built for CUDA 13.0, and the driver 580.65.06 serves up to 12.8"),
        (with_gpus(problem="GPU is lost"), "13.0", "does not answer (GPU is lost)"),
        (with_gpus(Gpu(index=0, name="V100", capability=(7, 0), memory_gib=32)), "13.0", "kernels need 8.0"),
    ],
)
def test_what_keeps_a_gpu_from_being_used_is_a_problem(gpus: Gpus, cuda: str | None, said: str, monkeypatch) -> None:
    monkeypatch.setattr(module, "torch_cuda", lambda: cuda)
    (problem,) = survey(gpus=gpus)["problems"]
    assert said in problem
    assert f"! {problem}" in to_text(survey(gpus=gpus))


def test_a_gpu_whose_torch_fits_is_no_problem(monkeypatch) -> None:
    monkeypatch.setattr(module, "torch_cuda", lambda: "12.8")
    assert survey(gpus=with_gpus(H100))["problems"] == []
    assert "Nothing must be changed." in to_text(survey(gpus=with_gpus(H100)))


def test_the_exit_code_says_whether_something_must_be_changed(monkeypatch, capsys) -> None:
    assert env.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == KEYS
    monkeypatch.setattr(module, "find_gpus", lambda: with_gpus(problem="GPU is lost"))
    assert env.main([]) == 1
    assert "GPU is lost" in capsys.readouterr().out


def test_full_adds_what_torch_says(capsys) -> None:
    import torch

    assert env.main(["--full", "--json"]) == 0
    probe = json.loads(capsys.readouterr().out)["probe"]
    assert probe["torch"] == torch.__version__ and probe["imports"]["lightning"] == "ok"
    assert f"torch {torch.__version__}" in to_text(survey(full=True))


def test_a_container_has_the_cores_and_the_memory_of_its_limits(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: Some CPU\nflags\t\t: fpu avx512_bf16\n")
    (tmp_path / "meminfo").write_text("MemTotal: 67108864 kB\nMemAvailable: 33554432 kB\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{16 * 2**30}\n")
    (tmp_path / "memory.current").write_text(f"{4 * 2**30}\n")
    cpu = host.describe_cpu(tmp_path, tmp_path)
    assert (cpu["name"], cpu["usable_cores"], cpu["bfloat16"]) == ("Some CPU", 0.5, True)
    assert host.describe_memory(tmp_path, tmp_path) == {"total_gib": 16.0, "free_gib": 12.0}
    (tmp_path / "memory.max").write_text("max\n")
    assert host.describe_memory(tmp_path, tmp_path)["total_gib"] == 64.0


def test_a_job_of_slurm_is_told() -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_PARTITION": "gpu"}
    assert host.describe_slurm(job)["inside"] == {"job": "7", "nodes": "2", "partition": "gpu"}
    assert host.describe_slurm({})["inside"] is None
