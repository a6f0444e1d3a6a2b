"""An orchestrator over a shared folder, in a thread or, run as a program, in a process that a test may kill."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.rollouts import CharTokenizer, GatedGenerator, ListedEnvironment, make_orchestrator, make_spec

from surogate.config.parts_grpo import EvalSpec
from surogate.errors import GeneratorError
from surogate.rl.evaluation import Evaluation
from surogate.rl.feed import RolloutService
from surogate.rl.transport import FolderServer, service_handlers

SIZE = 24
"""Examples of the environment."""


def make_service(generator: GatedGenerator, level: int = 1, **spec: Any) -> RolloutService:
    """A service over one environment."""
    orchestrator = make_orchestrator(generator, level, [ListedEnvironment("a", SIZE)], **spec)
    evaluated = make_spec(eval=EvalSpec(interval=2))
    evaluation = Evaluation(evaluated, [ListedEnvironment("e", 2)], generator, CharTokenizer())
    return RolloutService(orchestrator, evaluation)


async def serve(service: RolloutService, path: Path) -> None:
    """Answer until goodbye, as `surogate grpo-orch` does."""

    async def hello(ledger: dict[str, Any] | None) -> dict[str, Any]:
        await service.reset(ledger)
        return {"seq_len": 64}

    try:
        await service.start()
        await FolderServer(path, service_handlers(service), hello).serve()
    finally:
        await service.close()


class ServerThread:
    """An orchestrator in a thread.

    Args:
        path: the transport's folder.
        make: builds what answers, in the thread.
    """

    def __init__(self, path: Path, make: Callable[[], RolloutService] | None = None) -> None:
        self.generator = GatedGenerator()
        self.service = make() if make else make_service(self.generator)
        self.error: BaseException | None = None
        self.is_over = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(serve(self.service, path))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._task)
        except (GeneratorError, asyncio.CancelledError) as error:
            self.error = error
        finally:
            self._loop.close()
            self.is_over.set()

    def do(self, function: Callable[[], Any]) -> None:
        """Call a function in the thread's loop."""
        self._loop.call_soon_threadsafe(function)

    def kill(self) -> None:
        """End it without a word to the trainer."""
        if not self.is_over.is_set():
            self.do(self._task.cancel)
        assert self.is_over.wait(10)


if __name__ == "__main__":
    asyncio.run(serve(make_service(GatedGenerator(seconds=0.02), level=int(sys.argv[2])), Path(sys.argv[1])))
