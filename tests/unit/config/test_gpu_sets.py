"""GPUs are named by number, and must be there."""

from __future__ import annotations

from pathlib import Path

import pytest

from surogate.config.flat_grpo import InferConfig
from surogate.config.gpu_sets import GpuSets, check_gpus, gpu_sets, usable_gpus
from surogate.errors import ConfigError

LISTING = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aa11)
  MIG 1g.10gb     Device  0: (UUID: MIG-ff00)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bb22)
GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-bb33)
"""


@pytest.fixture
def three_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && cat <<'EOT'\n{LISTING}EOT\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


@pytest.mark.parametrize(
    ("visible", "usable"),
    [
        (None, (0, 1, 2)),
        ("2,0", (2, 0)),
        ("1,7,0", (1,)),
        ("", ()),
        ("-1", ()),
        ("GPU-aa, 2", (0, 2)),
        ("GPU-bb", ()),
    ],
)
@pytest.mark.usefixtures("three_gpus")
def test_the_usable_gpus_are_those_that_cuda_would_show(visible: str | None, usable: tuple[int, ...]) -> None:
    assert usable_gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == usable


def test_without_the_driver_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"--vllm-gpus names GPU 0; .*on this machine: none\. Leave both options out"):
        check_gpus(GpuSets((0,), (1,)), InferConfig(), [], {})
    with pytest.raises(ConfigError, match=r"tp 2 x dp 1 of infer\.yaml needs 2 GPUs, and there are 0"):
        check_gpus(None, InferConfig(tp=2), [], {})
    check_gpus(None, InferConfig(), [], {})


@pytest.mark.usefixtures("three_gpus")
def test_gpus_that_are_not_there_are_refused() -> None:
    check_gpus(GpuSets((0, 1), (2,)), InferConfig(tp=2), [], {})
    with pytest.raises(ConfigError, match=r"--trainer-gpus names GPU 3, 4; .* on this machine: 0, 1, 2\."):
        check_gpus(GpuSets((0,), (3, 4)), InferConfig(), [], {})
    with pytest.raises(ConfigError, match=r"names GPU 0; .* that CUDA_VISIBLE_DEVICES \(1,2\) leaves: 1, 2\."):
        check_gpus(GpuSets((0,), (1,)), InferConfig(), [], {"CUDA_VISIBLE_DEVICES": "1,2"})
    with pytest.raises(ConfigError, match=r"tp 2 x dp 2 of infer\.yaml needs 4 GPUs, and --vllm-gpus names 2"):
        check_gpus(GpuSets((0, 1), (2,)), InferConfig(tp=2, dp=2), [], {})


def test_gpus_of_a_server_that_is_not_the_runs_cannot_be_named() -> None:
    with pytest.raises(ConfigError, match=r"client\.base_url names others"):
        check_gpus(GpuSets((0,), (1,)), InferConfig(), ["http://node:8000"], {})
    check_gpus(None, InferConfig(tp=8), ["http://node:8000"], {})


def test_copies_need_a_server() -> None:
    with pytest.raises(ConfigError, match=r"dp 2 of infer\.yaml needs a server"):
        check_gpus(None, InferConfig(dp=2), [], {})


@pytest.mark.parametrize(
    ("vllm", "trainer", "message"),
    [("0", None, "go together"), ("0", "a", "must be numbers"), ("0,1", "1", "overlap in 1")],
)
def test_the_options_are_two_lists_without_a_common_number(vllm: str, trainer: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gpu_sets(vllm, trainer)
