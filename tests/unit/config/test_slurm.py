from __future__ import annotations

from pathlib import Path

import pytest

from surogate.config.read import read_config
from surogate.config.slurm import DistributedSpec, SlurmSpec, settled
from surogate.errors import ConfigError


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    return tmp_path / "cfg.yaml"


def read(path: Path, text: str):
    path.write_text(f"model: some/model\ndatasets: [{{path: rows.jsonl}}]\n{text}\n")
    return read_config("sft", path).config


@pytest.mark.parametrize("time", ["24:00:00", "04:00:00", "2-00:00:00", "30:00"])
def test_a_time_limit_is_what_was_typed_with_and_without_quotes(path, time):
    assert read(path, f"slurm: {{time: {time}}}").slurm.time == time
    assert read(path, f"slurm: {{time: '{time}'}}").slurm.time == time
    assert read(path, "slurm: {time: 60}").slurm.time == 60


@pytest.mark.parametrize(
    "time", ["60", "90:00", "1:30:00", "2-1", "2-12", "2-12:30", "2-12:30:00", "UNLIMITED", "infinite", "100:00:00"]
)
def test_a_time_limit_may_have_every_form_that_slurm_knows(path, time):
    assert str(read(path, f"slurm: {{time: '{time}'}}").slurm.time) == time


@pytest.mark.parametrize(
    "time", ["abc", "24h", "99:99:99", "-5", "0", "00:00:00", "1:2:3:4", "2-", "2-1:60", "1:60", "1.5", "٣"]
)
def test_what_slurm_takes_for_no_time_limit_is_refused(path, time):
    with pytest.raises(ConfigError, match=r"slurm\.time: .* is not a time limit\. Write minutes \(90\)"):
        read(path, f"slurm: {{time: '{time}'}}")
    with pytest.raises(ConfigError, match=r"slurm\.time"):
        read(path, f"slurm: {{time: {time}}}")


def test_one_line_of_setup_is_a_list_of_one(path):
    assert read(path, "slurm: {setup: module load cuda}").slurm.setup == ["module load cuda"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("slurm: {sbatch: [exclusive]}", "'exclusive' is not an option of sbatch"),
        (r'slurm: {sbatch: ["--comment=a\r"]}', "is not an option of sbatch"),
        ("slurm: {env: {A-B: c}}", "A-B: c is not an environment variable"),
        ("slurm: {env: {A: true}}", "slurm.env"),
        ("slurm: {template: none.jinja}", "none.jinja does not exist"),
        ("slurm: {nodes: 0}", "slurm.nodes must be a whole number above 0"),
        ("slurm: {partitions: gpu}", "Did you mean slurm.partition"),
        ("distributed: {num_nodes: 0}", "distributed.num_nodes must be"),
        ("gpus: 2\ndistributed: {gpus_per_node: 4}", "Keep one"),
    ],
)
def test_what_cannot_be_is_told_at_its_line(path, text, sentence):
    with pytest.raises(ConfigError) as error:
        read(path, text)
    assert sentence in str(error.value) and str(error.value).startswith(f"{path}:")


def test_what_slurm_is_not_told_follows_from_the_run():
    nothing = settled(SlurmSpec(), DistributedSpec(), gpus=1)
    assert (nothing.nodes, nothing.gpus_per_node, nothing.tasks_per_node) == (1, 1, 1)
    spread = settled(SlurmSpec(), DistributedSpec(num_nodes=2, gpus_per_node=8), gpus=1)
    assert (spread.nodes, spread.gpus_per_node, spread.tasks_per_node) == (2, 8, 8)
    own = settled(SlurmSpec(nodes=3, gpus_per_node=0, tasks_per_node=4), DistributedSpec(num_nodes=2), gpus=1)
    assert (own.nodes, own.gpus_per_node, own.tasks_per_node) == (3, 0, 4)
