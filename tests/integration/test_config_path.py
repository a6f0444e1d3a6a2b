"""One path: a flat file, the nested form it lowers into, and the configuration that its run saves."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.tiny import VOCAB, save_tiny_model
from support.word_tokenizer import COMMON_WORDS, save_word_tokenizer

from surogate.cli.main import main

WORDS = [f"w{i}" for i in range(VOCAB - len(COMMON_WORDS))]

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # lightning 2.6.6 under torch 2.13

FLAT = """\
model: model
datasets:
  - path: rows.jsonl
    type: instruction
output_dir: out
max_steps: 4
save_steps: 2
sequence_len: 64
per_device_train_batch_size: 1
gradient_accumulation_steps: 2
validation_split_ratio: 0
optimizer: adamw
learning_rate: 1e-2
lora_rank: 4
lora_dropout: 0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny model, rows and run.yaml."""
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "model")
    save_word_tokenizer(tmp_path / "model", WORDS)
    rows = [{"instruction": f"w{i} w{i + 1}", "output": f"w{i + 2} w{i + 3}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(FLAT)
    return tmp_path


def losses(run: str = "out") -> list[float]:
    records = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [record["train/loss"] for record in records if "train/loss" in record]


def surogate(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "surogate", *argv]
    return subprocess.run(command, env=environ(**environment), capture_output=True, text=True, check=False)


def environ(**more: str) -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **more}


def test_the_saved_configuration_of_a_flat_run_reruns_under_fit_with_the_same_losses(folder: Path):
    assert main(["sft", "run.yaml"]) == 0
    Path("out").rename("first")
    assert main(["fit", "--config", "first/config.yaml"]) == 0
    assert len(losses()) == 4
    assert losses() == losses("first")


def test_a_run_of_fit_is_talked_to_and_merged_as_one_of_sft(folder: Path, capsys):
    assert main(["sft", "run.yaml"]) == 0
    Path("out").rename("first")
    assert main(["fit", "--config", "first/config.yaml", "--trainer.default_root_dir", "second"]) == 0
    capsys.readouterr()
    for run in ("first", "second"):
        assert main(["generate", run, "--prompt", "w1 w2", "--max_new_tokens", "4"]) == 0
    one, other = capsys.readouterr().out.splitlines()
    assert one == other
    assert main(["merge", "second"]) == 0
    assert Path("second/model/config.json").exists()


def test_the_printed_nested_form_and_the_saved_one_are_the_same_run(folder: Path, capsys):
    assert main(["sft", "run.yaml", "--print_config"]) == 0
    (folder / "nested.yaml").write_text(capsys.readouterr().out)
    assert main(["sft", "run.yaml"]) == 0
    saved = Path("out/config.yaml").read_text()
    Path("out").rename("first")
    assert main(["fit", "--config", "nested.yaml"]) == 0
    assert Path("out/config.yaml").read_text() == saved
    assert losses() == losses("first")


def test_the_record_of_a_run_reruns_under_sft(folder: Path):
    assert main(["sft", "run.yaml", "--lora_rank", "2"]) == 0
    assert "lora_rank: 2  # command line" in Path("out/surogate.yaml").read_text()
    Path("out").rename("first")
    assert main(["sft", "first/surogate.yaml"]) == 0
    assert losses() == losses("first")


def test_every_class_and_argument_of_the_nested_form_exists(folder: Path, capsys):
    """`--print_config` of fit parses all of it, with every value away from its default that can be."""
    flat = {
        **yaml.safe_load(FLAT),
        "report_to": ["tensorboard"],
        "validation_split_ratio": 0.5,
        "lora_target_modules": ["q_proj"],
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "dataloader_num_workers": 1,
        "max_length": 32,
        "init_lora_weights": "gaussian",
        "lmhead_chunks": 2,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(flat))
    assert main(["sft", "run.yaml", "--print_config"]) == 0
    (folder / "nested.yaml").write_text(capsys.readouterr().out)
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", "nested.yaml", "--print_config"])
    assert exit_.value.code == 0
    merged = yaml.safe_load(capsys.readouterr().out)
    assert_contains(merged, yaml.safe_load((folder / "nested.yaml").read_text()))


def assert_contains(whole: Any, part: Any, path: str = "") -> None:
    if isinstance(part, dict):
        for key, value in part.items():
            assert key in whole, f"{path}.{key}"
            assert_contains(whole[key], value, f"{path}.{key}")
    elif isinstance(part, list):
        for index, value in enumerate(part):
            assert_contains(whole[index], value, f"{path}[{index}]")
    else:
        assert whole == part, path


def test_the_same_command_again_says_that_the_run_is_finished(folder: Path, capsys):
    assert main(["sft", "run.yaml"]) == 0
    capsys.readouterr()
    assert main(["sft", "run.yaml"]) == 0
    assert "is finished" in capsys.readouterr().err
    assert len(losses()) == 4


def test_another_run_may_not_use_the_same_folder(folder: Path, capsys):
    assert main(["sft", "run.yaml"]) == 0
    assert main(["sft", "run.yaml", "--lora_rank", "8"]) == 5
    assert "lora.rank: 4 there, 8 here" in capsys.readouterr().err


def test_validation_goes_on_beside_training_and_alone(folder: Path, capsys):
    more = ["--validation_split_ratio", "0.25", "--eval_steps", "2", "--report_to", "[tensorboard]"]
    assert main(["sft", "run.yaml", *more]) == 0
    records = Path("out/metrics.jsonl").read_text()
    last = [json.loads(line)["val/loss"] for line in records.splitlines() if "val/loss" in line][-1]
    events = list(Path("out/tensorboard/sft-model").iterdir())
    capsys.readouterr()
    assert main(["validate", "--config", "out/config.yaml"]) == 0
    assert f"loss {last:.3f}" in capsys.readouterr().err
    assert Path("out/metrics.jsonl").read_text() == records
    assert list(Path("out/tensorboard/sft-model").iterdir()) == events


def test_a_run_shorter_than_its_validation_interval_is_validated_at_its_end(folder: Path):
    assert main(["sft", "run.yaml", "--validation_split_ratio", "0.25", "--max_steps", "2"]) == 0
    records = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "val/loss" in record] == [2]


def test_another_optimizer_in_the_same_folder_is_refused(folder: Path, capsys):
    assert main(["sft", "run.yaml", "--max_steps", "1"]) == 0
    assert main(["sft", "run.yaml", "--optimizer", "adamw_8bit"]) == 5
    assert "optimizer.name: 'adamw' there, 'adamw_8bit' here" in capsys.readouterr().err


def documented_commands(page: str) -> list[list[str]]:
    """The commands of the page's shell block that runs `surogate fit`."""
    text = (Path(__file__).resolve().parents[2] / page).read_text()
    block = next(block for block in text.split("```bash\n")[1:] if "surogate fit" in block.partition("```")[0])
    return [shlex.split(line)[1:] for line in block.partition("```")[0].splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/guides/configuration.md"])
def test_each_documented_command_of_the_nested_form_does_something(folder: Path, capsys, page: str):
    flat = {**yaml.safe_load(FLAT), "output_dir": "output/first", "lora_rank": 2, "validation_split_ratio": 0.25}
    (folder / "run.yaml").write_text(yaml.safe_dump(flat))
    commands = documented_commands(page)
    if commands[0][0] == "fit":  # a page that starts from a finished run
        assert main(["sft", "run.yaml"]) == 0
    for command in commands:
        capsys.readouterr()
        argv, _, file = " ".join(command).partition(" > ")
        assert main(argv.split()) == 0
        shown = capsys.readouterr()
        assert "is finished" not in shown.err
        if file:
            (folder / file).write_text(shown.out)
    adapter = json.loads(Path("output/second/adapter/adapter_config.json").read_text())
    assert adapter["r"] == 4
    assert len(losses("output/second")) == 4


def test_a_broken_row_exits_with_the_code_of_data(folder: Path, capsys):
    with (folder / "rows.jsonl").open("a") as file:
        file.write("{broken\n")
    assert main(["sft", "run.yaml"]) == 3
    assert "rows.jsonl:41" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("console_script", [False, True], ids=["python -m surogate", "console script"])
def test_two_processes_on_the_cpu_start_from_one_command(folder: Path, console_script: bool):
    script = folder / "surogate-script"
    script.write_text("import sys\nfrom surogate.cli.main import main\nsys.exit(main())\n")
    start = [str(script)] if console_script else ["-m", "surogate"]
    command = [sys.executable, *start, "sft", "run.yaml", "--gpus", "2", "--gradient_accumulation_steps", "1"]
    result = subprocess.run(command, env=environ(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(Path("out/environment.json").read_text())["world_size"] == 2
    Path("out").rename("two")
    assert main(["sft", "run.yaml"]) == 0
    assert losses("two") == pytest.approx(losses(), rel=1e-5)


@pytest.mark.slow
def test_torchrun_decides_how_many_processes_there_are(folder: Path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "surogate", "sft"]
    result = subprocess.run(
        [*command, "run.yaml", "--max_steps", "1"], env=environ(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(Path("out/environment.json").read_text())["world_size"] == 2


@pytest.mark.slow
def test_an_interrupted_run_exits_with_130_and_continues(folder: Path):
    # A shell starts what runs in the background with SIGINT ignored, and children inherit that.
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program += "; from surogate.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "sft", "run.yaml", "--max_steps", "100000"]
    with subprocess.Popen(command, env=environ(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 7/"):
                process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    result = surogate("sft", "run.yaml", "--max_steps", "12")
    assert result.returncode == 0, result.stderr
    assert "Continuing the run in out from step_" in result.stderr
