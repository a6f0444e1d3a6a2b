"""ServerVllm: one or several vLLM servers as a Generator, in their own processes or on their own nodes.

What is not here: what is said to one server (vllm_endpoint.py), and starting one (vllm_server.py). The one idea: a
server is either up with the current weights or gets no request. One that is lost (its connection breaks, or its engine
says again and again that it has failed) is asked until it is back, is given the current weights, and only then the next
request; what it was sampling is sampled again elsewhere, so nothing is lost and nothing is counted twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar
from uuid import uuid4
from weakref import WeakKeyDictionary

import aiohttp

from surogate.config.parts_grpo import SamplingSpec
from surogate.errors import GeneratorError
from surogate.rl.generators.notices import Notices
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.generators.vllm_arguments import Seeds, check_request, sampling_arguments, scoring_arguments
from surogate.rl.generators.vllm_endpoint import CLIENT_PREFIX, Endpoint, Refused, ServerLost, Unhealthy
from surogate.rl.generators.vllm_server import VllmServer
from surogate.rl.types import Completion

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

FIRST_DELAY, LONGEST_DELAY = 0.25, 1.0
"""Seconds between two attempts to reach a server that is lost; they double."""
MAX_RESTARTS = 5
HEALTH_SECONDS = 10.0
"""Between two looks at a server that is at work."""
HEALTH_ANSWER_SECONDS = 30.0
"""In which it must say how it is."""
MAX_SICK_LOOKS = 3
"""So often in a row it may say that its engine has failed, or nothing; then it is lost. A busy one answers late."""


class _Asker:
    """Whoever asks once, and has no name."""


class ServerVllm:
    """A Generator over HTTP.

    Args:
        base_urls: of servers that somebody else runs, such as http://node-3:8000.
        servers: of which this generator launches the processes, and restarts the ones that end.
        seed: of the sampling where `generate` is not given one.
        timeout: seconds that an answer may take, waiting for a server that is lost included.
        start_timeout: seconds in which every server must answer at the start.
        api_key_var: environment variable with the servers' key.
        adapter_name: how adapters are called there; the version follows.
    """

    def __init__(
        self,
        base_urls: Sequence[str] = (),
        *,
        servers: Sequence[VllmServer] = (),
        seed: int = 0,
        timeout: float = 600,
        start_timeout: float = 300,
        api_key_var: str | None = None,
        adapter_name: str = "policy",
    ) -> None:
        self._processes = {server.url: server for server in servers}
        self._urls = list(dict.fromkeys([*base_urls, *self._processes]))
        if not self._urls:
            raise GeneratorError("a generator over HTTP needs the address of at least one server")
        self._adapter_name = adapter_name
        self._seed = seed
        self._seeds = Seeds(seed)
        self._timeout = timeout
        self._start_timeout = start_timeout
        self._headers = _authorization(api_key_var)
        self._http: aiohttp.ClientSession | None = None
        self._up: list[Endpoint] = []
        self._watch: asyncio.Task[None] | None = None
        self._homes: WeakKeyDictionary[object, Endpoint] = WeakKeyDictionary()
        self._lost: dict[Endpoint, asyncio.Task[None]] = {}
        self._reasons: dict[str, str] = {}
        self._news = asyncio.Event()
        self._update: WeightUpdate | None = None
        self._max_model_len: int | None = None
        self._notices = Notices("the vLLM servers", lambda: "; ".join(self._reasons.values()))

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and its completion together; known after `start`."""
        if self._max_model_len is None:
            raise GeneratorError("the generator has not been started")
        return self._max_model_len

    async def start(self) -> None:
        """Launch the servers that are this generator's, and wait until all answer."""
        if self._http is not None:
            return
        self._http = aiohttp.ClientSession(
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None),
            connector=aiohttp.TCPConnector(limit=0),
        )
        is_up = False
        try:
            for server in self._processes.values():
                server.launch()
            client = f"{CLIENT_PREFIX}{uuid4().hex}"
            begin = _all([self._begin(Endpoint(url, self._http, client, self._adapter_name)) for url in self._urls])
            await self._in_time(begin, "answer", self._start_timeout)
            self._watch = asyncio.create_task(self._look_after())
            is_up = True
        finally:
            if not is_up:
                await self.close()

    async def generate(
        self,
        prompt_ids: Sequence[int],
        n: int,
        sampling: SamplingSpec,
        *,
        stop: Sequence[str] = (),
        seed: int | None,
        asker: object | None = None,
    ) -> list[Completion]:
        """Sample n completions; see the protocol."""
        check_request(prompt_ids, sampling.max_tokens, self.max_model_len)
        arguments = sampling_arguments(sampling, stop)
        asker = _Asker() if asker is None else asker

        async def one(seed: int) -> Completion:
            return await self._request(lambda server: server.sample(prompt_ids, {**arguments, "seed": seed}), asker)

        answers = _all([one(s) for s in self._seeds.draw(n, seed)])
        return await self._in_time(answers, f"sample {n} completions of {len(prompt_ids)} tokens")

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """Score a sequence; see the protocol."""
        check_request(token_ids, 0, self.max_model_len)
        arguments = scoring_arguments()
        answer = self._request(lambda server: server.score(token_ids, arguments), _Asker())
        return await self._in_time(answer, f"score {len(token_ids)} tokens")

    async def load_weights(self, update: WeightUpdate) -> None:
        """Give every server new weights. With an adapter, running completions end with the one that they began with."""
        previous, self._update = self._update, update
        try:
            await self._in_time(self._load_all(), f"load version {update.version}")
        except GeneratorError:
            self._update = previous
            raise

    async def sleep(self) -> None:
        """Nothing: a server has its own device."""

    async def wake(self) -> None:
        """Nothing."""

    async def close(self) -> None:
        """End the servers that this generator launched."""
        tasks = [*self._lost.values(), *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lost.clear()
        await asyncio.gather(*(server.forget() for server in self._up))
        self._up.clear()
        if self._http is not None:
            await self._http.close()
            self._http = None
        for server in self._processes.values():
            await asyncio.to_thread(server.stop)

    # --- which server -------------------------------------------------------------------------------------------------

    async def _request(self, ask: Callable[[Endpoint], Awaitable[Answer]], asker: object) -> Answer:
        """Ask the asker's server, and another one when it is lost meanwhile."""
        while True:
            server = self._home(asker, await self._servers())
            try:
                return await ask(server)
            except ServerLost as loss:
                self._lose(server, str(loss))

    def _home(self, asker: object, servers: Sequence[Endpoint]) -> Endpoint:
        """Return the server that an asker has been to, whose cache holds what its prompts begin with; for a new one the
        server with the least to do, and of those the one with the fewest askers."""
        home = self._homes.get(asker)
        if home is None or home not in servers:
            askers = Counter(self._homes.values())
            home = min(servers, key=lambda server: (server.num_running, askers[server]))
            self._homes[asker] = home
        return home

    async def _servers(self) -> list[Endpoint]:
        """Wait for a server that is up."""
        while not self._up:
            if self._http is None:
                raise GeneratorError("the generator has not been started, or is closed")
            failures = [task.exception() for task in self._lost.values() if task.done() and not task.cancelled()]
            if failures and len(failures) == len(self._lost):
                raise GeneratorError(f"no server is left: {failures[0]}")
            self._news.clear()
            await self._news.wait()
        return self._up

    async def _load_all(self) -> None:
        update = self._update
        assert update is not None
        await self._servers()
        await asyncio.gather(*(self._load(server) for server in list(self._up)))
        while not any(server.version == update.version for server in await self._servers()):
            self._news.clear()
            await self._news.wait()

    async def _load(self, server: Endpoint) -> None:
        assert self._update is not None
        try:
            await server.load(self._update, self._seed * 1_000_003 + self._update.version)
        except ServerLost as loss:
            self._lose(server, str(loss))

    def _lose(self, server: Endpoint, reason: str) -> None:
        """Take a server out, and begin to look for it."""
        if server in self._up:
            self._reasons[server.url] = reason
            log.warning("%s is lost (%s); what it was sampling is sampled again.", server.url, reason)
            self._up.remove(server)
            server.abandon(reason)
            self._lost[server] = asyncio.create_task(self._revive(server))
            self._lost[server].add_done_callback(lambda task: self._news.set())

    async def _look_after(self) -> None:
        """Lose servers whose engine has failed while they are asked: a process that goes on may never answer."""
        sick: Counter[Endpoint] = Counter()
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            asked = [server for server in self._up if server.is_asked]
            looks = [server.check_health(HEALTH_ANSWER_SECONDS) for server in asked]
            answers = dict(zip(asked, await asyncio.gather(*looks, return_exceptions=True), strict=True))
            sick = Counter({server: sick[server] + 1 for server, answer in answers.items() if answer is not None})
            for server, count in sick.items():
                if count >= MAX_SICK_LOOKS:
                    self._lose(server, str(answers[server]))

    async def _revive(self, server: Endpoint) -> None:
        """Ask a lost server until it answers, and give it the current weights; start it anew where it is ours."""
        delay = FIRST_DELAY
        restarts = 0
        is_sick = False
        while True:
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)
            process = self._processes.get(server.url)
            if process is not None and (is_sick or not process.is_running):
                if restarts == MAX_RESTARTS:
                    raise GeneratorError(f"{server.url} ended {restarts} times in a row: {self._reasons[server.url]}")
                restarts += 1
                await asyncio.to_thread(process.stop)
                process.launch()
            try:
                is_sick = False
                await server.check_health(HEALTH_ANSWER_SECONDS)
                await server.connect()
                while self._update is not None and server.version != self._update.version:
                    await server.load(self._update, self._seed * 1_000_003 + self._update.version)
            except ServerLost as loss:
                is_sick = isinstance(loss, Unhealthy)
                self._reasons[server.url] = str(loss)
                continue
            self._join(server)
            return

    async def _begin(self, server: Endpoint) -> None:
        if (process := self._processes.get(server.url)) is not None:
            await process.wait()
        longest = 0
        while not longest:
            try:
                longest = await server.connect()
            except ServerLost as loss:
                self._reasons[server.url] = str(loss)
                await asyncio.sleep(FIRST_DELAY)
            except Refused as refusal:
                raise GeneratorError(
                    f"{server.url} is not a server that `surogate grpo-infer` started: it answers {refusal}"
                ) from refusal
        # the engine has one more, for the token that scoring throws away
        self._max_model_len = min(longest - 1, self._max_model_len or longest)
        self._join(server)

    def _join(self, server: Endpoint) -> None:
        if self._lost.pop(server, None) is not None:
            log.warning("%s is back, with the current weights.", server.url)
        self._reasons.pop(server.url, None)
        self._up.append(server)
        self._news.set()

    async def _in_time(self, answer: Awaitable[Answer], what: str, seconds: float | None = None) -> Answer:
        seconds = self._timeout if seconds is None else seconds
        try:
            with self._notices.waiting(what):
                async with asyncio.timeout(seconds):
                    return await answer
        except TimeoutError as error:
            reasons = "; ".join(self._reasons.values()) or f"{', '.join(self._urls)} did not answer"
            raise GeneratorError(f"the vLLM servers had {seconds:g} s to {what}: {reasons}") from error


async def _all(answers: Sequence[Awaitable[Answer]]) -> list[Answer]:
    """Wait for all; when one fails the others are cancelled, which has the server stop sampling."""
    tasks = [asyncio.ensure_future(answer) for answer in answers]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _authorization(api_key_var: str | None) -> dict[str, str]:
    if api_key_var is None:
        return {}
    if not (key := os.environ.get(api_key_var)):
        raise GeneratorError(f"the environment variable {api_key_var}, which should have the servers' key, is not set")
    return {"Authorization": f"Bearer {key}"}
