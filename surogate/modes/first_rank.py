"""What only global rank 0 does, while the others wait for how it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from surogate.errors import SurogateError

T = TypeVar("T")


def on_first_rank(trainer: Any, action: Callable[[], T], *, shared: bool = False) -> T | None:
    """Let global rank 0 do something; what it refuses is refused on every rank, so that none waits for another forever.

    Args:
        trainer: Lightning's; all ranks must come here.
        action: called on global rank 0.
        shared: every rank gets what it returns, which must be picklable; otherwise only rank 0 does.

    Raises:
        SurogateError: what the action raised.
    """
    result, problem = None, None
    if trainer.is_global_zero:
        try:
            result = action()
        except SurogateError as error:
            problem = error
    if trainer.world_size > 1:
        sent, problem = trainer.strategy.broadcast((result if shared else None, problem))
        result = sent if shared else result
    if problem is not None:
        raise problem
    return result
