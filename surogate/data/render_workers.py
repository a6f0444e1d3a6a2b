"""Processes that render and tokenise conversations next to this one.

What is not here: what they do to a row (encoding.py). The one idea: a worker is a plain Python process between two
pipes. It holds at most one chunk of rows, so that neither side ever waits to write while the other does; it ends when
its pipe does, so that none outlives its parent, however that ends; and it imports nothing of the parent's script, which
need not be written for it.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, islice
from types import TracebackType
from typing import IO, Any

import numpy as np

from surogate.batches import TokenRow
from surogate.data.encoding import ConversationEncoder, Encoded
from surogate.data.sources import SourceRow
from surogate.errors import DataError, SurogateError

SECONDS_ALONE = 5.0
"""How long one process works before it gets help; a worker takes about 3 s to start."""
MAX_WORKERS = 16
CHUNK_ROWS = 100

_SERVE = "from surogate.data.render_workers import serve; serve()"


def encode_in_order(
    rows: Iterator[SourceRow], encoder: ConversationEncoder
) -> Generator[tuple[str, Encoded], None, None]:
    """Encode rows in their order: here at first, then with workers where there is more to do.

    Yields:
        Origin and rows of tokens of each. Close the generator where it is left early.

    Raises:
        SurogateError: the first that a row raised.
    """
    num_workers = min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    deadline = time.monotonic() + SECONDS_ALONE
    for row in rows:
        yield row.origin, encoder.encode(row)
        if num_workers > 1 and time.monotonic() > deadline:
            break
    else:
        return
    with RenderWorkers(encoder, num_workers) as workers:
        yield from workers.encode(rows)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a worker made of a chunk, up to the first row that failed; few large arrays travel faster than many small.

    Attributes:
        input_ids: of all rows of tokens, end to end.
        loss_mask: of the same.
        lengths: of each row of tokens.
        num_rows: that each conversation gave.
        hashes: of the conversations.
        error: of the row behind the last of these.
        warnings: of the renderer so far.
    """

    input_ids: np.ndarray
    loss_mask: np.ndarray
    lengths: list[int]
    num_rows: list[int]
    hashes: list[int]
    error: SurogateError | None
    warnings: dict[str, str]

    @classmethod
    def of(cls, encoded: list[Encoded], error: SurogateError | None, warnings: dict[str, str]) -> _Answer:
        """Lay the rows end to end."""
        rows = [row for conversation in encoded for row in conversation.rows]
        return cls(
            input_ids=np.concatenate([np.empty(0, np.int32), *(row.input_ids for row in rows)]),
            loss_mask=np.concatenate([np.empty(0, bool), *(row.loss_mask for row in rows)]),
            lengths=[len(row) for row in rows],
            num_rows=[len(conversation.rows) for conversation in encoded],
            hashes=[conversation.content_hash for conversation in encoded],
            error=error,
            warnings=warnings,
        )

    def encoded(self) -> Iterator[Encoded]:
        """Cut the rows apart again."""
        ends = list(accumulate(self.lengths))
        rows = (
            TokenRow(self.input_ids[end - length : end], self.loss_mask[end - length : end])
            for end, length in zip(ends, self.lengths, strict=True)
        )
        for count, content_hash in zip(self.num_rows, self.hashes, strict=True):
            yield Encoded(list(islice(rows, count)), content_hash)


class RenderWorkers:
    """A number of worker processes; leaving the context ends them.

    Args:
        encoder: is copied to each.
        count: of processes.
    """

    def __init__(self, encoder: ConversationEncoder, count: int) -> None:
        self._encoder = encoder
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> RenderWorkers:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "TOKENIZERS_PARALLELISM": "false",
        }
        content = pickle.dumps(self._encoder)
        for _ in range(self._count):
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
            self._processes.append(process)
        for process in self._processes:
            _write(process, content)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            with suppress(OSError):
                _streams(process)[0].close()
            _streams(process)[1].close()
            process.wait()

    def encode(self, rows: Iterator[SourceRow]) -> Iterator[tuple[str, Encoded]]:
        """Encode rows in their order; see encode_in_order."""
        idle = deque(self._processes)
        busy: deque[tuple[subprocess.Popen[bytes], list[str]]] = deque()
        while (chunk := list(islice(rows, CHUNK_ROWS))) or busy:
            received = None
            if not idle or not chunk:
                process, origins = busy.popleft()
                received = origins, self._read(process)
                idle.append(process)
            if chunk:
                process = idle.popleft()
                _write(process, pickle.dumps([(row.values, row.origin) for row in chunk], protocol=5))
                busy.append((process, [row.origin for row in chunk]))
            if received:
                yield from self._taken(*received)

    def _taken(self, origins: list[str], answer: _Answer) -> Iterator[tuple[str, Encoded]]:
        for key, warning in answer.warnings.items():
            self._encoder.renderer.warn_once(key, warning)
        yield from zip(origins, answer.encoded(), strict=False)
        if answer.error:
            raise answer.error

    def _read(self, process: subprocess.Popen[bytes]) -> _Answer:
        try:
            answer: _Answer = pickle.load(_streams(process)[1])
        except (EOFError, pickle.UnpicklingError) as error:
            raise _died(process) from error
        return answer


def serve() -> None:
    """Answer chunks of rows until there are no more; what a worker process runs."""
    for number in (signal.SIGINT, signal.SIGUSR1):  # they reach all processes; the parent then ends this one
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not get between the answers
    logging.getLogger("surogate").setLevel(logging.CRITICAL)  # warnings travel with the answers
    with suppress(EOFError, BrokenPipeError):
        encoder: ConversationEncoder = pickle.load(sys.stdin.buffer)
        while True:
            pickle.dump(_answer(encoder, pickle.load(sys.stdin.buffer)), answers)
            answers.flush()


def _answer(encoder: ConversationEncoder, rows: Iterable[tuple[dict[str, Any], str]]) -> _Answer:
    encoded: list[Encoded] = []
    error = None
    try:
        for values, origin in rows:
            encoded.append(encoder.encode(SourceRow(values, origin)))
    except SurogateError as raised:
        error = raised
    return _Answer.of(encoded, error, encoder.renderer.warnings)


def _write(process: subprocess.Popen[bytes], content: bytes) -> None:
    try:
        _streams(process)[0].write(content)
        _streams(process)[0].flush()
    except BrokenPipeError as error:
        raise _died(process) from error


def _streams(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


def _died(process: subprocess.Popen[bytes]) -> DataError:
    return DataError(
        f"A process that tokenises conversations ended early, with code {process.wait()} (-9: the system ended it, "
        "mostly for lack of memory). Start again with more memory or fewer CPU cores."
    )
