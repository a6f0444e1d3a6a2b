"""TokenEndpoint: a policy behind the HTTP interface that clients of RL libraries ask, token ids in and token ids out.

What is not here: who asks (verifiers_env.py). The protocol is `POST /inference/v1/generate` of vLLM's servers as the
package `renderers` 0.1 speaks it. The one idea: a client sees tokens and log-probabilities; what else belongs to them,
above all which version of the policy sampled them, stays here and is found again by the tokens themselves.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from surogate.errors import DataError, GeneratorError
from surogate.rl.environments.base import Policy
from surogate.rl.policy import PromptTooLong
from surogate.rl.types import Completion

MODEL = "policy"
"""What the policy is called in requests."""
CONVERSATION_HEADER = "X-Session-ID"
"""Names the conversation that a request belongs to."""

_MAX_BODY = 64 * 2**20
"""Bytes of a request; a million tokens are 7 MiB."""
_FIELDS = {"model", "token_ids", "sampling_params"}
_ALLOWED: Mapping[str, object] = {"logprobs": 1, "skip_special_tokens": False}
"""Sampling parameters that may be asked for, and the only value of each."""
_IGNORED = {"stop_token_ids", "routed_experts_prompt_start"}
"""Sampling parameters with any value: the first is heeded, the second asks for nothing that a text model has."""


@dataclass(slots=True, eq=False)
class Conversation:
    """A conversation under way.

    Attributes:
        policy: answers.
        on_full: called when nothing fits behind a prompt that is not the first.
        turns: what was sampled, by all tokens up to its end.
        failure: the first error of a request.
        is_full: whether on_full was called.
    """

    policy: Policy
    on_full: Callable[[], None]
    turns: dict[tuple[int, ...], Completion] = field(default_factory=dict)
    failure: BaseException | None = None
    is_full: bool = False
    _running: set[asyncio.Task[list[Completion]]] = field(default_factory=set)

    async def answer(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the response to a request; None where it failed, which `failure` or `is_full` says."""
        if problem := request_problem(body):
            self.failure = self.failure or DataError(f"A request of verifiers {problem}.")
            return None
        prompt_ids = list(body["token_ids"])
        task = asyncio.create_task(self.policy.sample(prompt_ids, 1))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
        if task.cancelled():
            return None
        if (error := task.exception()) is not None:
            self._note(error)
            return None
        completion = ended_at(task.result()[0], body["sampling_params"].get("stop_token_ids", ()))
        if not all(map(math.isfinite, completion.logprobs)):
            self._note(GeneratorError("The engine gave a token a log-probability that is not finite."))
            return None
        self.turns[(*prompt_ids, *completion.token_ids)] = completion
        return response_body(completion)

    async def end(self) -> None:
        """Stop what is still sampled."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _note(self, error: BaseException) -> None:
        if isinstance(error, PromptTooLong) and self.turns:  # nothing fits any more
            self.is_full = True
            self.on_full()
        else:
            self.failure = self.failure or error


class TokenEndpoint:
    """Serves conversations on an address of this machine that only those who were told it can guess."""

    def __init__(self) -> None:
        self._conversations: dict[str, Conversation] = {}
        self._secret = secrets.token_urlsafe(24)
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Listen; return the base URL, which ends in /v1 as an OpenAI client's does."""
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_get(f"/{self._secret}/v1/models", self._models)
        app.router.add_post(f"/{self._secret}/inference/v1/generate", self._generate)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/{self._secret}/v1"

    def open(self, name: str, conversation: Conversation) -> None:
        """Answer requests of a conversation from now on."""
        self._conversations[name] = conversation

    async def end(self, names: Sequence[str]) -> None:
        """Answer conversations no more, and stop what is still sampled for them."""
        ended = [self._conversations.pop(name) for name in names]
        await asyncio.gather(*(conversation.end() for conversation in ended))

    async def close(self) -> None:
        """Listen no more; may be called twice."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _models(self, _: web.Request) -> web.Response:
        # Without max_model_len: what fits is the policy's to say, request by request.
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def _generate(self, request: web.Request) -> web.Response:
        conversation = self._conversations.get(request.headers.get(CONVERSATION_HEADER, ""))
        if conversation is None:
            return _refusal(f"No conversation under way has this {CONVERSATION_HEADER}.")
        body = await conversation.answer(await request.json())
        if body is None:
            return _refusal(str(conversation.failure or "Nothing more is sampled in this conversation."))
        return web.json_response(body)


def request_problem(body: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a request, as the end of a sentence; None where nothing is.

    The run's sampling parameters hold for every token that trains, so a request may not bring its own.
    """
    if more := sorted(body.keys() - _FIELDS):
        return f"has {', '.join(more)}; only text is sampled here, from {', '.join(sorted(_FIELDS))}"
    if missing := sorted(_FIELDS - body.keys()):
        return f"lacks {', '.join(missing)}"
    if body["model"] != MODEL:
        return f"asks for the model {body['model']!r}; there is only {MODEL!r}"
    wrong = {
        name: value
        for name, value in body["sampling_params"].items()
        if name not in _IGNORED and (name not in _ALLOWED or _ALLOWED[name] != value)
    }
    if wrong:
        shown = ", ".join(f"{name}: {value!r}" for name, value in wrong.items())
        return f"asks for {shown}; how tokens are sampled is set by `sampling` in orch.yaml alone"
    return None


def ended_at(completion: Completion, stop_ids: Sequence[int]) -> Completion:
    """Return a completion up to its first stop token: one that the engine, which has its own, may have gone beyond."""
    end = next((place for place, token in enumerate(completion.token_ids, 1) if token in stop_ids), None)
    if end is None:
        return completion
    return replace(
        completion,
        token_ids=completion.token_ids[:end],
        logprobs=completion.logprobs[:end],
        versions=completion.versions[:end],
        finish_reason="stop",
    )


def response_body(completion: Completion) -> dict[str, Any]:
    """Return a completion as `renderers` reads it."""
    content = [
        {"token": f"token_id:{token}", "logprob": logprob}
        for token, logprob in zip(completion.token_ids, completion.logprobs, strict=True)
    ]
    choice = {
        "index": 0,
        "token_ids": completion.token_ids,
        "logprobs": {"content": content},
        "finish_reason": completion.finish_reason,
    }
    return {"request_id": secrets.token_hex(8), "choices": [choice]}


def _refusal(reason: str) -> web.Response:
    # 400 and not 5xx: clients would ask again.
    return web.json_response({"error": {"message": reason, "type": "invalid_request_error"}}, status=400)
