"""What only global rank 0 does, while the others wait for how it ends.

The one idea: how long that may take is rank 0's to say. It may wait an hour for an orchestrator, and says so; the
process group of the training step gives up after half an hour, with a trace of collectives. So the others wait in a
group of their own, which gives up much later. A rank that ends breaks its connections, and nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import distributed

from surogate.errors import SurogateError

T = TypeVar("T")

_PATIENCE = timedelta(days=30)

_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""The process group of each trainer in which its ranks wait for rank 0."""


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
    if trainer.world_size > 1 and trainer not in _groups:
        _groups[trainer] = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    if trainer.is_global_zero:
        try:
            result = action()
        except SurogateError as error:
            problem = error
    if trainer.world_size > 1:
        outcome = [(result if shared else None, problem)]
        distributed.broadcast_object_list(outcome, src=0, group=_groups[trainer])
        sent, problem = outcome[0]
        result = sent if shared else result
    if problem is not None:
        raise problem
    return result
