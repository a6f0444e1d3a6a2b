"""Tasksets of verifiers 0.4: `verifiers:<taskset>`, with its tools, several turns and rewards.

What is not here: the HTTP interface that verifiers asks (token_endpoint.py). The one idea: verifiers holds the
conversations, and every token in them is sampled by the run's own policy, so a trace of verifiers becomes a rollout
without anything being tokenised again. Only functions of this module import verifiers, which is an optional extra.
"""

from __future__ import annotations

import asyncio
import importlib.util
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from surogate.errors import ConfigError, DataError
from surogate.rl.environments.base import Environment, Policy, RewardError
from surogate.rl.environments.token_endpoint import MODEL, Conversation, TokenEndpoint
from surogate.rl.environments.verifiers_settings import (
    PREFIX,
    VerifiersArgs,
    environment_settings,
    explained,
    renderer_of,
    renderer_settings,
)
from surogate.rl.types import Example, Message, Rollout

_STOPPED_FULL = "context_length"
"""Stop condition of a conversation that has no room for another reply."""
_START_SECONDS = 300.0
"""Longest time until tool servers that tasks share are up."""


class VerifiersEnvironment(Environment):
    """Lets verifiers run its conversations with the policy.

    Args:
        name: in metrics.
        taskset: as verifiers knows it: an installed module.
        args: settings.

    Raises:
        ConfigError: verifiers is not installed, or refuses the taskset or the settings.
    """

    def __init__(self, name: str, taskset: str, args: VerifiersArgs) -> None:
        super().__init__(name)
        check_taskset(taskset)
        import verifiers.v1 as vf

        try:
            self._env = vf.load_environment(environment_settings(taskset, args))
            self._renderer = None if args.renderer is None else renderer_settings(args.renderer)
            tasks = self._env.taskset if args.num_examples is None else self._env.taskset.take(args.num_examples)
            if not tasks.bounded:
                raise ConfigError(f"environment {name!r}: {taskset} has no end; set num_examples.")
            self._tasks = list(tasks)
        except ConfigError:
            raise
        except (ImportError, AttributeError, TypeError, ValueError, OSError) as error:
            raise ConfigError(f"environment {name!r}: verifiers refuses {taskset!r}: {explained(error)}") from error
        self._endpoint = TokenEndpoint()
        self._stack = AsyncExitStack()
        self._starting = asyncio.Lock()
        self._context: Any = None

    def __len__(self) -> int:
        return len(self._tasks)

    def example(self, index: int) -> Example:
        """Return a task; see Environment.example. Its prompt is for people: verifiers asks it."""
        messages = _messages(self._tasks[index].data)
        return Example(id=f"{self.name}/{index}", env=self.name, prompt=messages, columns={"index": index})

    async def rollouts(self, example: Example, n: int, policy: Policy) -> list[Rollout]:
        """Hold n conversations about a task at the same time; see Environment.rollouts.

        Raises:
            DataError: nothing can be sampled, or a conversation cannot be trained on.
        """
        context = await self._started(policy)
        conversations: dict[str, Conversation] = {}

        def begin(trace: Any) -> None:
            conversations[trace.id] = Conversation(policy, partial(trace.stop, _STOPPED_FULL))
            self._endpoint.open(trace.id, conversations[trace.id])

        slots = self._env.slots(self._tasks[example.columns["index"]], n)
        running = [asyncio.create_task(self._env.run_slot(slot, context, on_trace=begin)) for slot in slots]
        try:
            episodes = await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await self._endpoint.end(list(conversations))
        for conversation in conversations.values():
            if conversation.failure is not None:
                raise conversation.failure
        traces = [trained_trace(episode, example) for episode in episodes]
        return [rollout_of(trace, conversations[trace.id], example) for trace in traces]

    async def close(self) -> None:
        """End tool servers and the endpoint."""
        self._context = None
        await self._stack.aclose()

    async def _started(self, policy: Policy) -> Any:
        """Return verifiers' name for whom to ask and how, after starting what serves."""
        async with self._starting:
            if self._context is None:
                self._context = await self._start(policy)
            return self._context

    async def _start(self, policy: Policy) -> Any:
        import verifiers.v1 as vf

        if policy.tokenizer is None:
            raise DataError(f"{self.name}: verifiers needs a model's tokenizer, so it cannot be tried without a model.")
        renderer = renderer_of(policy.tokenizer, self._renderer, policy.chat_template_kwargs, self.name)
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(TemporaryDirectory(prefix="surogate-tokenizer-"))
            policy.tokenizer.save_pretrained(folder)
            stack.push_async_callback(self._endpoint.close)
            client = vf.TrainClientConfig(
                base_url=await self._endpoint.start(),
                api_key_var="SUROGATE_NO_KEY",  # its default is a company's, whose settings it would read
                renderer_model_name=folder,
                renderer=renderer,
            )
            serving = _Serving(self._env)
            stack.push_async_callback(serving.end)
            await serving.begin()
            self._stack = stack.pop_all()
        return vf.clients.ModelContext(model=MODEL, client=client)


class _Serving:
    """The servers of an environment, held open by a task of their own: they must end in the task that began them."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._up, self._over = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Return when they are up."""
        self._task = asyncio.create_task(self._hold())
        up = asyncio.create_task(self._up.wait())
        await asyncio.wait([self._task, up], timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if self._task.done():
            await self._task
        if not self._up.is_set():
            raise DataError(f"The servers of a verifiers environment were not up within {_START_SECONDS:g} s.")

    async def end(self) -> None:
        """Return when they are down."""
        self._over.set()
        if self._task is None:
            return
        if not self._up.is_set():
            self._task.cancel()
        await asyncio.wait([self._task])
        if self._up.is_set():
            await self._task

    async def _hold(self) -> None:
        async with self._env.serving():
            self._up.set()
            await self._over.wait()


def check_taskset(taskset: str) -> None:
    """Look a taskset up without importing it.

    Raises:
        ConfigError: verifiers is not installed, or there is no such taskset.
    """
    spec = importlib.util.find_spec("verifiers")
    places = [Path(place) / "v1" for place in (spec and spec.submodule_search_locations) or ()]
    if not any(place.is_dir() for place in places):
        state = "is older than 0.4" if spec else "is not installed"
        raise ConfigError(f"verifiers {state}: `pip install 'surogate[verifiers]'`.")
    module = taskset.replace("-", "_").lower()
    ships = any((place / "tasksets" / module).is_dir() for place in places)
    if not ships and importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"environment {PREFIX + taskset!r}: there is no module {module!r}. Install the package of the taskset, or "
            "put the folder of its module into PYTHONPATH."
        )


def trained_trace(episode: Any, example: Example) -> Any:
    """Return the trace of an episode that trains.

    Raises:
        RewardError: the episode failed, or was not scored.
        DataError: several of its traces train.
    """
    traces = [trace for trace in episode.traces if trace.agent.trainable]
    if not episode.ok:
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        shown = f"{errors[-1].type}: {errors[-1].message}" if errors else "it does not say why"
        raise RewardError(f"{example.env}: an episode failed: {shown}")
    if len(traces) != 1:
        raise DataError(
            f"{example.env}: an episode has {len(traces)} traces that train, and must have 1. Environments in which "
            "several agents train are not supported."
        )
    rewards = traces[0].rewards
    missing = [name for name, reward in rewards.items() if reward is None]
    if missing or not rewards:
        what = f"{', '.join(missing)} was not" if missing else "no reward was"
        raise RewardError(f"{example.env}: {what} scored.")
    return traces[0]


def rollout_of(trace: Any, conversation: Conversation, example: Example) -> Rollout:
    """Return a trace as a rollout.

    Its last branch is taken. There are others where a harness rewrote the conversation, asked sub-agents, or where the
    chat template renders earlier turns differently later; what was sampled in those alone does not train, and the
    metric `tokens_left_out` counts it.

    Args:
        trace: scored.
        conversation: that it holds.
        example: the task.

    Raises:
        RewardError: nothing was sampled.
        DataError: the trace holds tokens that were not sampled in the conversation.
    """
    branches = [branch for branch in trace.branches if branch.trainable and any(branch.sampled_mask)]
    if not branches:
        raise RewardError(f"{example.env}: a conversation ended before anything was sampled ({trace.stop_condition}).")
    ids = list(branches[-1].token_ids)
    sampled, logprobs, versions = [False] * len(ids), [0.0] * len(ids), [-1] * len(ids)
    prompt_len = end = position = 0
    for node in branches[-1].nodes:
        position += len(node.token_ids)
        if not any(node.mask):
            continue
        turn = conversation.turns.get(tuple(ids[:position]))
        if turn is None or node.token_ids[-sum(node.mask) :] != turn.token_ids:
            raise DataError(f"{example.env}: verifiers reports tokens as sampled that the policy did not sample.")
        start, end = position - len(turn.token_ids), position
        prompt_len = prompt_len or start
        sampled[start:end] = [True] * len(turn.token_ids)
        logprobs[start:end], versions[start:end] = turn.logprobs, turn.versions
        is_truncated = turn.finish_reason == "length"
    inside = slice(prompt_len, end)  # what the environment said last was never answered
    return Rollout(
        example_id=example.id,
        env=example.env,
        prompt_ids=ids[:prompt_len],
        completion_ids=ids[inside],
        sampled=sampled[inside],
        logprobs=logprobs[inside],
        versions=versions[inside],
        text=conversation.policy.decode(ids[inside]),
        reward=trace.reward,
        metrics=_metrics(trace, sum(sampled)),
        is_truncated=is_truncated or conversation.is_full,
    )


def _metrics(trace: Any, num_trained: int) -> dict[str, float]:
    """Return what verifiers measured; the rewards too where there are several."""
    metrics = {
        "num_turns": float(trace.num_turns),
        "tokens_left_out": float(sum(sum(node.mask) for node in trace.nodes) - num_trained),
    }
    if len(trace.rewards) > 1:
        metrics |= {f"reward/{name}": reward.score for name, reward in trace.rewards.items()}
    return metrics | {name: value for name, value in trace.metrics.items() if value is not None}


def _messages(data: Any) -> list[Message]:
    prompt = data.prompt or ""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [turn.model_dump() for turn in prompt]
    return [{"role": "system", "content": data.system_prompt}, *turns] if data.system_prompt else turns
