"""An HTTP server that answers like vLLM's, without a model: for tests of the client, its choices and its faults."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MAX_MODEL_LEN = 129


class FakeVllmServer:
    """A server with adapters and versions; `start` and `stop` it as often as wanted, it forgets its weights then.

    Attributes:
        url: its address, the same after each start.
        seconds: that a completion takes.
        refusal: what it says to a new adapter; empty takes it.
        sees_disk: whether it finds the client's folders.
        is_healthy: whether its engine is well; a failed one answers no request, but the server goes on.
        num_busy_looks: so many questions for its health it will not answer, as a very busy one.
        drops_cache: whether it lets go of what it has cached.
        calls: (path, body) of all requests but questions.
        sampled: name of the weights of each completion that it finished.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.seconds = 0.0
        self.refusal = ""
        self.sees_disk = True
        self.is_healthy = True
        self.num_busy_looks = 0
        self.num_looks = 0
        self.drops_cache = True
        self.calls: list[tuple[str, Any]] = []
        self.sampled: list[str] = []
        self.headers: list[str] = []
        self.written: set[str] = set()
        self.adapters: dict[str, str] = {}
        self.version = "default"
        self.num_running = 0
        self.most_running = 0
        self._runner: web.AppRunner | None = None
        self._connections: set[asyncio.Transport] = set()

    async def start(self) -> None:
        self.adapters, self.version = {}, "default"
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        """Break all connections."""
        for connection in self._connections:
            connection.abort()
        self._connections.clear()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json() if request.method == "POST" else None
        path = "/" + request.match_info["path"]
        self._connections.add(request.transport)
        self.headers.append(request.headers.get("Authorization", ""))
        if request.method == "POST":
            self.calls.append((path, body))
        answer = getattr(self, "_" + path.strip("/").replace("/", "_"), None)
        if answer is None:
            return web.json_response({"status": "ok"})
        result = await answer(body)
        return result if isinstance(result, web.Response) else web.json_response(result)

    async def _health(self, body: Any) -> Any:
        self.num_looks += 1
        if self.num_busy_looks:
            self.num_busy_looks -= 1
            return web.Response(status=504)
        return web.Response(status=200 if self.is_healthy else 503)

    async def _reset_prefix_cache(self, body: Any) -> Any:
        return {"success": self.drops_cache}

    async def _v1_models(self, body: Any) -> Any:
        cards = {"policy": "/models/policy", **self.adapters}
        return {"data": [{"id": name, "root": root, "max_model_len": MAX_MODEL_LEN} for name, root in cards.items()]}

    async def _weight_info(self, body: Any) -> Any:
        return {"weight_version": self.version}

    async def _update_weight_version(self, body: Any) -> Any:
        self.version = body["new_version"]
        return {"success": True}

    async def _v1_load_lora_adapter(self, body: Any) -> Any:
        name, path = body["lora_name"], body["lora_path"]
        if self.refusal:
            return web.json_response({"error": {"message": self.refusal}}, status=500)
        if not ((self.sees_disk and Path(path).is_dir()) or path in self.written):
            return web.json_response({"error": {"message": f"No adapter found for {path}"}}, status=404)
        if name in self.adapters:
            return web.json_response({"error": {"message": "already loaded"}}, status=400)
        self.adapters[name] = path
        return web.Response(text="Success")

    async def _v1_unload_lora_adapter(self, body: Any) -> Any:
        del self.adapters[body["lora_name"]]
        return web.Response(text="Success")

    async def _collective_rpc(self, body: Any) -> Any:
        if body["method"] == "put_adapter":
            path = f"/far/away/{body['args'][0]}"
            self.written.add(path)
            return {"results": [path]}
        if body["method"] == "drop_adapter":
            self.written = {path for path in self.written if not f"{path}/".startswith(f"/far/away/{body['args'][0]}/")}
        return {"results": [None]}

    async def _inference_v1_generate(self, body: Any) -> Any:
        name = body["model"]
        if name != "policy" and name not in self.adapters:
            return web.json_response({"error": {"message": f"The model `{name}` does not exist."}}, status=404)
        self.num_running += 1
        self.most_running = max(self.num_running, self.most_running)
        version = self.version
        try:
            await asyncio.sleep(self.seconds)
            while not self.is_healthy:
                await asyncio.sleep(60)
        finally:
            self.num_running -= 1
        self.sampled.append(name)
        num_tokens = body["sampling_params"]["max_tokens"]
        ids = [body["sampling_params"]["seed"] % 7] * num_tokens
        content = [{"token_id": i, "logprob": -0.5, "rank": 1} for i in ids]
        choice = {
            "index": 0,
            "finish_reason": "length",
            "token_ids": ids,
            "logprobs": {"content": content},
            "weight_versions": [{"version": version, "start": 0, "end": num_tokens}],
        }
        scores = [None, *({str(token): {"logprob": -1.5}} for token in body["token_ids"][1:])]
        return {"model": name, "choices": [choice], "prompt_logprobs": scores}
