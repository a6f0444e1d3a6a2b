from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from surogate.cli import submit
from surogate.config.flat import SCHEMAS
from surogate.config.flat_grpo import SCHEMAS_GRPO
from surogate.config.keys import keys_of
from surogate.config.slurm import OPTIONS, SlurmSpec
from surogate.errors import ConfigError, HardwareError

FAKE_SBATCH = """#!/bin/bash
cp "${@: -1}" submitted.sh
echo "41;cluster"
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with configurations, which is the current one; sbatch is not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submit.shutil, "which", lambda name: None)
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "cfg.yaml").write_text("model: some/model\ndatasets: [{path: rows.jsonl}]\n")
    (tmp_path / "train.yaml").write_text("model: some/model\noutput_dir: rl\nmax_steps: 9\nlora_rank: 20\n")
    (tmp_path / "infer.yaml").write_text("max_num_seqs: 8\n")
    (tmp_path / "orch.yaml").write_text("env: [{id: arithmetic}]\nseq_len: 64\nsampling: {max_tokens: 8}\n")
    return tmp_path


@pytest.fixture
def sbatch(here, monkeypatch) -> Path:
    """An sbatch that keeps the script as submitted.sh."""
    program = here / "bin/sbatch"
    program.parent.mkdir()
    program.write_text(FAKE_SBATCH)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(submit.shutil, "which", lambda name: str(program) if name == "sbatch" else None)
    return program


GRPO = ["grpo", "--train", "train.yaml", "--infer", "infer.yaml", "--orch", "orch.yaml"]


def script(capsys, *argv: str) -> str:
    """What --dry-run prints, with NOW for the time of day; it must be valid bash."""
    assert submit.main([*argv, "--dry-run"]) == 0
    text = capsys.readouterr().out
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    return re.sub(r"/slurm/\d{8}-\d{6}", "/slurm/NOW", text)


def bash(text: str) -> str:
    """What lines of shell print; none of them may write to stderr but for saying that a job ends here."""
    done = subprocess.run(["bash", "-u"], input=text, text=True, capture_output=True, check=True)
    assert not done.stderr or "Submit it again" in done.stderr
    return done.stdout


def options(text: str) -> dict[str, str]:
    """The lines of #SBATCH by name."""
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    return {line.partition("=")[0]: line.partition("=")[2] for line in lines}


def command(text: str) -> list[str]:
    """The words of the line that starts the run."""
    (line,) = [line for line in text.splitlines() if line.startswith("srun --kill-on-bad-exit=1")]
    return shlex.split(line)


def test_a_dry_run_prints_the_script_and_writes_nothing(here, capsys):
    before = sorted(here.rglob("*"))
    text = script(capsys, "cfg.yaml", "--nodes", "2", "--gpus-per-node", "8", "--time", "24:00:00")
    assert sorted(here.rglob("*")) == before
    asked = options(text)
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gpus-per-node"]) == ("2", "8", "8")
    assert asked["time"] == "24:00:00"
    assert asked["signal"] == "USR1@120" and asked["open-mode"] == "append" and "requeue" in asked
    assert asked["chdir"] == str(here)


def test_the_rendezvous_is_found_in_the_job_and_no_port_is_written_down(here, capsys):
    text = script(capsys, "cfg.yaml", "--nodes", "2")
    assert 'scontrol show hostnames "$SLURM_JOB_NODELIST"' in text
    assert "export MASTER_PORT=$((" in text
    own = script(capsys, "cfg.yaml", "--slurm.env", "{MASTER_ADDR: 10.0.0.1, MASTER_PORT: 4000}")
    assert "export MASTER_ADDR=10.0.0.1\n" in own and "export MASTER_PORT=4000\n" in own
    assert "SLURM_JOB_ID %" not in own and "show hostnames" not in own


def test_neighbouring_jobs_share_no_port(here, capsys):
    (line,) = [line for line in script(capsys, "cfg.yaml").splitlines() if line.startswith("export MASTER_PORT=")]
    loop = f'for SLURM_JOB_ID in {{1..12000}}; do {line}\necho "$MASTER_PORT $((MASTER_PORT + 1))"; done'
    ports = [int(port) for port in bash(loop).split()]
    assert len(set(ports[:22000])) == 22000, "a second job within 11000 takes a port of the first, or the one above it"
    assert min(ports) > 1024 and max(ports) < 32768, "above are the ports that Linux gives to outgoing connections"


@pytest.mark.parametrize(
    ("resolved", "nodes", "address"),
    [
        ("10.0.0.7 n1", "2", "n1"),
        ("", "2", "10.1.1.1"),
        ("127.0.1.1 n1", "2", "10.1.1.1"),
        ("::1             n1", "2", "10.1.1.1"),
        ("127.0.1.1 n1", "1", "n1"),
    ],
)
def test_a_node_is_called_as_the_other_nodes_reach_it(here, capsys, resolved, nodes, address):
    text = script(capsys, "cfg.yaml")
    function = text[text.index("address_of() {") : text.index("\n}\n") + 3]
    fakes = (
        f"getent() {{ echo '{resolved}'; }}\n"
        "scontrol() { echo 'NodeName=n1 Arch=x NodeAddr=10.1.1.1 NodeHostName=n1 Version=1'; }\n"
    )
    assert bash(f"{fakes}{function}SLURM_JOB_NUM_NODES={nodes}\naddress_of n1") == f"{address}\n"
    silent = f"{fakes}scontrol() {{ :; }}\n{function}SLURM_JOB_NUM_NODES={nodes}\naddress_of n1"
    assert bash(silent) == "n1\n"


def test_the_run_hears_how_much_time_it_has_and_whether_it_is_requeued(here, capsys):
    text = script(capsys, "cfg.yaml")
    assert "export SUROGATE_SIGNAL_SECONDS=120\nexport SUROGATE_REQUEUE=1\n" in text
    own = script(capsys, *GRPO, "--nodes", "2", "--signal-seconds", "300", "--requeue", "false")
    assert "export SUROGATE_SIGNAL_SECONDS=300\nexport SUROGATE_REQUEUE=0\n" in own


@pytest.mark.parametrize(
    ("code", "restarts", "state", "requeues"),
    [
        (138, None, "RUNNING", True),
        (138, 19, "RUNNING", True),
        (138, 20, "RUNNING", False),
        (138, 0, "PENDING", False),
        (143, 0, "RUNNING", False),
        (1, 0, "RUNNING", False),
    ],
)
def test_the_script_requeues_a_run_that_wants_it_and_not_for_ever(here, capsys, code, restarts, state, requeues):
    text = script(capsys, "cfg.yaml")
    end = text[text.index("\ncode=$?\n") + len("\ncode=$?\n") :].replace("exit $code", "echo ended with $code")
    count = "" if restarts is None else f"SLURM_RESTART_COUNT={restarts}\n"
    fakes = f"squeue() {{ echo {state}; }}\nscontrol() {{ echo scontrol $*; }}\n"
    printed = bash(f"{fakes}SLURM_JOB_ID=7\n{count}code={code}\n{end}")
    assert printed.endswith(f"ended with {code}\n")
    assert ("scontrol requeue 7" in printed) == requeues


def test_keys_of_the_file_hold_and_the_command_line_wins(here, capsys):
    (here / "cfg.yaml").write_text(
        "model: some/model\ndatasets: [{path: rows.jsonl}]\n"
        "slurm: {nodes: 3, gpus_per_node: 4, partition: gpu, time: 24:00:00}\n"
    )
    asked = options(script(capsys, "cfg.yaml", "--partition=long", "--gpus_per_node", "2"))
    assert (asked["nodes"], asked["gpus-per-node"], asked["partition"]) == ("3", "2", "long")
    assert asked["time"] == "24:00:00"


OTHER_VALUES: dict[str, Any] = {
    "nodes": 7, "gpus_per_node": 7, "tasks_per_node": 7, "cpus_per_task": 7, "mem": "7G", "partition": "p",
    "time": "7-00:00:00", "account": "a", "qos": "q", "constraint": "c", "job_name": "n", "container": "i.sif",
    "container_mounts": ["/data"], "signal_seconds": 7, "requeue": False, "setup": ["module load cuda"],
    "env": {"A": "b c"}, "sbatch": ["--exclusive"], "template": "own.jinja", "generator_nodes": 2,
}  # fmt: skip


@pytest.mark.parametrize("key", keys_of(SlurmSpec))
def test_every_key_changes_the_script(here, capsys, key):
    (here / "own.jinja").write_text('{% extends "train.sh.jinja" %}{% block end %}exit 3\n{% endblock %}')
    base = ["--slurm.container", "image"] if key == "container_mounts" else []
    argv = [*GRPO, "--nodes", "4", *base] if key == "generator_nodes" else ["cfg.yaml", *base]
    typed = yaml.safe_dump(OTHER_VALUES[key], default_flow_style=True).removesuffix("...\n").strip()
    after = script(capsys, *argv, f"--slurm.{key}", typed)
    assert script(capsys, *argv) != after


def test_no_option_is_also_a_key_of_a_run():
    schemas = [*SCHEMAS.values(), SCHEMAS_GRPO["train"]]
    assert not set(OPTIONS) & {name for schema in schemas for name in keys_of(schema)}
    assert set(OPTIONS) <= set(keys_of(SlurmSpec))


def test_all_other_overrides_go_to_the_run(here, capsys):
    words = command(script(capsys, "cfg.yaml", "--learning_rate", "1e-4", "--nodes", "2", "--system=be  brief"))
    assert words[-3:] == ["--learning_rate", "1e-4", "--system=be  brief"]
    assert words[-5] == "sft" and words[-4].startswith("output/slurm/")


@pytest.mark.parametrize(
    ("text", "verb"),
    [
        ("model: m\ndatasets: [{path: rows.jsonl}]", "sft"),
        ("model: m\ndatasets: [{path: rows.jsonl, type: text}]", "pt"),
        ("model: {class_path: surogate.modes.SftModule}", "fit"),
    ],
)
def test_the_configuration_says_which_verb_it_is_for(here, text, verb):
    (here / "some.yaml").write_text(text)
    assert submit.split_verb(["some.yaml"])[0] == verb
    assert submit.split_verb(["pt", "some.yaml"])[0] == "pt"
    assert submit.split_verb(GRPO[1:])[0] == "grpo"


def test_a_wrong_key_is_told_before_anything_is_written(here):
    with pytest.raises(ConfigError, match=r"slurm\.nodes must be a whole number above 0"):
        submit.main(["cfg.yaml", "--nodes", "many", "--dry-run"])
    with pytest.raises(ConfigError, match="Did you mean learning_rate"):
        submit.main(["cfg.yaml", "--learnign_rate", "1", "--dry-run"])
    with pytest.raises(ConfigError, match="Name the configuration first"):
        submit.main(["--nodes", "2"])


def test_the_job_runs_what_was_submitted_whatever_happens_to_the_file(here, sbatch, capsys):
    typed = (here / "cfg.yaml").read_text()
    assert submit.main(["cfg.yaml", "--nodes", "2", "--gpus-per-node", "8"]) == 0
    printed = capsys.readouterr().out
    (here / "cfg.yaml").write_text("something else")
    (folder,) = (here / "output/slurm").iterdir()
    assert (folder / "cfg.yaml").read_text() == typed
    assert (folder / "job.sh").read_text() == (here / "submitted.sh").read_text()
    assert printed.startswith("Job 41: sft-model, 2 nodes with 8 processes each\n")
    assert f"tail -F {folder}/41.log" in printed
    assert options((folder / "job.sh").read_text())["output"] == f"{folder}/%j.log"


def test_two_submissions_in_a_second_have_folders_of_their_own(here, sbatch):
    for _ in range(3):
        submit.main(["cfg.yaml"])
    assert len(list((here / "output/slurm").iterdir())) == 3


def test_without_sbatch_nothing_is_written(here):
    with pytest.raises(HardwareError, match="--dry-run"):
        submit.main(["cfg.yaml"])
    assert not (here / "output").exists()


def test_a_refusal_of_sbatch_is_passed_on(here, sbatch):
    sbatch.write_text("#!/bin/bash\necho 'Invalid generic resource (gres) specification' >&2\nexit 1\n")
    with pytest.raises(ConfigError, match=r"Invalid generic resource.*--gpus-per-node 0"):
        submit.main(["cfg.yaml"])


def test_a_token_is_never_written_into_the_files_of_a_job(here):
    with pytest.raises(ConfigError, match="export HF_TOKEN"):
        submit.main(["cfg.yaml", "--hub_token", "hf_secret", "--dry-run"])


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        ('my "job" $HOME', r'"my \"job\" $HOME"'),
        ("it's", '"it\'s"'),
        ("a #b", '"a #b"'),
        (r"a\b", r'"a\\b"'),
        ("`id`", '"`id`"'),
        ("plain-1.2", "plain-1.2"),
    ],
)
def test_a_name_reaches_slurm_as_it_was_typed(here, capsys, typed, written):
    assert options(script(capsys, "cfg.yaml", "--job-name", typed))["job-name"] == written
    assert options(script(capsys, "cfg.yaml", "--run_name", typed))["job-name"] == written


def test_a_line_end_never_begins_a_line_of_the_script(here):
    injected = "a\ntouch injected"
    for argument in ("--run_name", "--job-name", "--partition", "--output_dir"):
        with pytest.raises(ConfigError, match="control character"):
            submit.main(["cfg.yaml", argument, injected, "--dry-run"])
    (here / "own.jinja").write_text("{{ job.name }}")
    with pytest.raises(ConfigError, match=r"job_name or run_name: .*control character"):
        submit.main(["cfg.yaml", "--job-name", injected, "--slurm.template", "own.jinja", "--dry-run"])


def test_odd_folders_are_the_same_for_slurm_and_for_the_shell(here, sbatch, capsys, monkeypatch):
    odd = here / 'it\'s 100%j "x" $HOME'
    odd.mkdir()
    for name in ("cfg.yaml", "rows.jsonl"):
        (odd / name).write_text((here / name).read_text())
    monkeypatch.chdir(odd)
    assert submit.main(["cfg.yaml"]) == 0
    (folder,) = (odd / "output/slurm").iterdir()
    text = (folder / "job.sh").read_text()
    assert options(text)["chdir"] == f'{here}/it\'s 100%j \\"x\\" $HOME'.join('""')
    assert options(text)["output"].startswith(f"\"{here}/it's 100%%j ") and options(text)["output"].endswith('/%j.log"')
    printed = capsys.readouterr().out
    (follow,) = [line for line in printed.splitlines() if "tail -F" in line]
    assert shlex.split(follow)[-1] == f"{folder}/41.log"
    assert bash(text.splitlines()[1].split("by hand: ")[1].replace("sbatch", "printf %s", 1)) == f"{folder}/job.sh"


def test_a_backslash_in_the_folder_of_the_log_is_refused(here):
    with pytest.raises(ConfigError, match=r"output_dir: .* has a backslash"):
        submit.main(["cfg.yaml", "--output_dir", r"a\b", "--dry-run"])


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["cfg.yaml", "--node", "3"], "--node is not an option. Did you mean --nodes?"),
        (["cfg.yaml", "--partitio=gpu"], "--partitio is not an option. Did you mean --partition?"),
        (["fit", "--config", "nested.yaml", "--gpu-per-node", "3"], "Did you mean --gpus-per-node?"),
        ([*GRPO, "--generator_node", "2"], "Did you mean --generator-nodes?"),
        (["cfg.yaml", "--nodes"], "--nodes has no value. It must be a whole number above 0."),
        (["cfg.yaml", "--nodes", "--time", "60"], "--nodes has no value. It must be a whole number above 0."),
        (["cfg.yaml", "--partition"], "--partition has no value. It must be text that is not empty."),
        (["cfg.yaml", "--generator-nodes", "2"], "generator_nodes is for grpo, and sft trains on all nodes."),
        (["cfg.yaml", "--slurm", "{generator_nodes: 2}"], "generator_nodes is for grpo, and sft trains on all nodes."),
        (["fit", "--config", "nested.yaml", "--generator-nodes=2"], "generator_nodes is for grpo, and fit"),
        (["cfg.yaml", "--time", "24h"], "slurm.time: 24h is not a time limit"),
    ],
)
def test_a_slip_in_an_option_is_told_as_what_it_is(here, argv, sentence):
    with pytest.raises(ConfigError) as error:
        submit.main([*argv, "--dry-run"])
    assert sentence in str(error.value)


def test_keys_of_a_run_are_not_taken_for_misspelt_options(here, capsys):
    flags = ["--gpus", "2", "--eval_seed", "3", "--run_name", "a", "--print_config"]
    assert "--eval_seed 3" in script(capsys, "cfg.yaml", *flags)
    assert options(script(capsys, "cfg.yaml", "--requeue"))["requeue"] == ""


def test_a_job_that_starts_again_resumes_whatever_the_first_start_was_told(here, capsys):
    assert "restart" not in script(capsys, "cfg.yaml")
    afresh = script(capsys, "cfg.yaml", "--resume_from_checkpoint", "false")
    assert '[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || restart=(--resume_from_checkpoint true)' in afresh
    assert command(afresh)[-1] == "${restart[@]}"


def test_all_gpus_of_a_node_are_not_a_number_that_slurm_could_be_asked_for(here, capsys):
    with pytest.raises(ConfigError, match="--gpus-per-node"):
        submit.main(["cfg.yaml", "--gpus", "0", "--dry-run"])
    assert options(script(capsys, "cfg.yaml", "--gpus", "4"))["gpus-per-node"] == "4"


def test_a_cluster_without_gpus_runs_one_task_a_node_unless_more_are_asked_for(here, capsys):
    asked = options(script(capsys, "cfg.yaml", "--gpus-per-node", "0", "--nodes", "2"))
    assert "gpus-per-node" not in asked and asked["ntasks-per-node"] == "1"
    assert (
        options(script(capsys, "cfg.yaml", "--gpus-per-node", "0", "--tasks-per-node", "4"))["ntasks-per-node"] == "4"
    )


def test_the_job_decides_over_the_machines_that_the_file_names(here, capsys):
    with (here / "cfg.yaml").open("a") as file:
        file.write("distributed: {num_nodes: 2, gpus_per_node: 8}\n")
    same = script(capsys, "cfg.yaml")
    assert options(same)["nodes"] == "2" and options(same)["gpus-per-node"] == "8"
    assert "--distributed" not in same
    assert "--distributed.num_nodes=4" in script(capsys, "cfg.yaml", "--nodes", "4")


def test_a_container_is_what_srun_starts(here, capsys):
    pyxis = command(
        script(capsys, "cfg.yaml", "--container", "nvcr.io#org/image:1", "--slurm.container_mounts", "/data")
    )
    assert "--container-image=nvcr.io#org/image:1" in pyxis
    assert f"--container-mounts={here}:{here},/data:/data" in pyxis and "surogate" in pyxis
    apptainer = command(script(capsys, "cfg.yaml", "--container", "i.sif", "--output_dir", "/elsewhere/out"))
    assert apptainer[2:5] == ["apptainer", "exec", "--nv"]
    assert apptainer[5:9] == ["--bind", str(here), "--bind", "/elsewhere/out"]
    assert "--nv" not in script(capsys, "cfg.yaml", "--container", "i.sif", "--gpus-per-node", "0")


def test_a_job_that_is_not_to_be_requeued_is_not(here, capsys):
    text = script(capsys, "cfg.yaml", "--requeue", "false")
    assert "no-requeue" in options(text) and "scontrol requeue" not in text


def test_a_template_of_ones_own_may_extend_ours(here, capsys):
    (here / "own.jinja").write_text(
        '{% extends "train.sh.jinja" %}\n{% block setup %}\nmodule load own\n{% endblock %}'
    )
    text = script(capsys, "cfg.yaml", "--slurm.template", "own.jinja")
    assert "\nmodule load own\n" in text and "srun --kill-on-bad-exit=1" in text


@pytest.mark.parametrize(
    ("template", "reason"), [("{% if %}", "own.jinja:1"), ("{{ job.nothing }}", "nothing"), (None, "does not exist")]
)
def test_a_broken_template_is_refused_with_its_name(here, template, reason):
    if template is not None:
        (here / "own.jinja").write_text(template)
    with pytest.raises(ConfigError, match=rf"slurm.template: own.jinja.*|{reason}") as error:
        submit.main(["cfg.yaml", "--slurm.template", "own.jinja", "--dry-run"])
    assert reason in str(error.value)


def test_fit_gets_its_files_and_options_and_hears_of_the_machines_from_srun(here, capsys):
    (here / "nested.yaml").write_text("trainer: {default_root_dir: out/run}\nmodel: {class_path: x}\n")
    text = script(capsys, "fit", "--config", "nested.yaml", "--nodes", "2", "--gpus-per-node", "8")
    assert command(text)[-2:] == ["--config", "out/run/slurm/NOW/nested.yaml"]
    assert options(text)["job-name"] == "fit-run" and options(text)["ntasks-per-node"] == "8"
    own = command(script(capsys, "nested.yaml", "--trainer.max_steps=3", "--trainer.default_root_dir", "other"))
    assert own[-6:-4] == ["--config", "other/slurm/NOW/nested.yaml"]
    assert own[-4:] == ["--trainer.max_steps", "3", "--trainer.default_root_dir", "other"]
    with pytest.raises(ConfigError, match=r"slurm\.nodes must be"):
        submit.main(["fit", "--config", "nested.yaml", "--nodes", "0"])


def test_grpo_on_one_node_starts_its_parts_itself(here, capsys):
    text = script(capsys, *GRPO, "--gpus-per-node", "4", "--vllm-gpus", "0,1", "--trainer-gpus", "2,3")
    assert options(text)["ntasks-per-node"] == "1" and options(text)["gpus-per-node"] == "4"
    words = command(text)
    assert words[2] == "--job-name=interactive"
    assert words[-4:] == ["--vllm-gpus", "0,1", "--trainer-gpus", "2,3"]


def test_grpo_on_several_nodes_gives_each_part_a_file_that_says_everything(here, sbatch):
    argv = [*GRPO, "--nodes", "3", "--generator-nodes", "2", "--gpus-per-node", "8", "--infer.tp", "2"]
    assert submit.main([*argv, "--orch.batch_size", "64"]) == 0
    (folder,) = (here / "rl/slurm").iterdir()
    parts = {name: yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("train", "infer", "orch")}
    assert parts["infer"] == {
        "model": "some/model", "max_model_len": 64, "max_lora_rank": 32, "max_num_seqs": 8, "tp": 2, "dp": 4
    }  # fmt: skip
    assert parts["orch"]["model"] == {"name": "some/model"} and parts["orch"]["output_dir"] == "rl"
    assert parts["orch"]["batch_size"] == 64 and parts["orch"]["max_steps"] == 9
    assert parts["train"]["lora_rank"] == 20
    text = (folder / "job.sh").read_text()
    assert "nodes[*]:0:1" in text and "nodes[@]:1" in text
    for verb in ("grpo-infer", "grpo-orch", "grpo-train"):
        assert verb in text


@pytest.mark.parametrize(
    ("further", "reason"),
    [
        (["--nodes", "2", "--generator-nodes", "2"], "leaves none to train"),
        (["--nodes", "2", "--train.qlora_bnb", "true"], "qlora_bnb is refused"),
        (["--nodes", "2", "--orch.client.base_url", "http://a:1"], "client.base_url"),
        (["--nodes", "2", "--vllm-gpus", "0", "--trainer-gpus", "1"], "--generator-nodes"),
        (["--nodes", "2", "--gpus-per-node", "3", "--infer.tp", "2"], "does not divide"),
    ],
)
def test_what_a_split_job_cannot_do_is_refused(here, further, reason):
    with pytest.raises(ConfigError, match=reason):
        submit.main([*GRPO, *further, "--dry-run"])


def test_grpo_needs_its_three_files(here):
    with pytest.raises(ConfigError, match="missing: infer, orch"):
        submit.main(["grpo", "--train", "train.yaml"])
