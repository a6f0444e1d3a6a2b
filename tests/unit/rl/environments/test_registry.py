from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from surogate.config.parts_grpo import EnvSpec
from surogate.errors import ConfigError
from surogate.rl.environments import registry
from surogate.rl.environments.arithmetic import ArithmeticEnvironment
from surogate.rl.environments.registry import build_environment, check_environment, environment_ids


def refused(env_id: str, **args: object) -> str:
    with pytest.raises(ConfigError) as caught:
        check_environment(EnvSpec(id=env_id, args=args))
    return str(caught.value)


def test_an_environment_is_built_under_its_name():
    environment = build_environment(EnvSpec(id="arithmetic", name="sums", args={"digits": 2}))
    assert isinstance(environment, ArithmeticEnvironment)
    assert environment.example(3).id == "sums/3"
    assert build_environment(EnvSpec(id="arithmetic")).name == "arithmetic"


@pytest.mark.parametrize("env_id", ["arithmetic", "code", "guess-number", "math", "reverse-text"])
def test_every_built_in_environment_runs_without_arguments(env_id: str):
    environment = build_environment(EnvSpec(id=env_id))
    assert len(environment) >= 10
    ids = {environment.example(index).id for index in range(len(environment))}
    assert len(ids) == len(environment)
    assert environment.example(1) == environment.example(1)
    assert environment.example(1) == build_environment(EnvSpec(id=env_id)).example(1)


def test_an_unknown_id_is_refused_with_the_known_ones_and_the_nearest():
    message = refused("aritmetic")
    assert "Did you mean 'arithmetic'?" in message
    assert all(env_id in message for env_id in environment_ids())
    assert "Did you mean" not in refused("zzz")


def test_arguments_are_checked_all_at_once_and_named():
    message = refused("arithmetic", digit=2, terms="many", prompt="poem")
    assert "'digit' is no argument of it. Did you mean 'digits'?" in message
    assert "terms is 'many'; it must be a whole number above 0 or a list" in message
    assert "prompt is 'poem'; it must be plain or chat" in message


def test_arguments_that_contradict_are_refused():
    assert "terms is [3, 2]" in refused("arithmetic", terms=[3, 2])
    assert "both set" in refused("math", prompt_field="a", messages_field="b")
    assert "set path" in refused("code", prompt="plain")


@pytest.fixture
def rows(tmp_path: Path) -> str:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "2 + 2"}\n')
    return str(tmp_path / "rows.jsonl")


def test_data_that_is_not_there_is_told_before_anything_is_built(tmp_path: Path):
    gone = f"{tmp_path}/gone.jsonl"
    assert f"environment 'math': args.path '{gone}' does not exist" in refused("math", path=gone)
    check_environment(EnvSpec(id="math", args={"path": "openai/gsm8k"}))
    check_environment(EnvSpec(id="math", args={"path": "https://host/rows.jsonl"}))


def test_a_reward_file_is_looked_at_without_running_it(tmp_path: Path, rows: str):
    path = tmp_path / "reward.py"
    path.write_text("raise SystemExit('ran')\ndef score(completions, **columns): ...\n")
    check_environment(EnvSpec(id=f"{path}:score", args={"path": rows}))
    assert "Did you mean 'score'?" in refused(f"{path}:scores", path=rows)
    assert "path must be set" in refused(f"{path}:score")
    assert "there is no file" in refused(f"{tmp_path}/other.py:score", path=rows)
    path.write_text("def (")
    assert "is not Python" in refused(f"{path}:score", path=rows)


def test_a_reward_may_be_imported_or_assigned_in_its_file(tmp_path: Path, rows: str):
    path = tmp_path / "reward.py"
    path.write_text(
        "from rewards import score as exact\nother = exact\nsame: object = exact\n"
        "try:\n    from rewards import fast\nexcept ImportError:\n    def fast(completions): ...\n"
    )
    for name in ("exact", "other", "same", "fast"):
        check_environment(EnvSpec(id=f"{path}:{name}", args={"path": rows}))


def test_an_unknown_task_is_refused_with_the_nearest():
    assert "Did you mean 'reasoning-gym/chain_sum'?" in refused("reasoning-gym/chainsum")
    check_environment(EnvSpec(id="reasoning-gym/chain_sum", args={"max_terms": 3}))
    assert "num_examples is 0" in refused("reasoning-gym/chain_sum", num_examples=0)


def test_a_missing_library_is_named_with_its_installation(monkeypatch):
    find_spec = registry.reasoning_gym_env.importlib.util.find_spec
    hidden = {"reasoning_gym", "math_verify"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name in hidden else find_spec(name, *a))
    registry.reasoning_gym_env.task_names.cache_clear()
    assert "pip install 'surogate[reasoning-gym]'" in refused("reasoning-gym/chain_sum")
    with pytest.raises(ConfigError, match=r"pip install 'surogate\[math\]'"):
        build_environment(EnvSpec(id="math"))


def test_an_environment_without_prompts_is_refused():
    args = {"operations": ["-"], "terms": 2, "held_out_fraction": 0.999999, "num_examples": 5}
    with pytest.raises(ConfigError, match="has no prompts"):
        build_environment(EnvSpec(id="arithmetic", args=args))


def test_checking_and_building_load_nothing_heavy():
    code = """
import sys
from surogate.config.parts_grpo import EnvSpec
from surogate.rl.environments.registry import build_environment, check_environment
check_environment(EnvSpec(id="reasoning-gym/chain_sum"))
for env_id in ("arithmetic", "math", "code", "reverse-text", "guess-number"):
    build_environment(EnvSpec(id=env_id))
heavy = {"torch", "transformers", "lightning", "numpy", "sympy", "math_verify", "reasoning_gym", "datasets", "pyarrow"}
sys.exit(str(heavy & sys.modules.keys()) if heavy & sys.modules.keys() else 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
