"""The page of a report: what stands on it, and that nothing in a run's files gets at who reads it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.run_files import steps, write_run

from surogate.cli.report import main
from surogate.errors import DataError
from surogate.report.page import page
from surogate.report.runs import read_runs

HOSTILE = "</pre></main></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;\x1b[2J\u202e"
VOID = {"meta"}
KNOWN_TAGS = {
    *("html", "head", "meta", "title", "style", "script", "body", "main", "header", "footer", "h1", "h2", "h3", "p"),
    *("b", "strong", "span", "ul", "li", "i", "dl", "dt", "dd", "div", "table", "thead", "tbody", "tr", "th", "td"),
    *(
        "figure",
        "figcaption",
        "svg",
        "path",
        "line",
        "text",
        "circle",
        "output",
        "section",
        "pre",
        "details",
        "summary",
    ),
}
CLOSED_AT_ONCE = {"line", "path", "circle"}


class Reader(HTMLParser):
    """Collects text, and fails on a tag that is not the page's own or is closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, Any], str]] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in KNOWN_TAGS, f"<{tag}> inside {self.open}"
        self.attributes += attrs
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        assert tag in CLOSED_AT_ONCE
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            attributes, before = self.scripts.pop()
            self.scripts.append((attributes, before + data))
        elif self.open[-1:] != ["style"]:
            self.texts.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def shown(*folders: Path) -> Reader:
    return read(page(read_runs(map(str, folders)), "1.2.3"))


def words(reader: Reader) -> str:
    return " ".join(" ".join(reader.texts).split())


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run on rows with everything that one leaves."""
    records = steps(40)
    for step, loss in ((10, 2.5), (20, 2.0), (30, 1.8), (40, 2.1)):
        values = {"val/loss": loss, "val/held/loss": loss, "val/held/perplexity": 2.7**loss, "val/held/accuracy": 0.5}
        records.append({"step": step, "epoch": 0, **values})
    source = {"name": "facts", "rows": 1234, "tokens": 5678, "supervised_share": 0.25, "fingerprint": "abcd"}
    answers = [
        {"step": step, "prompt": "Capital of France?", "answer": answer, "reference": "Paris"}
        for step, answer in ((0, "Lyon perhaps"), (40, "Paris it is"))
    ]
    folder = write_run(
        tmp_path / "first",
        records,
        surogate__yaml={"model": "org/Model", "learning_rate": 1e-4, "datasets": [{"path": "a.jsonl"}]},
        config__yaml={"trainer": {"max_steps": 40}},
        finished__json={"step": 40, "epochs": 1},
        environment__json={
            "packages": {"torch": "2.13.0"},
            "command": ["surogate", "sft"],
            "data": {"train": [source]},
        },
    )
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    return folder


def test_a_page_has_headlines_curves_samples_data_settings_and_environment(finished: Path):
    text = words(shown(finished))
    for part in (
        "finished after 40 steps",
        "20 s without validation",
        "Validation loss was lowest at step 30 (1.8) and is 2.1 at the end.",
        "Loss nats per supervised token training validation held",
        "Gradient norm",
        "before training Lyon perhaps step 40 Paris it is",
        "1,234 5,678 25.0%",
        "learning_rate: 0.0001",
        "torch 2.13.0",
        "surogate 1.2.3",
    ):
        assert part in text, part


def test_the_page_runs_its_own_script_only_and_loads_nothing(finished: Path):
    text = page(read_runs([str(finished)]), "1")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    scripts = [script for attributes, script in read(text).scripts if "type" not in attributes]
    (own,) = scripts
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"https?://|url\(|@import|src=|href=", text)


def test_nothing_in_a_run_s_files_is_obeyed(tmp_path: Path):
    folder = write_run(
        tmp_path / "run",
        [{"step": 1, HOSTILE: 1.0, f"val/{HOSTILE}/loss": 2.0, "train/loss": HOSTILE, "val/loss": True}],
        surogate__yaml={"model": HOSTILE, HOSTILE: HOSTILE},
        environment__json={
            "command": [HOSTILE], "git": {"commit": HOSTILE}, "packages": {HOSTILE: HOSTILE}, "gpus": [HOSTILE],
            "data": {"train": [{"name": HOSTILE, "rows": HOSTILE}, 3]},
        },
        samples__jsonl={"step": 1, "prompt": HOSTILE, "answer": HOSTILE, "reference": HOSTILE},
        samples__txt=HOSTILE,
    )  # fmt: skip
    for name in ("rollouts", "health"):
        (folder / name).mkdir()
    row = {"prompt": HOSTILE, "completion": HOSTILE, "reward": 1, "example": HOSTILE}
    (folder / "rollouts/step_000001.jsonl").write_text(json.dumps(row))
    micro = {"is_finite": False, "rows": [{"origin": HOSTILE}, 7]}
    bad = {"step": HOSTILE, "what": HOSTILE, "ranks": [{"micro_batches": [micro]}]}
    (folder / "health/step_1.json").write_text(json.dumps(bad))
    reader = shown(folder)
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert words(reader).count("alert(1)") > 10, "shown, not dropped"
    assert "\x1b" not in "".join(reader.texts) and "\u202e" not in "".join(reader.texts)
    for attributes, script in reader.scripts:
        assert attributes == {} or json.loads(script)


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([], "No step was recorded"),
        (steps(1), "not finished: 1 steps"),
        (steps(5, loss=None), "train/loss was not a finite number in 5 records, first at step 1."),
        ([*steps(3), *({"step": 4, "train/loss": None},)], "in 1 records, first at step 4."),
        ([{"step": 3}, {"step": "x"}, {"loss": 1.0}], "not finished: 3 steps"),
    ],
)
def test_a_run_that_stopped_anywhere_has_a_page(tmp_path: Path, records: list[dict[str, Any]], says: str):
    assert says in words(shown(write_run(tmp_path / "run", records)))


def test_files_that_cannot_be_read_do_not_matter(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps(2), surogate__yaml="a: [", environment__json="{", config__yaml="- 3")
    (folder / "finished.json").write_text("[]")
    assert "not finished: 2 steps" in words(shown(folder))


EXTREMES: list[list[Any]] = [
    [1e308, -1e308, 0.5],
    [5e-324, 0.0],
    [1e-310, 2e-310],
    [5e-324, 1.7e308],
    [10**400, -(10**400), 1.0],
    [float("inf"), float("nan"), 2.0],
    ["x", [1], {"a": 1}, None, True],
]


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("values", EXTREMES, ids=lambda values: str(values)[:30])
def test_extreme_and_mistyped_values_have_a_page(tmp_path: Path, values: list[Any], count: int):
    names = ("train/loss", "val/loss", "speed/step_seconds", "speed/tokens_per_second", "memory/peak_gib", "a/b")
    names += ("rl/reward/mean", "rl/eval/sums/reward", "rl/eval/sums/standard_error", "rl/completion/mean_len")
    records: list[dict[str, Any]] = [{"step": 0, "a/b": 0.25}]
    for value in values * count:
        records.append({"step": len(records), **dict.fromkeys(names, value)})
    rows = {"rows": 10**400, "supervised_share": 10**400}
    folder = write_run(
        tmp_path / "run",
        [*records, {"step": 10**400}, {"step": 10**17, "a/b": 1.0}],
        finished__json={"step": "q"},
        environment__json={"command": 5, "data": {"train": [rows]}, "packages": [1], "git": 3, "gpus": 3},
        config__yaml="trainer: {max_steps: 2024-99-99}",
    )
    (folder / "rollouts").mkdir()
    (folder / "rollouts/step_1.jsonl").write_text("\n".join(json.dumps({"reward": value}) for value in values))
    reader = shown(folder)
    assert f"not finished: {len(records) - 1:,} steps" in words(reader)
    for attributes, script in reader.scripts:
        assert attributes == {} or ("Infinity" not in script and json.loads(script))


def test_thousands_of_steps_make_a_page_of_a_size_that_can_be_sent(tmp_path: Path):
    records = steps(20_000)
    records[7_777]["train/loss"] = 1234.0
    text = page(read_runs([str(write_run(tmp_path / "run", records))]), "1")
    assert len(text) < 400_000
    assert "[7778.0,1234.0]" in text


def test_several_runs_lie_over_each_other_and_their_settings_differ(tmp_path: Path, finished: Path):
    settings = {"model": "org/Model", "learning_rate": 3e-4, "datasets": [{"path": "b.jsonl"}], "output_dir": "x"}
    other = write_run(tmp_path / "second", steps(20), surogate__yaml=settings)
    text = words(shown(finished, other))
    assert "2 runs" in text and "first: training" in text and "second: training" in text
    differing = text.partition("where they differ")[2].partition("surogate.yaml")[0]
    assert "datasets.0.path a.jsonl b.jsonl learning_rate 0.0001 0.0003" in differing
    assert "model" not in differing and "output_dir" not in differing
    same = words(shown(finished, write_run(tmp_path / "third", [], surogate__yaml=finished_settings(finished))))
    assert "All of them were asked for the same." in same


def finished_settings(folder: Path) -> str:
    return (folder / "surogate.yaml").read_text()


def test_runs_of_the_same_name_are_told_apart_by_their_path(tmp_path: Path):
    folders = [write_run(tmp_path / name / "run", steps(2)) for name in ("a", "b")]
    assert [run.name for run in read_runs(map(str, folders))] == ["a/run", "b/run"]
    assert len({run.name for run in read_runs([str(folders[0])] * 2)}) == 2


def test_a_run_on_rewards_shows_rewards_with_intervals_and_answers(tmp_path: Path):
    records: list[dict[str, Any]] = [
        {
            "step": step,
            "rl/reward/mean": 0.1 * step,
            "rl/entropy": 1.0,
            "rl/completion/mean_len": 5.0,
            "train/loss": 0.0,
        }
        for step in range(1, 6)
    ]
    for step, reward in ((0, 0.1), (5, 0.9)):
        records.append({"step": step, "rl/eval/sums/reward": reward, "rl/eval/sums/standard_error": 0.05})
    folder = write_run(tmp_path / "run", records, orch__yaml={"max_steps": 5}, train__yaml={"model": "org/Policy"})
    (folder / "evaluations").mkdir()
    for step, answer, reward in ((0, "seven", 0.0), (5, "4", 1.0)):
        row = {"example": "sums/0", "prompt": "2 + 2 =", "completion": answer, "reward": reward}
        (folder / f"evaluations/step_{step:06}.jsonl").write_text(json.dumps(row))
    text = words(shown(folder))
    for part in (
        "org/Policy",
        "held-out reward, sums 0.9 ±0.098 first 0.1",
        "Reward bars: 95 % intervals training sums (held out)",
        "Entropy nats",
        "before training, reward 0 seven step 5, reward 1 4",
    ):
        assert part in text, part


def test_bad_steps_are_listed_with_their_rows(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps(2))
    (folder / "health").mkdir()
    rows = [
        {"rows": [{"origin": "a.jsonl:1"}], "is_finite": True},
        {"rows": [{"origin": "b.jsonl:7"}], "is_finite": False},
    ]
    bad = {"step": 2, "what": "the loss is nan", "ranks": [{"rank": 0, "micro_batches": rows}]}
    (folder / "health/step_2.json").write_text(json.dumps(bad))
    text = words(shown(folder))
    assert "2 the loss is nan b.jsonl:7 step_2.json" in text and "a.jsonl:1" not in text


def test_the_verb_writes_beside_the_run_or_where_it_is_told(tmp_path: Path, finished: Path, capsys: Any):
    assert main([str(finished)]) == 0
    assert capsys.readouterr().out.strip() == str(finished / "report.html")
    assert "</html>" in (finished / "report.html").read_text()
    assert main([str(finished), str(finished), "--output", str(tmp_path / "new/both.html")]) == 0
    assert "2 runs" in (tmp_path / "new/both.html").read_text()


def test_a_folder_that_is_no_run_s_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"nothing holds no metrics\.jsonl.*Name the output_dir"):
        read_runs([str(tmp_path / "nothing")])
