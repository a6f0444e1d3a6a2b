"""The generator of other unit tests keeps the protocol."""

from __future__ import annotations

import asyncio
import math

import pytest

from surogate.config.parts_grpo import SamplingSpec
from surogate.errors import GeneratorError
from surogate.rl.generators.fake import FakeGenerator
from surogate.rl.generators.protocol import Generator, WeightUpdate

SAMPLING = SamplingSpec(max_tokens=8)


def test_draws_end_with_the_end_of_text_and_repeat_with_the_seed() -> None:
    async def run() -> None:
        generator: Generator = FakeGenerator(vocab_size=4)
        await generator.start()
        first, again = [await generator.generate([1], 16, SAMPLING, seed=3) for _ in range(2)]
        assert first == again
        assert {c.finish_reason for c in first} == {"stop", "length"}
        assert all((c.token_ids[-1] == 0) == (c.finish_reason == "stop") for c in first)
        assert first[0].logprobs[0] == -math.log(4)
        assert await generator.score([1, 2, 3]) == [-math.log(4)] * 2

    asyncio.run(run())


def test_weights_that_come_meanwhile_sample_the_rest() -> None:
    async def run() -> None:
        generator = FakeGenerator(script=lambda prompt, n: [[5] * 4] * n, seconds=0.05)
        await generator.start()
        task = asyncio.create_task(generator.generate([1], 1, SAMPLING, seed=None))
        await asyncio.sleep(0)
        await generator.load_weights(WeightUpdate(version=2))
        assert (await task)[0].versions == [0, 0, 2, 2]
        assert [update.version for update in generator.loads] == [2]

    asyncio.run(run())


def test_failures_and_states_are_errors() -> None:
    async def run() -> None:
        generator = FakeGenerator()
        with pytest.raises(GeneratorError, match="has not been started"):
            await generator.generate([1], 1, SAMPLING, seed=None)
        await generator.start()
        generator.failures.extend([None, GeneratorError("lost")])
        await generator.generate([1], 1, SAMPLING, seed=None)
        with pytest.raises(GeneratorError, match="lost"):
            await generator.generate([1], 1, SAMPLING, seed=None)
        await generator.sleep()
        with pytest.raises(GeneratorError, match="asleep"):
            await generator.score([1, 2])
        await generator.wake()
        await generator.close()
        with pytest.raises(GeneratorError, match="closed"):
            await generator.score([1, 2])

    asyncio.run(run())
