"""Model locations and the fingerprint of their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny import save_tiny_model

from surogate.errors import ModelError
from surogate.models.source import ModelSource


def test_a_folder_a_gguf_file_and_a_hub_id_are_told_apart(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    assert ModelSource.of(str(folder)).folder == str(folder)
    assert (ModelSource.of(str(gguf)).folder, ModelSource.of(str(gguf)).gguf_file) == (str(tmp_path), "model.gguf")
    assert not ModelSource.of("Qwen/Qwen3-0.6B").is_local


@pytest.mark.parametrize("location", ["", "pkg://no_such_package/file.gguf"])
def test_a_location_that_is_nothing_is_an_error_with_advice(location: str) -> None:
    with pytest.raises(ModelError):
        ModelSource.of(location)


def test_a_folder_without_config_and_a_file_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ModelError, match=r"config\.json"):
        ModelSource.of(str(tmp_path))
    with pytest.raises(ModelError, match="neither"):
        ModelSource.of(str(tmp_path / "weights.bin"))


def test_the_fingerprint_follows_the_weights_not_the_folder(tmp_path: Path) -> None:
    prints = [
        ModelSource.of(str(save_tiny_model(tmp_path / name, seed=seed))).fingerprint()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert prints[0] == prints[1] != prints[2]
