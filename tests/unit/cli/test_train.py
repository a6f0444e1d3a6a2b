from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from surogate import run_lock
from surogate.cli import train
from surogate.errors import ConfigError


@pytest.fixture
def launched(tmp_path, monkeypatch) -> dict[str, Any]:
    """What `surogate sft` hands to launch, in a folder with cfg.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "cfg.yaml").write_text("model: some/model\ndatasets: [{path: rows.jsonl}]\n")
    seen: dict[str, Any] = {}

    def launch(nested, files):
        seen.update(nested=nested, files=files)
        return 0

    monkeypatch.setitem(sys.modules, "surogate.cli.fit", SimpleNamespace(launch=launch))
    return seen


def test_a_flat_configuration_is_read_lowered_and_launched(launched):
    assert train.run("sft", ["cfg.yaml", "--lora_rank", "4"]) == 0
    assert launched["nested"]["model"]["init_args"]["lora"]["rank"] == 4
    assert "lora_rank: 4  # command line" in launched["files"]["surogate.yaml"]


def test_each_verb_has_its_own_schema(launched):
    assert train.run("pt", ["cfg.yaml"]) == 0
    assert launched["nested"]["model"]["class_path"] == "surogate.modes.PtModule"
    assert launched["files"]["surogate.yaml"].startswith("# What `surogate pt` was asked for")


def test_print_config_shows_the_nested_form_and_launches_nothing(launched, capsys):
    assert train.run("sft", ["cfg.yaml", "--print_config", "--lora_rank", "4"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["lora"]["rank"] == 4
    assert not launched


def test_the_hub_token_reaches_the_environment_only(launched, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "before")
    train.run("sft", ["cfg.yaml", "--hub_token", "hf_secret"])
    assert train.os.environ["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in str(launched)


def test_the_folder_is_held_while_the_run_goes_on_and_free_afterwards(launched, monkeypatch):
    states = []
    monkeypatch.setattr(sys.modules["surogate.cli.fit"], "launch", lambda *_, **__: states.append(dict(run_lock._held)))
    train.run("sft", ["cfg.yaml", "--output_dir", "out", "--checkpoint_dir", "disk"])
    assert [{folder.name for folder in state} for state in states] == [{"out", "disk"}]
    assert not run_lock._held


def test_a_folder_that_cannot_be_written_is_told_before_anything_heavy_is_imported(launched):
    with pytest.raises(ConfigError, match=r"^output_dir: rows.jsonl/out cannot be made or written"):
        train.run("sft", ["cfg.yaml", "--output_dir", "rows.jsonl/out"])
    assert not launched


@pytest.mark.parametrize("argv", [[], ["--lora_rank", "4"]])
def test_a_missing_file_is_asked_for(argv):
    with pytest.raises(ConfigError, match=r"surogate sft cfg\.yaml \[--key value"):
        train.run("sft", argv)


def test_nothing_is_launched_when_the_configuration_is_wrong(launched):
    with pytest.raises(ConfigError, match="learnign_rate"):
        train.run("sft", ["cfg.yaml", "--learnign_rate", "1"])
    assert not launched
