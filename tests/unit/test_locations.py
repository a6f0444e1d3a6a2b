from __future__ import annotations

from pathlib import Path

import pytest

from surogate.errors import DataError, ModelError
from surogate.locations import is_hub_id, resolve, without_credentials


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


def test_a_url_is_for_data_sets_only() -> None:
    assert resolve("s3://bucket/rows.jsonl", urls=True) == "s3://bucket/rows.jsonl"
    with pytest.raises(DataError, match=r"pkg://package/file and a hub id"):
        resolve("s3://bucket/rows.jsonl")


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "two words.jsonl").write_text("{}")
    assert resolve(f"file://{tmp_path}/two%20words.jsonl", urls=True) == tmp_path / "two words.jsonl"
    with pytest.raises(DataError, match="does not exist"):
        resolve(f"file://{tmp_path}/nothing", urls=True)


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("https://ada:secret@host/a/b.jsonl?sig=secret#secret", "https://host/a/b.jsonl"),
        ("s3://key:sec/ret@bucket/x", "s3://key:sec/ret@bucket/x"),
        ("simplecache::s3://bucket/x", "simplecache::s3://bucket/x"),
        (
            "404 for url='https://host/x?token=secret', twice: ftp://a:b@h",
            "404 for url='https://host/x', twice: ftp://h",
        ),
        ("/no/url?really", "/no/url?really"),
    ],
)
def test_a_url_is_shown_without_its_secrets(text: str, public: str) -> None:
    assert without_credentials(text) == public


def test_a_refused_url_is_shown_without_its_secrets() -> None:
    with pytest.raises(ModelError) as error:
        resolve("https://ada:secret@host/model?token=secret", ModelError)
    assert "secret" not in str(error.value)


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
