"""The engine in this process: real vLLM on a byte model, against transformers and PEFT in float32.

One engine serves most tests; the process group is there before it, as a trainer's is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from peft import PeftModel
from support.byte_model import (
    VOCAB,
    byte_tokenizer,
    distance,
    largest_distance,
    merged_weights,
    random_adapter,
    randomize_adapter_,
    save_byte_model,
    token_logprobs,
)
from transformers import AutoModelForCausalLM

from surogate.config.parts_grpo import InferenceSpec, SamplingSpec
from surogate.errors import GeneratorError
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.generators.vllm_engine import InProcessVllm
from surogate.rl.types import Completion

pytestmark = pytest.mark.slow

AGREEMENT = 1e-4
"""Log-probabilities of vLLM against transformers', float32; measured 7e-6."""
DIFFERENT = 1e-2
"""What other weights change at least; measured 0.5 and more."""
CONTEXT = 512
PROMPT = [5, 6, 7, 8]
LONG_PROMPT = [20 + i % 50 for i in range(100)]
"""More than three blocks of the KV cache."""

T = TypeVar("T")


class Engine:
    """A running generator, and the event loop that it is asked from."""

    def __init__(self, folder: Path, runner: asyncio.Runner, **changes: Any) -> None:
        spec = InferenceSpec(max_model_len=CONTEXT, max_lora_rank=8, **changes)
        self.generator = InProcessVllm(spec, folder)
        self._runner = runner
        self.run(self.generator.start())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    def sample(
        self, prompt: list[int], n: int = 4, max_tokens: int = 20, seed: int | None = None, **changes: Any
    ) -> list[Completion]:
        sampling = SamplingSpec(max_tokens=max_tokens, **changes)
        return self.run(self.generator.generate(prompt, n, sampling, seed=seed))

    def load(self, version: int, folder: Path | None = None, **changes: Any) -> None:
        self.run(self.generator.load_weights(WeightUpdate(version=version, adapter_dir=folder, **changes)))

    async def until_sampled(self, num_tokens: int) -> None:
        """Wait until each running request has some tokens."""
        lengths: list[int] = []

        def look(session: Any) -> None:
            states = session._engine.output_processor.request_states.values()
            lengths[:] = [state.detokenizer.num_output_tokens() for state in states]

        while not lengths or min(lengths) < num_tokens:
            await asyncio.wrap_future(self.generator._thread.call(look))


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[asyncio.Runner]:
    """The event loop; with a process group that outlives the engines."""
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    with asyncio.Runner() as runner:
        yield runner
    assert torch.distributed.is_initialized()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(model_dir: Path, runner: asyncio.Runner) -> Iterator[Engine]:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    engine = Engine(model_dir, runner)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.set_num_threads is set_num_threads
    assert torch.get_num_threads() == num_threads
    yield engine
    engine.run(engine.generator.close())
    engine.run(engine.generator.close())
    with pytest.raises(GeneratorError, match="its engine has ended: it was closed"):
        engine.sample(PROMPT)


@pytest.fixture(scope="module")
def policy(model_dir: Path) -> PeftModel:
    """The trainer's model, with an adapter that is not the identity."""
    return random_adapter(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32), seed=1)


# --- the base model; these come first, since an engine keeps its adapter ----------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.4])
def test_logprobs_are_the_trainers_at_the_sampling_temperature(
    engine: Engine, policy: PeftModel, temperature: float
) -> None:
    completions = engine.sample(PROMPT, n=8, temperature=temperature)
    with policy.disable_adapter():
        assert largest_distance(policy, PROMPT, completions, temperature) < AGREEMENT
    assert {version for c in completions for version in c.versions} == {0}
    assert all(len(c.token_ids) == len(c.logprobs) == len(c.versions) for c in completions)


def test_scores_of_a_full_sequence_are_the_trainers(engine: Engine, policy: PeftModel) -> None:
    sequence = [3 + (i * i) % 250 for i in range(CONTEXT)]
    scores = engine.run(engine.generator.score(sequence))
    with policy.disable_adapter():
        reference = token_logprobs(policy, sequence[:1], sequence[1:])
    assert (torch.tensor(scores) - reference).abs().max() < AGREEMENT
    assert engine.run(engine.generator.score([5])) == []


def test_the_same_seed_samples_the_same_and_none_does_not(engine: Engine) -> None:
    first, again, other = (engine.sample(PROMPT, seed=seed) for seed in (7, 7, 8))
    free, freely = engine.sample(PROMPT), engine.sample(PROMPT)
    tokens = [[c.token_ids for c in completions] for completions in (first, again, other, free, freely)]
    assert tokens[0] == tokens[1]
    assert len({str(t) for t in tokens}) == 4
    assert len({str(c.token_ids) for c in first}) == 4


def test_temperature_0_takes_the_most_likely_token(engine: Engine, policy: PeftModel) -> None:
    (completion,) = engine.sample(PROMPT, n=1, temperature=0.0)
    with policy.disable_adapter(), torch.no_grad():
        logits = policy(input_ids=torch.tensor([PROMPT + completion.token_ids])).logits[0, len(PROMPT) - 1 : -1]
    assert logits.argmax(-1).tolist() == completion.token_ids


def test_sampling_leaves_the_random_numbers_of_the_process_alone(engine: Engine) -> None:
    async def everything() -> None:
        sampling = [SamplingSpec(max_tokens=5, temperature=t) for t in (0.0, 1.0)]
        await asyncio.gather(
            *(engine.generator.generate(PROMPT, 2, s, seed=None) for s in sampling), engine.generator.score(LONG_PROMPT)
        )

    state = torch.get_rng_state()
    engine.run(everything())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_completion_ends_with_the_end_of_text_or_the_stop_string(engine: Engine) -> None:
    tokenizer = byte_tokenizer()
    ended = [c for c in engine.sample(PROMPT, n=32, max_tokens=200, temperature=2.0) if c.finish_reason == "stop"]
    assert ended
    assert all(c.token_ids[-1] == tokenizer.eos_token_id for c in ended)
    sampling = SamplingSpec(max_tokens=200, temperature=2.0)
    stopped = engine.run(engine.generator.generate(PROMPT, 16, sampling, stop=["a"], seed=None))
    texts = [tokenizer.decode(c.token_ids) for c in stopped if c.token_ids[-1] != tokenizer.eos_token_id]
    assert any(text.endswith("a") and len(text) < 200 for text in texts)


def test_a_request_that_does_not_fit_is_refused(engine: Engine) -> None:
    with pytest.raises(GeneratorError, match=r"4 tokens and max_tokens 509 do not fit .* max_model_len of 512"):
        engine.sample(PROMPT, max_tokens=CONTEXT - 3)
    with pytest.raises(GeneratorError, match="the prompt has no tokens"):
        engine.sample([])
    (full,) = engine.sample(PROMPT, n=1, max_tokens=CONTEXT - 4, temperature=1.0, min_tokens=CONTEXT - 4)
    assert len(full.token_ids) == CONTEXT - 4


def test_cancelling_stops_the_sampling(engine: Engine) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(engine.generator.generate(PROMPT, 4, SamplingSpec(max_tokens=400), seed=None))
        await engine.until_sampled(2)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        is_idle: list[bool] = []
        await asyncio.wrap_future(engine.generator._thread.call(lambda session: is_idle.append(session.is_idle)))
        assert is_idle == [True]

    engine.run(cancel())


# --- an adapter -------------------------------------------------------------------------------------------------------


def test_rows_of_the_base_stay_the_bases_when_an_adapter_comes(
    engine: Engine, policy: PeftModel, tmp_path: Path
) -> None:
    policy.save_pretrained(tmp_path)

    async def mixed() -> tuple[list[Completion], list[Completion]]:
        generate, sampling = engine.generator.generate, SamplingSpec(max_tokens=80)
        old = asyncio.create_task(generate(PROMPT, 3, sampling, seed=1))
        await engine.until_sampled(10)
        await engine.generator.load_weights(WeightUpdate(version=1, adapter_dir=tmp_path))
        new = await generate(PROMPT, 3, sampling, seed=2)
        return await old, new

    base, adapted = engine.run(mixed())
    assert {v for c in base for v in c.versions} == {0}
    assert {v for c in adapted for v in c.versions} == {1}
    assert max(len(c.token_ids) for c in base) > 40
    assert largest_distance(policy, PROMPT, adapted) < AGREEMENT
    with policy.disable_adapter():
        assert largest_distance(policy, PROMPT, base) < AGREEMENT
        assert largest_distance(policy, PROMPT, adapted) > DIFFERENT


def test_a_new_adapter_changes_what_is_sampled_and_agrees_with_peft(
    engine: Engine, policy: PeftModel, tmp_path: Path
) -> None:
    for version in (2, 3):
        old_scores = engine.run(engine.generator.score(LONG_PROMPT)) if version == 3 else None
        randomize_adapter_(policy, seed=version)
        folder = tmp_path / str(version)
        policy.save_pretrained(folder)
        engine.load(version, folder)
        completions = engine.sample(PROMPT)
        assert largest_distance(policy, PROMPT, completions) < AGREEMENT
        assert {v for c in completions for v in c.versions} == {version}
        if old_scores is not None:
            new_scores = engine.run(engine.generator.score(LONG_PROMPT))
            assert (torch.tensor(new_scores) - torch.tensor(old_scores)).abs().max() > DIFFERENT


def test_no_prefix_of_old_weights_is_used_even_under_the_same_name_and_path(
    engine: Engine, policy: PeftModel, tmp_path: Path
) -> None:
    for seed in (10, 11):
        randomize_adapter_(policy, seed)
        policy.save_pretrained(tmp_path)
        engine.load(4, tmp_path)
        for _ in range(2):  # the second time from the cache
            assert largest_distance(policy, LONG_PROMPT, engine.sample(LONG_PROMPT, max_tokens=3)) < AGREEMENT


def test_running_completions_go_on_with_the_new_adapter_and_tell_so(
    engine: Engine, policy: PeftModel, tmp_path: Path
) -> None:
    folders = []
    for version in (5, 6):
        randomize_adapter_(policy, version)
        policy.save_pretrained(tmp_path / str(version))
        folders.append(tmp_path / str(version))
    engine.load(5, folders[0])

    async def exchange() -> list[Completion]:
        task = asyncio.create_task(engine.generator.generate(PROMPT, 2, SamplingSpec(max_tokens=80), seed=3))
        await engine.until_sampled(10)
        await engine.generator.load_weights(WeightUpdate(version=6, adapter_dir=folders[1]))
        return await task

    completions = engine.run(exchange())
    by_version = {
        version: PeftModel.from_pretrained(base_of(policy), folder)
        for version, folder in zip((5, 6), folders, strict=True)
    }
    checked = 0
    for completion in completions:
        assert completion.versions == sorted(completion.versions)
        for version, model in by_version.items():
            far = distance(model, PROMPT, completion)[torch.tensor(completion.versions) == version]
            assert far.numel() == 0 or far.max() < AGREEMENT
            checked += far.numel() > 0
    assert checked >= 3


def base_of(policy: PeftModel) -> Any:
    return AutoModelForCausalLM.from_pretrained(policy.peft_config["default"].base_model_name_or_path)


def test_a_refused_adapter_leaves_the_old_one(engine: Engine, policy: PeftModel, tmp_path: Path) -> None:
    randomize_adapter_(policy, seed=7)
    policy.save_pretrained(tmp_path / "good")
    engine.load(7, tmp_path / "good")
    random_adapter(base_of(policy), seed=1, rank=16).save_pretrained(tmp_path / "large")
    for folder, reason in ((tmp_path / "large", "greater than max_lora_rank"), (tmp_path / "none", "No adapter found")):
        with pytest.raises(GeneratorError, match=f"vLLM could not load version 8: .*{reason}"):
            engine.load(8, folder)
    completions = engine.sample(PROMPT)
    assert {v for c in completions for v in c.versions} == {7}
    assert largest_distance(policy, PROMPT, completions) < AGREEMENT


def test_norm_noise_changes_the_engine_and_is_taken_away_exactly(
    engine: Engine, policy: PeftModel, tmp_path: Path
) -> None:
    policy.save_pretrained(tmp_path)
    scores = []
    for version, sigma in ((8, 0.0), (9, 0.05), (10, 0.05), (11, 0.0)):
        engine.load(version, tmp_path, norm_noise_sigma=sigma)
        scores.append(torch.tensor(engine.run(engine.generator.score(LONG_PROMPT))))
    assert (scores[1] - scores[0]).abs().max() > 1e-3
    assert (scores[2] - scores[1]).abs().max() > 1e-3
    assert torch.equal(scores[3], scores[0])


def test_merged_weights_are_refused_beside_an_adapter(engine: Engine, policy: PeftModel) -> None:
    with pytest.raises(GeneratorError, match="serves an adapter already"):
        engine.load(12, tensors=lambda: merged_weights(policy))
    engine.sample(PROMPT)


# --- all weights; in another family and without adapters --------------------------------------------------------------


def test_exchanging_all_weights_changes_also_the_head_of_a_tied_model(runner: asyncio.Runner, tmp_path: Path) -> None:
    folder = save_byte_model(tmp_path / "model", "llama", seed=1)
    policy = random_adapter(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), seed=1)
    assert policy.config.tie_word_embeddings
    engine = Engine(folder, runner, enable_lora=False)
    with torch.no_grad():
        policy.get_input_embeddings().weight.add_(torch.randn(VOCAB, 64) * 0.1)

    async def exchange() -> list[Completion]:
        task = asyncio.create_task(engine.generator.generate(PROMPT, 2, SamplingSpec(max_tokens=80), seed=3))
        await engine.until_sampled(10)
        await engine.generator.load_weights(WeightUpdate(version=1, tensors=lambda: merged_weights(policy)))
        return await task

    for completion in engine.run(exchange()):
        of_new = torch.tensor(completion.versions) == 1
        if of_new.any():
            assert distance(policy, PROMPT, completion)[of_new].max() < AGREEMENT
        assert completion.versions[:10] == [0] * 10
    completions = engine.sample(LONG_PROMPT)
    assert largest_distance(policy, LONG_PROMPT, completions) < AGREEMENT
    assert {v for c in completions for v in c.versions} == {1}

    with pytest.raises(GeneratorError, match="serves no adapters"):
        engine.load(2, tmp_path)
    with pytest.raises(GeneratorError, match=r"the new weights lack 1 of the \d+ tensors"):
        engine.load(2, tensors=lambda: iter(list(merged_weights(policy))[1:]))
    with pytest.raises(GeneratorError, match="its engine has ended: an exchange of weights failed half way"):
        engine.sample(PROMPT)
    engine.run(engine.generator.close())


def test_prompts_that_are_computed_in_parts_are_sampled_as_whole_ones(model_dir: Path, runner: asyncio.Runner) -> None:
    step_len = 64
    narrow = Engine(model_dir, runner, max_num_seqs=8, enable_prefix_caching=False, vllm={"max_num_batched_tokens": 64})
    prompts = [[number, *LONG_PROMPT[: step_len - 4]] for number in range(5, 9)]
    whole = [narrow.sample(prompt, n=1, seed=number) for number, prompt in enumerate(prompts)]

    async def at_once() -> list[list[Completion]]:
        sampling = SamplingSpec(max_tokens=20)
        return await asyncio.gather(
            *(narrow.generator.generate(prompt, 1, sampling, seed=number) for number, prompt in enumerate(prompts))
        )

    parts = narrow.run(at_once())
    narrow.run(narrow.generator.close())
    assert [c.token_ids for (c,) in parts] == [c.token_ids for (c,) in whole]
