"""Endpoint: one vLLM server over HTTP; what it is told and what it answers.

What is not here: choosing between servers and what happens when one is gone (vllm_client.py). The one idea: a request
names the weights that it wants (the base, or an adapter of one version), so what it was sampled with is known also
where new weights come while it runs.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

from surogate.errors import GeneratorError
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.generators.vllm_arguments import token_versions, version_name
from surogate.rl.types import Completion


class ServerLost(GeneratorError):
    """The server is gone, or came back without the weights that it was given: ask another one, or again later."""


class Unhealthy(ServerLost):
    """The server is there, but its engine is not well."""


class Refused(GeneratorError):
    """The server understood, and will not: asking again does not help.

    Args:
        status: of HTTP.
        reason: the server's own words.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


CLIENT_PREFIX = "surogate-adapters-"
"""How folders on a server's machine begin; a client's number follows."""
_FORGET_SECONDS = 10.0


class Endpoint:
    """A server.

    Args:
        url: such as http://127.0.0.1:8000.
        http: connections, with the headers to send.
        client: folder for what is written on the server's machine; CLIENT_PREFIX and a number of its own.
        adapter_name: how adapters are called; the version follows.
    """

    def __init__(self, url: str, http: aiohttp.ClientSession, client: str, adapter_name: str = "policy") -> None:
        self.url = url.rstrip("/")
        self.num_running = 0
        self.version: int | None = None
        """Of the newest weights; None where they were never exchanged."""
        self._http = http
        self._client = client
        self._adapter_name = adapter_name
        self._base_name = ""
        self._adapters: dict[str, int] = {}
        self._in_use: Counter[str] = Counter()
        self._base_version = 0
        self._has_noise = False
        self._is_base_foreign = False
        """Whether the server has merged weights that did not come from here."""
        self._has_written = False
        """Whether adapters were written on the server's machine."""
        self._pending: set[asyncio.Timeout] = set()
        self._loss = ""

    # --- whether it is there ------------------------------------------------------------------------------------------

    @property
    def is_asked(self) -> bool:
        """Whether an answer is waited for."""
        return bool(self._pending)

    async def check_health(self, seconds: float) -> None:
        """Ask whether the engine is well.

        Args:
            seconds: that the answer may take.

        Raises:
            Unhealthy: it is not, or the server does not say.
            ServerLost: there is no server.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._send("GET", "/health")
        except TimeoutError as error:
            raise Unhealthy(f"{self.url} did not say in {seconds:g} s whether its engine is well") from error
        except Refused as refusal:
            raise Unhealthy(f"the engine of {self.url} has failed (/health answers {refusal.status})") from refusal

    def abandon(self, reason: str) -> None:
        """Raise ServerLost in all that waits for this server, and in what asks it before it is connected again."""
        self._loss = reason
        for pending in self._pending:
            if not pending.expired():
                pending.reschedule(asyncio.get_running_loop().time())

    async def connect(self) -> int:
        """Ask what the server serves, take away what an earlier run left there, and return its longest sequence.

        Raises:
            ServerLost: it does not answer.
            Refused: it is not one of `surogate grpo-infer`.
        """
        self._loss = ""
        (base, *adapters) = (await self._ask("GET", "/v1/models"))["data"]
        self._base_name = base["id"]
        for card in adapters:
            await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": card["id"]})
            writer = Path(card.get("root") or "").parent.name
            if re.fullmatch(rf"{CLIENT_PREFIX}\w+", writer) and writer != self._client:
                await self._call_workers("drop_adapter", writer)
        await self._set_noise(0.0, 0)
        await self._reset_prefix_cache()
        self._adapters.clear()
        self.version = None
        known = (await self._ask("GET", "/weight_info"))["weight_version"].partition("+")[0]
        self._base_version = int(known) if known.isdigit() else 0
        self._is_base_foreign = self._base_version > 0
        await self._tell_version(0)
        return int(base["max_model_len"])

    async def forget(self) -> None:
        """Remove what was written on the server's machine, if the server still answers."""
        if self._has_written:
            with suppress(GeneratorError, TimeoutError):
                async with asyncio.timeout(_FORGET_SECONDS):
                    await self._call_workers("drop_adapter", self._client)

    # --- requests -----------------------------------------------------------------------------------------------------

    async def sample(self, prompt_ids: Sequence[int], arguments: Mapping[str, Any]) -> Completion:
        """Sample one completion with the newest weights."""
        name, answer = await self._generate(prompt_ids, arguments)
        (choice,) = answer["choices"]
        token_ids, content = choice["token_ids"], choice["logprobs"]["content"]
        if choice["finish_reason"] not in ("stop", "length") or [c["token_id"] for c in content] != token_ids:
            raise ServerLost(f"{self.url} cut a completion short ({choice['finish_reason']})")
        if name in self._adapters:
            versions = [self._adapters[name]] * len(token_ids)
        else:
            versions = token_versions(choice["weight_versions"], len(token_ids), has_adapter=False)
        return Completion(
            token_ids=token_ids,
            logprobs=[c["logprob"] for c in content],
            versions=versions,
            finish_reason=choice["finish_reason"],
        )

    async def score(self, token_ids: Sequence[int], arguments: Mapping[str, Any]) -> list[float]:
        """Return the log-probability of all tokens but the first."""
        _, answer = await self._generate(token_ids, arguments)
        scores = answer["prompt_logprobs"][1:]
        return [score[str(token)]["logprob"] for score, token in zip(scores, token_ids[1:], strict=True)]

    async def _generate(self, prompt_ids: Sequence[int], arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        name = next(reversed(self._adapters), self._base_name)
        if self._is_base_foreign:
            raise GeneratorError(
                f"{self.url} holds merged weights of version {self._base_version} from an earlier run: restart it, or "
                "load weights first"
            )
        self.num_running += 1
        self._in_use[name] += 1
        body = {"model": name, "token_ids": list(prompt_ids), "sampling_params": dict(arguments)}
        try:
            answer = await self._ask("POST", "/inference/v1/generate", body)
        except Refused as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND or refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise ServerLost(f"{self.url} lost its weights or its engine: {refusal}") from refusal
            raise
        finally:
            self.num_running -= 1
            self._in_use[name] -= 1
        if answer["model"] != name:
            raise GeneratorError(f"{self.url} was asked for {name} and answered with {answer['model']}")
        return name, answer

    # --- weights ------------------------------------------------------------------------------------------------------

    async def load(self, update: WeightUpdate, noise_seed: int) -> None:
        """Give the server new weights, and make sure that it says so.

        Raises:
            Refused: vLLM will not take them.
            ServerLost: the server is gone.
        """
        if update.adapter_dir is not None:
            await self._load_adapter(update.version, update.adapter_dir)
            if update.norm_noise_sigma or self._has_noise:
                async with self._paused():
                    await self._set_noise(update.norm_noise_sigma, noise_seed)
        elif update.weights_dir is not None:
            if self._adapters:
                raise GeneratorError("the servers serve an adapter already; they cannot go on with merged weights")
            async with self._paused():
                await self._call_workers("load_merged_files", str(update.weights_dir.resolve()))
                await self._set_noise(update.norm_noise_sigma, noise_seed)
                self._base_version, self._is_base_foreign = update.version, False
                await self._tell_version(update.version)
        else:
            raise GeneratorError("a server takes an adapter folder or a weights folder; tensors stay in their process")
        await self._tell_version(update.version)
        self.version = update.version

    async def _load_adapter(self, version: int, folder: Path) -> None:
        name = f"{self._adapter_name}-{version}"
        path = str(folder.resolve())
        if self._is_base_foreign:
            raise GeneratorError(f"{self.url} holds merged weights from an earlier run: restart it to serve an adapter")
        if not folder.is_dir():
            raise GeneratorError(f"there is no adapter folder {folder}")
        if name in self._adapters:
            await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        try:
            await self._ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        except Refused as refusal:
            if refusal.status != HTTPStatus.NOT_FOUND:
                raise Refused(refusal.status, f"{self.url} refused the adapter {folder}: {refusal}") from refusal
            path = await self._send_adapter(name, folder)
            await self._ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        served = [card["id"] for card in (await self._ask("GET", "/v1/models"))["data"]]
        if name not in served:
            raise GeneratorError(f"{self.url} took {name}, but serves only {', '.join(served)}")
        self._adapters.pop(name, None)
        self._adapters[name] = version
        for old in [old for old in self._adapters if old != name and not self._in_use[old]]:
            await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": old})
            await self._call_workers("drop_adapter", f"{self._client}/{old}")
            del self._adapters[old]

    async def _send_adapter(self, name: str, folder: Path) -> str:
        """Write an adapter on the server's machine, and return where."""
        self._has_written = True
        tensors = base64.b64encode((folder / "adapter_model.safetensors").read_bytes()).decode()
        config = (folder / "adapter_config.json").read_text()
        return (await self._call_workers("put_adapter", f"{self._client}/{name}", tensors, config))[0]

    async def _set_noise(self, sigma: float, seed: int) -> None:
        await self._call_workers("add_norm_noise", sigma, seed)
        self._has_noise = bool(sigma)

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """Hold running requests between two tokens; afterwards nothing that was cached of the old weights is left."""
        await self._ask("POST", "/pause?mode=keep")
        try:
            yield
            await self._reset_prefix_cache()
        finally:
            await self._ask("POST", "/resume")

    async def _reset_prefix_cache(self) -> None:
        answer = await self._ask("POST", "/reset_prefix_cache?reset_running_requests=true")
        if not (isinstance(answer, dict) and answer.get("success")):  # it may be asked again, as a lost server is
            raise ServerLost(f"{self.url} does not let go of what it computed with old weights (its prefix cache)")

    async def _tell_version(self, adapter_version: int) -> None:
        name = version_name(self._base_version, adapter_version)
        await self._ask("POST", "/update_weight_version", {"new_version": name})
        if (answer := (await self._ask("GET", "/weight_info"))["weight_version"]) != name:
            raise GeneratorError(f"{self.url} was told weight version {name} and answers {answer}")

    async def _call_workers(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of vllm_worker.WorkerExtension, and return what each worker answers."""
        answer = await self._ask("POST", "/collective_rpc", {"method": method, "args": list(arguments)})
        return answer["results"]

    async def _ask(self, verb: str, path: str, body: Any = None) -> Any:
        """Send a request whose answer is waited for until it comes, or until the server is found lost."""
        if self._loss:
            raise ServerLost(self._loss)
        pending = asyncio.timeout(None)
        try:
            async with pending:
                self._pending.add(pending)
                return await self._send(verb, path, body)
        except TimeoutError as error:
            raise ServerLost(self._loss or f"{self.url} does not answer in time") from error
        finally:
            self._pending.discard(pending)

    async def _send(self, verb: str, path: str, body: Any = None) -> Any:
        try:
            async with self._http.request(verb, self.url + path, json={} if body is None else body) as response:
                status, text = response.status, await response.text()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise ServerLost(f"{self.url} does not answer: {error or type(error).__name__}") from error
        if status != HTTPStatus.OK:
            raise Refused(status, _reason(text) or f"HTTP status {status} from {self.url}{path}")
        return json.loads(text) if text.startswith("{") else text


def _reason(text: str) -> str:
    """Return vLLM's own words from an error's body."""
    if not text.startswith("{"):
        return text.strip()
    content = json.loads(text)
    content = content.get("error", content)
    return str(content.get("message", content) if isinstance(content, dict) else content)
