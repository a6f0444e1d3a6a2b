"""What a package says it offers is there, and class paths in saved configurations stay short."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import surogate

PACKAGES = [
    "surogate",
    *(f"surogate.{module.name}" for module in pkgutil.iter_modules(surogate.__path__) if module.ispkg),
]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_exported_name_exists(name: str):
    package = importlib.import_module(name)
    exported = getattr(package, "__all__", [])
    assert not [export for export in exported if not hasattr(package, export)]
    assert list(exported) == sorted(exported)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_says_what_it_is_for(name: str):
    assert importlib.import_module(name).__doc__
