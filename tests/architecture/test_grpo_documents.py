"""The documents of reinforcement learning: their configurations, their Python, and the tables made from the code."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from surogate.callbacks.rollout_metrics import recorded_name
from surogate.config.parts_grpo import AdvantageSpec
from surogate.config.read import read_config
from surogate.config.read_grpo import read_grpo
from surogate.config.yaml_file import read_yaml
from surogate.losses.advantages import group_advantages
from surogate.losses.policy_sums import policy_sums
from surogate.metrics.catalogue import metrics
from surogate.metrics.table_grpo import COMPLETIONS, REWARD, TIMES, UPDATE
from surogate.rl.env_check import check
from surogate.rl.environments.base import Environment
from surogate.rl.environments.reference import filled
from surogate.rl.environments.registry import build_environment, check_environment, environment_ids
from surogate.rl.rollout_metrics import RolloutTally, batch_metrics
from surogate.rl.types import Example, Group, Rollout

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
ENVIRONMENTS = REPOSITORY / "docs/guides/rl-environments.md"
TRAINING = REPOSITORY / "docs/guides/rl-training.md"
QUICKSTART = REPOSITORY / "docs/getting-started/quickstart-grpo.md"

FILES = ("train", "infer", "orch")
NEEDED = {"train": {"model": "some/model"}, "infer": {}, "orch": {"env": "[{id: arithmetic}]", "max_steps": "9"}}
"""What a piece of a file on a page may leave out."""

# A block that begins with `# orch.yaml, a piece` needs what is not installed everywhere, and is not read.
BLOCK = re.compile(r"```yaml\n(# (train|infer|orch)\.yaml(, alone)?\n.*?)```", re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def runs_on(document: Path) -> Iterator[dict[str, str]]:
    """The blocks of a page that are one run: those that follow each other until a file comes again."""
    run: dict[str, str] = {}
    for text, file, alone in BLOCK.findall(document.read_text()):
        if alone:
            continue
        if file in run:
            yield run
            run = {}
        run[file] = text
    if run:
        yield run


def complete(file: str, text: str) -> str:
    """A file with what it needs and a page leaves out."""
    missing = [f"{key}: {value}" for key, value in NEEDED[file].items() if not re.search(f"^{key}:", text, re.M)]
    return "\n".join([text, *missing, ""])


def python_on(document: Path) -> dict[str, str]:
    """The files that a page shows, by the name in their first line."""
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", document.read_text(), re.DOTALL)
    return dict(blocks)


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the guides show."""
    for name, text in {**python_on(ENVIRONMENTS), **python_on(TRAINING)}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "questions.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_run_on_a_page_is_read_without_complaint(document: Path, in_folder: Path):
    for run in runs_on(document):
        for file in FILES:
            (in_folder / f"{file}.yaml").write_text(complete(file, run.get(file, "")))
        train, infer, orch_yaml = (in_folder / f"{file}.yaml" for file in FILES)
        orch = read_grpo(train, infer, orch_yaml).orch.config
        for spec in [*orch.env, *orch.eval.env]:
            check_environment(spec)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_file_that_stands_alone_is_read_by_its_verb(document: Path, in_folder: Path):
    for text, file, alone in BLOCK.findall(document.read_text()):
        if alone:
            (in_folder / "alone.yaml").write_text(text)
            read_config(f"grpo-{file}", in_folder / "alone.yaml", [])


def test_the_guides_have_runs_and_files_that_stand_alone():
    assert all(list(runs_on(document)) for document in (ENVIRONMENTS, TRAINING, QUICKSTART))
    assert {file for _, file, alone in BLOCK.findall(TRAINING.read_text()) if alone} == set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_the_quickstart_shows_the_files_that_it_runs(file: str, tmp_path: Path):
    (run,) = runs_on(QUICKSTART)
    (tmp_path / "shown.yaml").write_text(run[file])
    shipped = read_yaml(REPOSITORY / f"configs/grpo/arithmetic/{file}.yaml").values
    assert read_yaml(tmp_path / "shown.yaml").values == shipped


def test_the_tables_of_arguments_are_what_the_code_says():
    page = ENVIRONMENTS.read_text()
    assert page == filled(page), "run `make reference`"


def test_every_environment_has_a_table_of_arguments():
    tables = set(re.findall(r"<!-- arguments: (\S+) -->", ENVIRONMENTS.read_text()))
    assert tables == {*environment_ids(), "prompts"} - {"path/file.py:function"} | {"file.py:function"}


def test_the_reward_of_the_guide_gives_its_own_answers_the_most(in_folder: Path):
    page = ENVIRONMENTS.read_text()
    rows = re.search(r"```json\n(\{\"question\".*?)```", page, re.DOTALL)
    orch = next(text for text, *_ in BLOCK.findall(page) if "name: capitals" in text and "reference_field" in text)
    assert rows
    (in_folder / "questions.jsonl").write_text(rows[1])
    (in_folder / "orch.yaml").write_text(orch)
    (spec,) = read_config("env-check", in_folder / "orch.yaml", []).config.env
    report = asyncio.run(_check(build_environment(spec)))
    assert not report.problems()
    assert set(report.references) == {1.0}


async def _check(environment: Environment):
    try:
        return await check(environment, None, num_examples=3, n=4)
    finally:
        await environment.close()


def test_the_rows_of_the_guide_for_code_hold_tests():
    (rows,) = re.findall(r"```json\n(\{\"prompt\".*?)```", ENVIRONMENTS.read_text(), re.DOTALL)
    assert all(json.loads(row)["tests"] for row in rows.splitlines())


def test_the_environment_of_the_guide_runs(in_folder: Path):
    (piece,) = re.findall(r"```yaml\n# a piece of orch.yaml\n(env:\n  - id: counting.py:.*?)```", page(), re.DOTALL)
    (in_folder / "orch.yaml").write_text(piece)
    (spec,) = read_config("env-check", in_folder / "orch.yaml", []).config.env
    environment = build_environment(spec)
    assert (environment.name, len(environment)) == ("counting", 19)
    report = asyncio.run(_check(environment))
    assert set(report.references) == {1.0} and not report.problems()


def page() -> str:
    return ENVIRONMENTS.read_text()


def test_the_advantages_of_the_guide_are_ranks(in_folder: Path):
    spec = AdvantageSpec(type="custom", import_path="advantages.py:ranks")
    assert group_advantages([0.0, 1.0, 0.5, 1.0], [3, 3, 3, 3], spec) == [-0.75, 0.5, -0.25, 0.5]


def metric_names() -> set[str]:
    """The metrics of a step that this process can make without an engine; their groups where they name one."""
    rollout = Rollout(
        example_id="ENV/0", env="ENV", prompt_ids=[1], completion_ids=[2], sampled=[True], logprobs=[0.0], versions=[0],
        text="", reward=1.0, metrics={"NAME": 1.0},
    )  # fmt: skip
    example = Example(id="ENV/0", env="ENV", prompt="")
    groups = (Group(example=example, rollouts=(rollout, rollout)),)
    one = torch.zeros(1)
    of_tokens = policy_sums(one, torch.ones(1), {}, (one.bool(), one.bool()), one).metrics()
    names = {*batch_metrics(groups, 0), *RolloutTally().take(), *of_tokens}
    return {name.replace("ENV", "<env>").replace("NAME", "<name>") for name in names}


_COUNTING = ("orchestrator", "group_maker", "rollout_metrics")


def written_names() -> set[str]:
    """The metrics whose names stand in the source where they are written."""
    files = ("callbacks/rollout_metrics.py", "modes/grpo.py", *(f"rl/{file}.py" for file in _COUNTING))
    source = "".join((REPOSITORY / "surogate" / file).read_text() for file in files)
    groups = "train|time|clock|speed|data|memory|rollouts|rewards|prompts|groups|tokens|parity"
    return set(re.findall(rf"\"((?:{groups})/\w+)\"", source))


def test_the_table_of_metrics_has_every_metric_of_a_step_and_no_other():
    documented = {metric.name for metric in metrics()}
    written = {recorded_name(name) for name in metric_names() | written_names()}
    elsewhere = ("rl/eval/<env>/", "rl/filters/", "rl/parity/")
    of_grpo = {metric.name for group in (REWARD, COMPLETIONS, UPDATE, TIMES) for metric in group.metrics}
    assert written - documented == set()
    assert {name for name in of_grpo - written if not name.startswith(elsewhere)} == set()
