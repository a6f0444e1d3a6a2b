"""What every environment must return, checked before anything is computed from it.

What is not here: the rewards of one-turn environments (environments/base.py), which are checked where they are made.
The one idea: a rollout that breaks the rules here would be trained on wrongly, or stop the trainer far from its cause.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from surogate.errors import DataError, GeneratorError, SurogateError
from surogate.rl.environments.base import RewardError
from surogate.rl.types import Example, Rollout

log = logging.getLogger(__name__)


def checked_rollouts(rollouts: object, example: Example, count: int, max_len: int) -> list[Rollout]:
    """Return the rollouts of an environment.

    Args:
        rollouts: what it returned.
        example: that they answer.
        count: how many were asked for.
        max_len: most tokens of a prompt and its completion.

    Raises:
        RewardError: a reward or a metric is not a finite number.
        DataError: the environment did not return as many rollouts of the example, each with a value per token.
        GeneratorError: the log-probability of a sampled token is not a number.
    """
    if not isinstance(rollouts, Sequence) or not all(isinstance(rollout, Rollout) for rollout in rollouts):
        raise DataError(f"{example.env}: rollouts must return a list of Rollout, got a {type(rollouts).__name__}.")
    if len(rollouts) != count:
        raise DataError(f"{example.env}: {count} rollouts of {example.id} were asked for, and {len(rollouts)} came.")
    for rollout in rollouts:
        if problem := _problem(rollout, example, max_len):
            raise DataError(f"{example.env}: a rollout of {example.id} {problem}.")
        _check_numbers(rollout)
    return list(rollouts)


def _problem(rollout: Rollout, example: Example, max_len: int) -> str | None:
    count, total = len(rollout.completion_ids), len(rollout.prompt_ids) + len(rollout.completion_ids)
    lengths = {name: len(getattr(rollout, name)) for name in ("sampled", "logprobs", "versions")}
    if rollout.example_id != example.id:
        return f"says that it answers {rollout.example_id}"
    if not rollout.prompt_ids:
        return "has no prompt, and the first token of a sequence cannot be scored"
    if any(length != count for length in lengths.values()):
        return f"has {count} completion_ids and {lengths}; there must be as many of each"
    if total > max_len:
        return f"has {total} tokens, and prompt and completion together may have seq_len {max_len}"
    return None


def _check_numbers(rollout: Rollout) -> None:
    for name, value in {"reward": rollout.reward, **rollout.metrics}.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise RewardError(
                f"{rollout.env}: {name} of {rollout.example_id} is {value!r}; it must be a finite number."
            )
    for logprob, is_sampled in zip(rollout.logprobs, rollout.sampled, strict=True):
        if is_sampled and not math.isfinite(logprob):
            raise GeneratorError(
                f"The engine gave a token of {rollout.example_id} the log-probability {logprob}: its weights, or their "
                "dtype, make numbers that are not finite."
            )


def environment_failure(error: BaseException, example: Example) -> SurogateError:
    """Return what ended a group as an error for the user.

    An environment runs the code of users and of other packages, which may raise anything.
    """
    if isinstance(error, SurogateError):
        return error
    log.error("%s failed on %s.", example.env, example.id, exc_info=error)
    failure = DataError(f"{example.env} failed on {example.id}: {type(error).__name__}: {error}.")
    failure.__cause__ = error
    return failure
