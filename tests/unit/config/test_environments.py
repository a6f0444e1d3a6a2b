from __future__ import annotations

import pytest

from surogate.config.environments import ENVIRONMENTS, why_unknown
from surogate.rl.environments.registry import environment_ids


def test_the_built_in_names_are_those_that_can_be_built():
    built_in = {env_id for env_id in ENVIRONMENTS if "<" not in env_id}
    assert built_in == {env_id for env_id in environment_ids() if not {"/", ":"} & set(env_id)}


@pytest.mark.parametrize("env_id", ["", "maths", "reasoning-gym/<task>", "a:b", "verifiers:", "verifiers:a.b"])
def test_what_names_no_environment_is_told_with_those_that_are_known(env_id):
    assert "Known are reverse-text, arithmetic, " in str(why_unknown(env_id))


def test_a_taskset_of_verifiers_may_have_any_name():
    assert why_unknown("verifiers:gsm8k-v1") is None


def test_the_nearest_name_is_suggested():
    assert "Did you mean guess-number?" in str(why_unknown("guess_number"))


def test_a_reward_of_ones_own_needs_its_file(tmp_path):
    (tmp_path / "rewards.py").touch()
    assert why_unknown(f"{tmp_path}/rewards.py:score") is None
    assert "does not exist" in str(why_unknown(f"{tmp_path}/gone.py:score"))
