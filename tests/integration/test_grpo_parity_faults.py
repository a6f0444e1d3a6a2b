"""Deliberate faults between engine and trainer: each ends a real run, before or in its first steps, with its cause."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.byte_model import byte_tokenizer, random_adapter, save_byte_model
from support.grpo_here import fit, nested, train
from transformers import AutoModelForCausalLM

from surogate.errors import GeneratorError, ModelError, SurogateError
from surogate.modes.engine_link import EngineLink
from surogate.rl.generators import vllm_arguments, vllm_engine, vllm_session
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.generators.vllm_session import VllmSession
from surogate.rl.types import Completion

pytestmark = pytest.mark.slow

DISAGREE = "do not agree on the policy"


def end_of(run: Callable[[], Any], kind: type[SurogateError] = GeneratorError) -> str:
    """What a run ends with."""
    with pytest.raises(kind) as caught:
        run()
    return str(caught.value)


def num_steps(folder: Path) -> int:
    """Steps that a run has finished."""
    return len(list((folder / "run/rollouts").glob("step_*.jsonl")))


def change_completions(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[float]], list[float]]) -> None:
    """Let the engine give other log-probabilities than its own."""
    original = vllm_session._completion

    def changed(*arguments: Any, **named: Any) -> Completion:
        completion = original(*arguments, **named)
        return replace(completion, logprobs=change(completion.logprobs))

    monkeypatch.setattr(vllm_session, "_completion", changed)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """An engine must leave torch's threads as they were."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


def test_an_adapter_of_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = AutoModelForCausalLM.from_pretrained(save_byte_model(tmp_path / "base"))
    random_adapter(model, seed=1).save_pretrained(tmp_path / "other")

    def update(link: EngineLink, version: int, *, noisy: bool = True) -> WeightUpdate:
        return WeightUpdate(version=version, adapter_dir=tmp_path / "other")

    monkeypatch.setattr(EngineLink, "update", update)
    text = end_of(lambda: train(tmp_path, train={"weight_sync": "adapter"}))
    assert DISAGREE in text and "a wrong or stale adapter" in text
    assert num_steps(tmp_path) == 0


def test_an_adapter_that_stays_that_of_the_step_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first: list[WeightUpdate] = []
    original = EngineLink.update

    def update(link: EngineLink, version: int, *, noisy: bool = True) -> WeightUpdate:
        first.append(original(link, version, noisy=noisy))
        return replace(first[0], version=version)

    monkeypatch.setattr(EngineLink, "update", update)
    text = end_of(lambda: train(tmp_path, train={"weight_sync": "adapter"}))
    assert text.endswith("Cause: the engine still answers with the weights of version 0, and not 1.")


def test_a_prefix_cache_that_outlives_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "long.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{'of ' * 20}{n:02}:"}) + "\n" for n in range(48))
    )
    config = nested(tmp_path, orch={"seq_len": 128})
    config["data"]["init_args"]["environments"][0]["args"]["path"] = str(tmp_path / "long.jsonl")
    load = VllmSession.load

    def keep_cache(session: VllmSession, update: WeightUpdate, noise_seed: int) -> None:
        monkeypatch.setattr(session._engine, "reset_prefix_cache", lambda **_: True)
        load(session, update, noise_seed)

    monkeypatch.setattr(VllmSession, "load", keep_cache)
    text = end_of(lambda: fit(config))
    assert DISAGREE in text and "its prefix cache is stale" in text
    assert num_steps(tmp_path) <= 2


def test_a_prefix_cache_that_the_engine_cannot_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    load = VllmSession.load

    def keep_cache(session: VllmSession, update: WeightUpdate, noise_seed: int) -> None:
        monkeypatch.setattr(session._engine, "reset_prefix_cache", lambda **_: False)
        load(session, update, noise_seed)

    monkeypatch.setattr(VllmSession, "load", keep_cache)
    assert "did not let go of what it computed with the old weights" in end_of(lambda: train(tmp_path))


def test_logprobs_that_leave_the_temperature_out(tmp_path: Path):
    config = nested(tmp_path, orch={"sampling": {"max_tokens": 24, "temperature": 0.7}})
    config["data"]["init_args"]["inference"]["vllm"]["logprobs_mode"] = "raw_logprobs"
    text = end_of(lambda: fit(config))
    assert "are those of temperature 1 and not of the sampling temperature (logprobs_mode" in text
    assert num_steps(tmp_path) == 0


def test_an_engine_that_samples_at_another_temperature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = vllm_arguments.sampling_arguments
    hot = lambda sampling, stop: {**original(sampling, stop), "temperature": 1.3}  # noqa: E731
    monkeypatch.setattr(vllm_engine, "sampling_arguments", hot)
    text = end_of(lambda: train(tmp_path))
    assert "are those of temperature 1.3 and not of the sampling temperature." in text
    assert num_steps(tmp_path) == 0


def test_an_engine_that_turns_hot_after_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original, num_requests = vllm_arguments.sampling_arguments, [0]

    def hot_later(sampling: Any, stop: Any) -> dict[str, Any]:
        num_requests[0] += 1
        return original(sampling, stop) | ({"temperature": 1.3} if num_requests[0] > 12 else {})

    monkeypatch.setattr(vllm_engine, "sampling_arguments", hot_later)
    text = end_of(lambda: train(tmp_path))
    assert DISAGREE in text and "or it samples at another temperature" in text
    assert num_steps(tmp_path) <= 2


def test_truncated_sampling_that_has_passed_the_configuration(tmp_path: Path):
    config = nested(tmp_path)
    config["data"]["init_args"]["orchestrator"]["sampling"]["top_p"] = 0.8
    text = end_of(lambda: fit(config))
    assert "sampling is truncated or penalised (top_p" in text
    assert num_steps(tmp_path) == 0


def test_logprobs_that_are_shifted_by_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    change_completions(monkeypatch, lambda logprobs: [*logprobs[1:], -3.0])
    text = end_of(lambda: train(tmp_path))
    assert "shifted by one token against the token ids" in text
    assert num_steps(tmp_path) == 0


def test_logprobs_that_are_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    change_completions(monkeypatch, lambda logprobs: [float("nan"), *logprobs[1:]])
    assert "the log-probability nan" in end_of(lambda: train(tmp_path))
    assert num_steps(tmp_path) == 0


def test_an_engine_in_a_coarser_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vllm_arguments, "_dtype", lambda spec, has_gpu: "bfloat16")
    text = end_of(lambda: train(tmp_path))
    assert "the engine's dtype is coarser than the trainer's" in text
    assert num_steps(tmp_path) == 0


def test_a_tokenizer_whose_numbers_mean_other_tokens_to_the_engine(tmp_path: Path):
    save_byte_model(tmp_path / "other")
    other = json.loads((tmp_path / "other/tokenizer.json").read_text())
    vocabulary = other["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(other))
    text = end_of(lambda: train(tmp_path, train={"tokenizer": str(tmp_path / "other")}), ModelError)
    assert "give 2 tokens other numbers, for example 'a'" in text


def test_a_tokenizer_that_ends_texts_where_the_engine_does_not(tmp_path: Path):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<|im_start|>"
    tokenizer.save_pretrained(tmp_path / "other")
    text = end_of(lambda: train(tmp_path, train={"tokenizer": str(tmp_path / "other")}), ModelError)
    assert "ends a text with '<|im_start|>', and the engine" in text
