"""The token cache: what misses it, what hits it, and that no build is ever half-read, whatever happens to it."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.word_tokenizer import save_word_tokenizer

from surogate.config.parts import ChatSpec, DatasetSpec
from surogate.data import prepare as prepare_module
from surogate.data.cache import TokenCache
from surogate.data.prepare import TokenSettings, prepare
from surogate.data.row_store import RowStore
from surogate.errors import DataError

DATA = Path(__file__).parents[1] / "data"
DEADLINE_SECONDS = 120

SCRIPT = """
import json, resource, sys
from pathlib import Path
from surogate.config.parts import ChatSpec, DatasetSpec
from surogate.data.cache import TokenCache
from surogate.data.prepare import TokenSettings, prepare
tokenizer, cache, *paths = sys.argv[1:]
settings, found = TokenSettings.load(tokenizer, ChatSpec(), 256), []
for path in paths:
    store = prepare("corpus", DatasetSpec(path=path), settings, TokenCache(Path(cache)))
    found.append([store.fingerprint, len(store), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = sorted(set((DATA / "sotu-1790.txt").read_text().split()))
    return save_word_tokenizer(tmp_path_factory.mktemp("tokenizer"), words)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"word word {i}"}) + "\n" for i in range(20)))
    return path


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    rows = [{"instruction": f"word {i}", "output": "word", "answer": "word word", "note": "x"} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were built."""
    folders: list[Path] = []
    write_store = prepare_module.write_store

    def recorded(folder: Path, *arguments: Any) -> None:
        folders.append(folder)
        write_store(folder, *arguments)

    monkeypatch.setattr(prepare_module, "write_store", recorded)
    return folders


def settings_of(tokenizer: Path, chat: dict[str, Any] | None = None, sequence_len: int = 64) -> TokenSettings:
    return TokenSettings.load(str(tokenizer), ChatSpec(**(chat or {})), sequence_len)


CHANGES: dict[str, dict[str, Any]] = {
    "samples": {"spec": {"samples": 7}},
    "type": {"spec": {"type": "text", "text_field": "output"}},
    "a column": {"spec": {"output_field": "answer"}},
    "a prompt format": {"spec": {"prompt_format": "Please: {instruction}"}},
    "a system prompt": {"spec": {"system_prompt_type": "fixed", "system_prompt": "word"}},
    "loss_scale of the data set": {"spec": {"loss_scale": "all"}},
    "loss_scale of the run": {"chat": {"loss_scale": "last_round"}},
    "the template": {"chat": {"template": "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"}},
    "use_chat_template": {"chat": {"use_chat_template": False}},
    "system": {"chat": {"system": "word"}},
    "response_prefix": {"chat": {"response_prefix": "word "}},
    "max_length": {"chat": {"max_length": 32}},
    "truncation_strategy": {"chat": {"truncation_strategy": "left"}},
    "sequence_len, which is max_length's default": {"sequence_len": 128},
}

SAME: dict[str, dict[str, Any]] = {
    "nothing": {},
    "name": {"spec": {"name": "other"}},
    "weight": {"spec": {"weight": 3.0}},
    "type, where it is what was detected": {"spec": {"type": "instruction"}},
    "max_bad_row_fraction": {"chat": {"max_bad_row_fraction": 0.5}},
    "max_length, where it is its default": {"chat": {"max_length": 64}},
    "loss_scale of the data set, where it is the run's": {"spec": {"loss_scale": "default"}},
}


def prepared_with(tokenizer: Path, cache: TokenCache, path: Path, change: dict[str, Any]) -> RowStore:
    settings = settings_of(tokenizer, change.get("chat"), change.get("sequence_len", 64))
    return prepare("set", DatasetSpec(path=str(path), **change.get("spec", {})), settings, cache)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_setting_misses(
    change: dict[str, Any], tokenizer: Path, chats: Path, tmp_path: Path, built: list[Path]
) -> None:
    cache = TokenCache(tmp_path / "cache")
    prepared_with(tokenizer, cache, chats, {})
    prepared_with(tokenizer, cache, chats, change)
    assert len(built) == 2
    prepared_with(tokenizer, cache, chats, change)
    assert len(built) == 2


@pytest.mark.parametrize("change", SAME.values(), ids=SAME.keys())
def test_what_changes_no_token_hits(
    change: dict[str, Any], tokenizer: Path, chats: Path, tmp_path: Path, built: list[Path]
) -> None:
    cache = TokenCache(tmp_path / "cache")
    first = prepared_with(tokenizer, cache, chats, {})
    assert prepared_with(tokenizer, cache, chats, change).folder == first.folder
    assert len(built) == 1


def test_changed_rows_miss_and_a_touched_or_moved_file_hits(
    tokenizer: Path, chats: Path, tmp_path: Path, built: list[Path]
) -> None:
    cache = TokenCache(tmp_path / "cache")
    prepared_with(tokenizer, cache, chats, {})
    os.utime(chats, (1, 1))
    prepared_with(tokenizer, cache, chats, {})
    moved = tmp_path / "elsewhere" / chats.name
    moved.parent.mkdir()
    chats.rename(moved)
    prepared_with(tokenizer, cache, moved, {})
    assert len(built) == 1
    moved.write_text(moved.read_text().replace("word 3", "word 4"))
    prepared_with(tokenizer, cache, moved, {})
    assert len(built) == 2


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_changed_tokenizer_misses(
    file: str, tokenizer: Path, chats: Path, texts: Path, tmp_path: Path, built: list[Path]
) -> None:
    cache, other = TokenCache(tmp_path / "cache"), tmp_path / "tokenizer"
    subprocess.run(["cp", "-r", tokenizer, other], check=True)
    for path in (chats, texts):
        prepared_with(tokenizer, cache, path, {})
        prepared_with(other, cache, path, {})
    assert len(built) == 2, "an equal tokenizer in another folder is the same"
    content = json.loads((other / file).read_text())
    if file == "tokenizer.json":
        vocabulary = content["model"]["vocab"]
        vocabulary["<user>"], vocabulary["word"] = vocabulary["word"], vocabulary["<user>"]
    else:
        content["eos_token"] = "<user>"
    (other / file).write_text(json.dumps(content))
    for path in (chats, texts):
        prepared_with(other, cache, path, {})
    assert len(built) == 4


def test_text_is_shared_by_pretraining_and_fine_tuning_and_by_all_templates(
    tokenizer: Path, texts: Path, tmp_path: Path, built: list[Path]
) -> None:
    cache, spec = TokenCache(tmp_path / "cache"), DatasetSpec(path=str(texts))
    fine_tuning = settings_of(tokenizer, {"template": "{{ messages }}", "loss_scale": "last_round"})
    pretraining = replace(settings_of(tokenizer, {"loss_scale": "all"}), prefers_text=True)
    folders = {prepare("set", spec, settings, cache).folder for settings in (fine_tuning, pretraining)}
    assert len(folders) == len(built) == 1


def test_what_a_build_found_is_said_at_every_start(
    tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="surogate")
    path = tmp_path / "chats.jsonl"
    rows = [{"instruction": "word", "output": "word " * count} for count in (1, 100, 0)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    endless = {
        "max_bad_row_fraction": 1.0,
        "template": "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}",
    }
    said = []
    for _ in range(2):
        caplog.clear()
        prepared_with(tokenizer, TokenCache(tmp_path / "cache"), path, {"chat": endless})
        said.append(sorted(message.split("; tokenised in")[0].split("; from the")[0] for message in caplog.messages))
    assert said[0] == said[1]
    assert "set: type instruction, from the columns instruction, output" in said[0]
    assert any("1 rows longer than max_length 64 left out (first: " in message for message in said[0])
    assert any("ends an assistant turn without a special token" in message for message in said[0])
    assert "from the cache" in " ".join(caplog.messages)


def test_data_that_changes_while_it_is_read_is_not_kept(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "texts.jsonl", TokenCache(tmp_path / "cache")
    path.write_text('{"text": "word word"}\n')
    write_text = prepare_module.write_text

    def write_late(*arguments: Any) -> Any:
        path.write_text('{"text": "word word"}\n{"text": "word"}\n')
        return write_text(*arguments)

    monkeypatch.setattr(prepare_module, "write_text", write_late)
    with pytest.raises(DataError, match="set: the data changed while it was read"):
        prepare("set", DatasetSpec(path=str(path)), settings_of(tokenizer), cache)
    assert [entry.suffix for entry in cache.folder.iterdir()] == [".lock"]


def corpus(folder: Path, megabytes: float) -> Path:
    """One text file of speeches."""
    speech = (DATA / "sotu-1790.txt").read_text()
    path = folder / f"corpus-{megabytes}.txt"
    path.write_text(speech * int(megabytes * 1e6 / len(speech) + 1))
    return path


def start(tokenizer: Path, cache: Path, *paths: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tokenizer), str(cache), *map(str, paths)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> list[list[Any]]:
    output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, errors
    found: list[list[Any]] = json.loads(output)
    return found


def wait_for(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_build_that_is_killed_is_made_anew_by_the_same_command(tokenizer: Path, tmp_path: Path) -> None:
    path, cache = corpus(tmp_path, 8), tmp_path / "cache"
    killed = start(tokenizer, cache, path)
    wait_for(lambda: any(draft.stat().st_size for draft in cache.glob("*.building-*/tokens")), killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list(cache.glob("*.building-*")), "the build was over before it was killed"
    found = result(start(tokenizer, cache, path))
    assert found[0][:2] == result(start(tokenizer, tmp_path / "other", path))[0][:2]
    assert not list(cache.glob("*.building-*"))


@pytest.mark.slow
def test_two_processes_that_need_the_same_build_it_once(tokenizer: Path, tmp_path: Path) -> None:
    path, cache = corpus(tmp_path, 4), tmp_path / "cache"
    processes = [start(tokenizer, cache, path) for _ in range(2)]
    drafts: set[str] = set()
    wait_for(lambda: drafts.update(map(str, cache.glob("*.building-*"))) or list(cache.glob("?" * 32)), processes[0])
    found = [result(process) for process in processes]
    assert found[0][0][:2] == found[1][0][:2]
    assert len(drafts) == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tokenizer: Path, tmp_path: Path) -> None:
    small, large = result(start(tokenizer, tmp_path / "cache", corpus(tmp_path, 4), corpus(tmp_path, 30)))
    assert large[1] > 7 * small[1]
    assert large[2] - small[2] < 30, "MiB"


def test_a_truncated_file_is_built_anew(tokenizer: Path, texts: Path, tmp_path: Path, built: list[Path]) -> None:
    cache = TokenCache(tmp_path / "cache")
    store = prepared_with(tokenizer, cache, texts, {})
    expected = [store[row].input_ids.tolist() for row in range(len(store))]
    assert store.folder is not None
    tokens = store.folder / "tokens"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    again = prepared_with(tokenizer, cache, texts, {})
    assert len(built) == 2
    assert [again[row].input_ids.tolist() for row in range(len(again))] == expected
    assert np.array_equal(again.document_hashes, store.document_hashes)
