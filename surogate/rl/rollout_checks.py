"""What every environment must return, checked before anything is computed from it.

What is not here: the rewards of one-turn environments (environments/base.py), which are checked where they are made.
The one idea: a rollout that breaks the rules here would be trained on wrongly, or stop the trainer far from its cause.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence

from surogate.errors import DataError, GeneratorError, SurogateError
from surogate.foreign import ForeignCode, describe
from surogate.rl.environments.base import Environment, Policy, RewardError
from surogate.rl.types import Example, Rollout

log = logging.getLogger(__name__)


def checked_example(environment: Environment, index: int) -> Example:
    """Return an example of an environment.

    Raises:
        DataError: it cannot be made, belongs elsewhere, or has no prompt.
    """
    making = ForeignCode()
    example: object = None
    with making:
        example = environment.example(index)
    if making.error is not None:
        raise _example_failure(making.error, environment, index)
    problem = None
    if not isinstance(example, Example):
        problem = f"is a {type(example).__name__} and must be an Example"
    elif example.id != f"{environment.name}/{index}":
        problem = f"has the id {example.id!r} and must have {f'{environment.name}/{index}'!r}"
    elif example.env != environment.name:
        problem = f"has the env {example.env!r} and must have {environment.name!r}"
    elif not isinstance(example.prompt, str) and not _are_messages(example.prompt):
        problem = "has a prompt that is neither text nor a list of messages, each with a role and a content"
    if problem or not isinstance(example, Example):
        raise DataError(f"{environment.name}: example {index} {problem}.")
    return example


def _example_failure(error: BaseException, environment: Environment, index: int) -> BaseException:
    if isinstance(error, SurogateError) or not isinstance(error, Exception):
        return error
    what = describe(error, source_of(environment))
    failure = DataError(f"{environment.name}: example {index} cannot be made: {what}.")
    failure.__cause__ = error
    return failure


def source_of(environment: Environment) -> str | None:
    """Return the file that an environment's class stands in."""
    module = sys.modules.get(type(environment).__module__)
    return getattr(module, "__file__", None)


def _are_messages(prompt: object) -> bool:
    return (
        isinstance(prompt, list)
        and len(prompt) > 0
        and all(isinstance(turn, dict) and isinstance(turn.get("role"), str) and "content" in turn for turn in prompt)
    )


async def asked(environment: Environment, example: Example, count: int, policy: Policy, max_len: int) -> list[Rollout]:
    """Let an environment have an example answered, and check what it returns.

    Args:
        environment: runs the code of users and of other packages, which may raise anything.
        example: of it.
        count: rollouts.
        policy: answers.
        max_len: most tokens of a prompt and its completion.

    Raises:
        RewardError, UnusablePrompt: another example may do better.
        DataError: the environment is broken, or raised something.
        GeneratorError: the engine failed.
    """
    answering = ForeignCode()
    rollouts: object = None
    with answering:
        rollouts = await environment.rollouts(example, count, policy)
    if (error := answering.error) is not None:
        is_told = isinstance(error, SurogateError) or not isinstance(error, Exception)
        raise error if is_told else _failure(error, example, source_of(environment))
    return checked_rollouts(rollouts, example, count, max_len)


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
    """Return what ended a group as an error for the user, and log the traceback for who wrote the environment."""
    if not isinstance(error, SurogateError):
        error = _failure(error, example, None)
    if error.__cause__ is not None and not isinstance(error.__cause__, SurogateError):
        log.error("%s failed on %s.", example.env, example.id, exc_info=error.__cause__)
    return error


def _failure(error: BaseException, example: Example, source: str | None) -> DataError:
    failure = DataError(f"{example.env} failed on {example.id}: {describe(error, source)}.")
    failure.__cause__ = error
    return failure
