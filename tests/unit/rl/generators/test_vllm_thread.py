"""The thread that drives an engine, with an engine of a few lines."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from surogate.errors import GeneratorError
from surogate.rl.generators.vllm_thread import EngineThread, Session

SECONDS = 10
"""A thread that does not answer by then has stopped."""


class Counting:
    """Ends a request after as many steps as its prompt has tokens."""

    def __init__(self) -> None:
        self.is_broken = False
        self.left: dict[str, int] = {}
        self.log: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None

    def add(self, request_id: str, prompt_ids: Sequence[int], arguments: Mapping[str, Any]) -> None:
        if not prompt_ids:
            raise ValueError("no prompt")
        self.left[request_id] = len(prompt_ids)

    def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self.left.pop(request_id, None)
        self.log.append("abort")

    @property
    def is_idle(self) -> bool:
        return not self.left

    def step(self) -> Iterator[tuple[str, int]]:
        self.gate.wait(SECONDS)
        if self.failure is not None:
            raise self.failure
        self.log.append("step")
        self.left = {request_id: steps - 1 for request_id, steps in self.left.items()}
        for request_id in [request_id for request_id, steps in self.left.items() if not steps]:
            del self.left[request_id]
            yield request_id, len(self.log)

    def close(self) -> None:
        self.log.append("close")


@pytest.fixture
def session() -> Counting:
    return Counting()


@pytest.fixture
def start(session: Counting) -> Iterator[Callable[..., EngineThread]]:
    threads = []

    def begin(build: Callable[[], Session] = lambda: session) -> EngineThread:
        thread = EngineThread(build)
        threads.append(thread)
        thread.start()
        return thread

    yield begin
    session.gate.set()
    for thread in threads:
        thread.close()
        thread.ended.exception(SECONDS)


def test_requests_share_steps(session: Counting, start: Callable[..., EngineThread]) -> None:
    session.gate.clear()
    thread = start()
    tickets = [thread.request(range(length), {}) for length in (5, 3, 4)]
    session.gate.set()
    for ticket in tickets:
        ticket.answer.result(SECONDS)
    assert session.log.count("step") <= 6


def test_a_call_runs_between_steps_but_not_while_a_prompt_is_scored(
    session: Counting, start: Callable[..., EngineThread]
) -> None:
    session.gate.clear()
    thread = start()
    sampled = thread.request(range(9), {})
    scored = thread.request(range(4), {"prompt_logprobs": 0})
    call = thread.call(lambda session: session.log.append("call"))
    late = thread.request(range(2), {})
    session.gate.set()
    for answer in (sampled.answer, scored.answer, call, late.answer):
        answer.result(SECONDS)
    assert session.log.index("call") >= 4
    assert session.log.index("call") < len(session.log) - 1


def test_a_refused_request_or_call_leaves_the_engine_running(start: Callable[..., EngineThread]) -> None:
    thread = start()
    refused = thread.request([], {})
    assert isinstance(refused.answer.exception(SECONDS), ValueError)
    assert isinstance(thread.call(lambda session: next(iter(()))).exception(SECONDS), RuntimeError)
    thread.request([1], {}).answer.result(SECONDS)


def test_an_aborted_request_takes_no_more_steps(session: Counting, start: Callable[..., EngineThread]) -> None:
    session.gate.clear()
    thread = start()
    ticket = thread.request(range(1000), {})
    thread.abort([ticket.id])
    session.gate.set()
    thread.call(lambda session: None).result(SECONDS)
    assert session.is_idle
    assert not ticket.answer.done()


def test_an_error_of_a_step_answers_everybody(session: Counting, start: Callable[..., EngineThread]) -> None:
    session.gate.clear()
    thread = start()
    waiting = [thread.request(range(3), {}).answer for _ in range(2)]
    session.failure = RuntimeError("out of memory")
    session.gate.set()
    for answer in waiting:
        error = answer.exception(SECONDS)
        assert isinstance(error, GeneratorError)
        assert "its engine has ended: out of memory" in str(error)
    thread.ended.result(SECONDS)
    assert session.log[-1] == "close"
    assert "out of memory" in str(thread.request([1], {}).answer.exception(SECONDS))
    assert "out of memory" in str(thread.call(lambda session: None).exception(SECONDS))


def test_a_broken_exchange_of_weights_ends_the_engine(start: Callable[..., EngineThread]) -> None:
    def break_(session: Counting) -> None:
        session.is_broken = True
        raise ValueError("no such tensor")

    thread = start()
    assert "no such tensor" in str(thread.call(break_).exception(SECONDS))
    assert "failed half way: no such tensor" in str(thread.served.exception(SECONDS))


def test_an_engine_that_cannot_be_built_refuses_everything(start: Callable[..., EngineThread]) -> None:
    def build() -> Session:
        raise ValueError("no memory")

    thread = start(build)
    assert "no memory" in str(thread.ready.exception(SECONDS))
    assert "its engine has ended: no memory" in str(thread.request([1], {}).answer.exception(SECONDS))


def test_closing_answers_what_is_running(session: Counting, start: Callable[..., EngineThread]) -> None:
    session.gate.clear()
    thread = start()
    answer = thread.request(range(1000), {}).answer
    thread.close()
    session.gate.set()
    assert "it was closed" in str(answer.exception(SECONDS))
    thread.ended.result(SECONDS)


def test_nothing_is_taken_before_the_start(session: Counting) -> None:
    thread = EngineThread(lambda: session)
    with pytest.raises(GeneratorError, match="has not been started"):
        thread.request([1], {})
