"""`surogate quickstart` asks, trains and asks again, once; a second call shows the same result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from surogate.cli import quickstart, train
from surogate.config.read import read_config
from surogate.errors import CheckpointError
from surogate.quickstart import answers
from surogate.run_folder import RunFolder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the quickstart had done, with training and asking replaced by records of the call."""
    done: list[str] = []

    def fake_train(verb: str, argv: list[str]) -> int:
        config = read_config("sft", argv[0], argv[1:]).config
        run = RunFolder(config.output_dir)
        if not run.is_finished():
            done.append(f"train {config.train_seed}")
            run.adapter_dir.mkdir()
            (run.adapter_dir / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
            run.surogate_yaml.write_text(f"model: {config.model}\nsystem: {config.system}\n")
            run.mark_finished(1)
        return 0

    def fake_answers(found, questions: list[str]) -> list[str]:
        done.append("ask adapter" if found.adapters else "ask base")
        assert found.chat.system == "Answer briefly."
        return [".xx" if not found.adapters else f"It is {expected[question]}." for question in questions]

    expected = {row["instruction"]: row["output"] for row in all_rows()}
    monkeypatch.setattr(train, "run", fake_train)
    monkeypatch.setattr(answers, "answer_all", fake_answers)
    return done


def all_rows() -> list[dict[str, str]]:
    from dataclasses import asdict

    from surogate.locations import resolve
    from surogate.quickstart.factbook import LOCATION, read_questions

    return [asdict(question) for question in read_questions(Path(resolve(LOCATION)))]


def test_it_asks_trains_and_asks_again(calls, tmp_path, capsys):
    assert quickstart.main(["--seed", "3", "--output_dir", str(tmp_path / "run")]) == 0
    assert calls == ["ask base", "train 3", "ask adapter"]
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("60 held-out countries", "100%", "points", "adapter", "loss.png", "metrics.jsonl", "chat"):
        assert part in shown


def test_a_second_call_shows_the_result_and_does_nothing(calls, tmp_path, capsys):
    arguments = ["--output_dir", str(tmp_path / "run")]
    quickstart.main(arguments)
    first = capsys.readouterr().out
    del calls[:]
    quickstart.main(arguments)
    assert calls == []
    assert capsys.readouterr().out == first


def test_a_call_that_was_stopped_in_training_asks_the_base_only_once(calls, tmp_path, monkeypatch):
    def stopped_train(verb: str, argv: list[str]) -> int:
        raise KeyboardInterrupt

    whole_train = train.run
    monkeypatch.setattr(train, "run", stopped_train)
    with pytest.raises(KeyboardInterrupt):
        quickstart.main(["--output_dir", str(tmp_path / "run")])
    monkeypatch.setattr(train, "run", whole_train)
    quickstart.main(["--output_dir", str(tmp_path / "run")])
    assert calls == ["ask base", "train 0", "ask adapter"]


def test_another_seed_needs_another_folder(calls, tmp_path):
    quickstart.main(["--seed", "1", "--output_dir", str(tmp_path / "run")])
    with pytest.raises(CheckpointError, match="seed 1, not 2"):
        quickstart.main(["--seed", "2", "--output_dir", str(tmp_path / "run")])


def test_training_never_sees_a_held_out_country(calls, tmp_path):
    quickstart.main(["--output_dir", str(tmp_path / "run")])
    rows = {
        name: [json.loads(line) for line in (tmp_path / "run/data" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "held_out")
    }
    countries = {name: {row["country"] for row in rows[name]} for name in rows}
    assert len(countries["held_out"]) == 60
    assert len(rows["held_out"]) >= 100
    assert not countries["train"] & countries["held_out"]
