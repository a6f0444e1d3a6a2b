"""EngineThread: the one thread that drives an engine, and what other threads send to it.

It takes requests and commands from a queue, steps while there is something to do, and answers through futures. What is
not here: what a step does (vllm_session.py), and deadlines (vllm_engine.py). The one idea: nothing touches the engine
but this thread, and a command runs between two steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Protocol

from surogate.errors import GeneratorError


class Session(Protocol):
    """What the thread drives."""

    is_broken: bool

    def add(self, request_id: str, prompt_ids: Sequence[int], arguments: Mapping[str, Any]) -> None: ...

    def abort(self, request_ids: Sequence[str]) -> None: ...

    @property
    def is_idle(self) -> bool: ...

    def step(self) -> Iterator[tuple[str, Any]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request on its way; the answer is what the session's step gives for it."""

    id: str
    answer: Future[Any]
    prompt_ids: Sequence[int]
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """Something to do between two steps."""

    function: Callable[[Any], None]
    answer: Future[None] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class Abort:
    """Requests that nobody waits for any more."""

    ids: Sequence[str]


class Close:
    """End the thread."""


class Outcome:
    """`with Outcome(future):` gives what is raised inside to whoever waits for the future, in another thread."""

    def __init__(self, future: Future[Any], *, only_errors: bool = False) -> None:
        self._future = future
        self._only_errors = only_errors

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if isinstance(error, StopIteration):  # which an asyncio future does not take
            self._future.set_exception(RuntimeError(f"StopIteration: {error}"))
        elif error is not None:
            self._future.set_exception(error)
        elif not self._only_errors:
            self._future.set_result(None)
        return True


class EngineThread:
    """The thread that owns a session.

    Args:
        build: makes the session; called in the thread.

    Attributes:
        ready: done when the session is built.
        served: done when no request is taken any more; with the error that ended the engine.
        ended: done when the session is closed.
    """

    def __init__(self, build: Callable[[], Session]) -> None:
        self.ready, self.served, self.ended = Future[None](), Future[None](), Future[None]()
        for future in (self.ready, self.served, self.ended):
            future.set_running_or_notify_cancel()  # whoever gives up waiting must not cancel them
        self._build = build
        self._inbox: SimpleQueue[Ticket | Call | Abort | Close] = SimpleQueue()
        self._thread = Thread(target=self._run, name="vllm-engine", daemon=True)
        self._running: dict[str, Ticket] = {}
        self._ids = itertools.count()

    @property
    def is_started(self) -> bool:
        """Whether `start` has been called."""
        return self._thread.ident is not None

    def start(self) -> None:
        """Start the thread, once."""
        if not self.is_started:
            self._thread.start()

    def close(self) -> None:
        """Have the thread end after the step that is running."""
        self._inbox.put(Close())

    def request(self, prompt_ids: Sequence[int], arguments: Mapping[str, Any]) -> Ticket:
        """Send a request."""
        ticket = Ticket(f"r{next(self._ids)}", Future(), prompt_ids, arguments)
        self._send(ticket)
        return ticket

    def call(self, function: Callable[[Any], None]) -> Future[None]:
        """Have a function of the session called between two steps, when no prompt is being scored."""
        call = Call(function)
        self._send(call)
        return call.answer

    def abort(self, ids: Sequence[str]) -> None:
        """Stop requests."""
        if ids:
            self._inbox.put(Abort(ids))

    def _send(self, message: Ticket | Call) -> None:
        if not self.is_started:
            raise GeneratorError("the generator has not been started")
        message.answer.set_running_or_notify_cancel()
        self._inbox.put(message)
        if self.served.done():
            self._refuse_all()

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with Outcome(self.ended):
            with Outcome(self.ready, only_errors=True):
                session = self._build()
                self.ready.set_result(None)
            if (error := self.ready.exception()) is not None:
                self.served.set_exception(error)
            else:
                with Outcome(self.served):
                    self._serve(session)
            self._refuse_all()
            if error is None:
                session.close()

    def _serve(self, session: Session) -> None:
        held: Call | None = None
        while True:
            while held is None and (session.is_idle or not self._inbox.empty()):
                message = self._inbox.get()
                if isinstance(message, Close):
                    return
                if isinstance(message, Call) and self._is_scoring:
                    held = message
                else:
                    self._take(session, message)
            if held is not None and not self._is_scoring:
                self._take(session, held)
                held = None
            for request_id, answer in () if session.is_idle else session.step():
                if (ticket := self._running.pop(request_id, None)) is not None:
                    ticket.answer.set_result(answer)

    @property
    def _is_scoring(self) -> bool:
        """Whether a prompt is being scored: its parts must not come from two policies."""
        return any("prompt_logprobs" in ticket.arguments for ticket in self._running.values())

    def _take(self, session: Session, message: Ticket | Call | Abort) -> None:
        if isinstance(message, Call):
            with Outcome(message.answer):
                message.function(session)
            if session.is_broken:
                raise GeneratorError(f"an exchange of weights failed half way: {message.answer.exception()}")
        elif isinstance(message, Ticket):
            with Outcome(message.answer, only_errors=True):
                session.add(message.id, message.prompt_ids, message.arguments)
                self._running[message.id] = message
        else:
            session.abort(message.ids)
            for request_id in message.ids:
                self._running.pop(request_id, None)

    def _refuse_all(self) -> None:
        """Answer everything that is still waiting, after the end."""
        reason = GeneratorError(f"its engine has ended: {self.served.exception() or 'it was closed'}")
        unanswered = [ticket.answer for ticket in self._running.values()]
        self._running.clear()
        while not self._inbox.empty():
            message = self._inbox.get()
            unanswered += [message.answer] if isinstance(message, Ticket | Call) else []
        for answer in unanswered:
            if not answer.done():
                answer.set_exception(reason)
