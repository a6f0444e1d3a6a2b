"""Environments as training uses them: with a real tokenizer and template, and the libraries that they are made of."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support.smollm2 import GGUF

from surogate.config.parts_grpo import EnvSpec, SamplingSpec
from surogate.data.tokenizers import load_tokenizer
from surogate.errors import ConfigError
from surogate.rl.env_check import EnvReport, check
from surogate.rl.environments.base import Environment
from surogate.rl.environments.reasoning_gym_env import answer_in, task_names
from surogate.rl.environments.registry import build_environment
from surogate.rl.policy import SampledPolicy
from surogate.rl.types import Completion, Rollout


@cache
def tokenizer() -> Any:
    return load_tokenizer(GGUF)


class ScriptedGenerator:
    """An engine that says given texts, each as a turn that is ended as the model ends one."""

    max_model_len = 4096

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = itertools.cycle(texts)

    async def generate(self, prompt_ids, n, sampling, *, stop=(), seed, asker=None):
        completions = []
        for text in itertools.islice(self._texts, n):
            ids = [*tokenizer()(text).input_ids, tokenizer().eos_token_id]
            completions.append(
                Completion(token_ids=ids, logprobs=[-1.0] * len(ids), versions=[0] * len(ids), finish_reason="stop")
            )
        return completions


def policy(*texts: str) -> SampledPolicy:
    return SampledPolicy(tokenizer(), ScriptedGenerator(texts), SamplingSpec(max_tokens=64), 4096)


def built(env_id: str, **args: object) -> Environment:
    return build_environment(EnvSpec(id=env_id, args=args))


def rollouts(environment: Environment, n: int, *texts: str) -> list[Rollout]:
    async def run() -> list[Rollout]:
        try:
            return await environment.rollouts(environment.example(0), n, policy(*texts))
        finally:
            await environment.close()

    return asyncio.run(run())


def checked(environment: Environment, num_examples: int = 3) -> EnvReport:
    async def run() -> EnvReport:
        try:
            return await check(environment, None, num_examples, 4)
        finally:
            await environment.close()

    return asyncio.run(run())


def test_a_plain_prompt_is_tokenised_as_it_stands():
    environment = built("arithmetic")
    example = environment.example(0)
    (right, wrong) = rollouts(environment, 2, f" {example.columns['answer']}", " 1000")
    assert tokenizer().decode(right.prompt_ids) == example.prompt
    assert (right.reward, wrong.reward) == (1.0, 0.0)


@pytest.mark.parametrize("env_id", ["arithmetic", "reverse-text", "math", "code", "reasoning-gym/chain_sum"])
def test_a_reference_said_by_a_model_earns_everything(env_id: str):
    args = {"prompt": "chat"} if env_id == "arithmetic" else {}
    environment = built(env_id, num_examples=3, **args)
    reference = environment.reference(environment.example(0))
    first, second = rollouts(environment, 2, reference, "I cannot say.")
    assert first.reward == 1.0
    assert second.reward < 0.5
    text = tokenizer().decode(first.prompt_ids)
    assert text.endswith("<|im_start|>assistant\n")


def test_a_conversation_is_the_one_that_the_template_renders():
    environment = built("guess-number", highest=15)
    number = environment.example(0).columns["number"]
    guesses = ["8", "no idea", str(number)]
    (rollout,) = rollouts(environment, 1, *guesses)
    assert rollout.reward == 1.0
    messages = [*environment.example(0).prompt]
    answers = ["Lower." if number < 8 else "Higher.", "That is no number. Reply with one number only."]
    for guess, answer in itertools.zip_longest(guesses, answers):
        messages.append({"role": "assistant", "content": guess})
        messages += [{"role": "user", "content": answer}] if answer else []
    whole = tokenizer().decode([*rollout.prompt_ids, *rollout.completion_ids])
    assert whole == tokenizer().apply_chat_template(messages, tokenize=False).rstrip("\n")
    sampled = [token for token, mine in zip(rollout.completion_ids, rollout.sampled, strict=True) if mine]
    end = tokenizer().eos_token
    assert tokenizer().decode(sampled) == end.join(guesses) + end


@pytest.mark.parametrize(
    ("task", "args"),
    [
        ("chain_sum", {"max_terms": 3, "max_digits": 2}),
        ("spell_backward", {}),
        ("gsm_symbolic", {}),
        ("simple_equations", {}),
        ("knights_knaves", {}),
        ("list_functions", {}),  # draws from the random numbers of the whole process
        ("countdown", {}),
        ("word_sorting", {}),
    ],
)
def test_a_task_of_reasoning_gym_scores_its_own_answers(task: str, args: dict):
    report = checked(built(f"reasoning-gym/{task}", num_examples=3, **args))
    assert report.references == [1.0] * 3
    assert min(map(min, report.rewards)) < 1.0
    assert not report.errors


def test_the_tasks_that_are_known_are_those_that_the_library_has():
    code = "import json; from reasoning_gym.factory import DATASETS; print(json.dumps(sorted(DATASETS)))"
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert task_names() == [name for name in json.loads(listed) if name != "composite"]


def test_the_entries_of_a_task_are_the_same_every_time():
    first, second = (built("reasoning-gym/knights_knaves", num_examples=5, seed=3) for _ in range(2))
    other = built("reasoning-gym/knights_knaves", num_examples=5, seed=4)
    assert [first.example(i) for i in range(5)] == [second.example(i) for i in range(5)]
    assert first.example(0).prompt != other.example(0).prompt


def test_arguments_that_a_task_does_not_have_or_refuses_are_told():
    with pytest.raises(ConfigError, match=r"'max_term' is no argument of the task chain_sum. Allowed: .*max_terms"):
        built("reasoning-gym/chain_sum", max_term=3)
    with pytest.raises(ConfigError, match=r"refuses the arguments .*max_terms must be >= min_terms"):
        built("reasoning-gym/chain_sum", min_terms=5, max_terms=3)


def test_an_answer_that_a_task_evaluates_can_do_nothing(tmp_path: Path):
    """countdown parses the answer with sympy, which evaluates it."""
    environment = built("reasoning-gym/countdown", num_examples=1, timeout_seconds=5.0)
    outside = tmp_path / "outside"
    attacks = [
        f"<answer>__import__('os').system('touch {outside}')</answer>",
        f"<answer>open({str(outside)!r}, 'w').write('x')</answer>",
        "<answer>__import__('os')._exit(0)</answer>",
    ]
    made = rollouts(environment, 3, *attacks)
    assert all(rollout.reward < 1.0 for rollout in made)
    assert not outside.exists()


def test_the_answer_is_taken_out_of_a_completion():
    assert answer_in("so <answer>3</answer>, no: <answer> 4 </answer>.") == "4"
    assert answer_in("<answer>cut off") == "cut off"
    assert answer_in("first\n last line \n") == "last line"
    assert answer_in("") == ""


def test_math_data_in_the_style_of_gsm8k_is_read_and_checked(tmp_path: Path):
    rows = [{"question": f"What is {i} times 7?", "answer": f"It is {i} * 7.\n#### {7 * i}"} for i in range(2, 6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = checked(built("math", path=str(tmp_path / "rows.jsonl")))
    assert report.references == [1.0] * 3
    assert not report.problems()


def test_a_reward_of_ones_own_is_checked_on_a_parquet_file(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"prompt": ["say a", "say b"], "letter": ["a", "b"]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "reward.py").write_text(
        "def starts(completions, letter, **columns):\n"
        "    return [float(c.startswith(x)) for c, x in zip(completions, letter)]\n"
    )
    args = {"path": str(tmp_path / "rows.parquet"), "reference_field": "letter"}
    report = checked(built(f"{tmp_path}/reward.py:starts", **args))
    assert report.references == [1.0, 1.0]
    assert report.num_examples == 2
    assert not report.errors
