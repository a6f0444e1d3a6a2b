"""Advantages: what a reward is worth beside the other rewards of its group.

Plain float64 numbers of a few rollouts, no tensors. Groups may differ in size, as rollouts drop out of them.

| type          | advantage of rollout i                            | source                                       |
|---------------|---------------------------------------------------|----------------------------------------------|
| default       | r_i - mean(r)                                     | arXiv:2503.20783 (Dr. GRPO)                  |
| std           | (r_i - mean(r)) / (std(r) + 1e-4), std over G - 1 | arXiv:2402.03300, section 4.1.2; 1e-4 of TRL |
| leave_one_out | r_i - mean(r of the others)                       | arXiv:2402.14740 (RLOO)                      |

With length_weighted_mean each reward counts in a mean as often as its completion has tokens: arXiv:2505.23585 (OPO).

Shape legend: N groups, G rollouts in each.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surogate.config.parts_grpo import AdvantageSpec
from surogate.config.user_file import failure, import_user_file, is_file_target, why_missing
from surogate.errors import ConfigError
from surogate.foreign import ForeignCode

Array = NDArray[Any]
GroupAdvantages = Callable[[Sequence[float], Sequence[int]], list[float]]
"""f(rewards, lengths) -> advantages, of one group; lengths in sampled tokens."""

STD_EPSILON = 1e-4


def group_advantages(rewards: Sequence[float], lengths: Sequence[int], spec: AdvantageSpec) -> list[float]:
    """Return the advantages of one group.

    Args:
        rewards: of its rollouts, finite.
        lengths: sampled tokens of its rollouts.
        spec: how.

    Raises:
        ConfigError: a custom function that cannot be found, or returned something else than one number per rollout.
    """
    return load_advantage(spec)(rewards, lengths)


def load_advantage(spec: AdvantageSpec) -> GroupAdvantages:
    """Return the function of a spec; a custom one is imported here, once, and its result is checked at each call.

    Raises:
        ConfigError: it cannot be found.
    """
    if spec.type == "custom":
        if spec.import_path is None:
            raise ConfigError(
                "advantage.type custom needs advantage.import_path, `package.module:function` or `file.py:function`."
            )
        function: Callable[[Array, Array], Array] = partial(_call_custom, _import(spec.import_path), spec)
    else:
        function = partial(_FUNCTIONS[spec.type], by_length=spec.length_weighted_mean)
    return partial(_of_group, function)


def _of_group(
    function: Callable[[Array, Array], Array], rewards: Sequence[float], lengths: Sequence[int]
) -> list[float]:
    assert len(rewards) == len(lengths), (len(rewards), len(lengths))
    if not rewards:
        return []
    advantages_NG = function(np.asarray([rewards], np.float64), np.asarray([lengths], np.int64))
    return [float(advantage) for advantage in advantages_NG[0]]


def _weights(lengths_NG: Array, by_length: bool) -> Array:
    """Return what each reward weighs in a mean; the same for all where no completion has a token."""
    if not by_length:
        return np.ones(lengths_NG.shape)
    return np.where(lengths_NG.sum(-1, keepdims=True) > 0, lengths_NG, 1).astype(np.float64)


def _minus_mean(rewards_NG: Array, lengths_NG: Array, *, by_length: bool) -> Array:
    weights_NG = _weights(lengths_NG, by_length)
    mean_N1 = (weights_NG * rewards_NG).sum(-1, keepdims=True) / weights_NG.sum(-1, keepdims=True)
    # The mean of equal rewards may differ from them in the last bit, and then std would make something of nothing.
    is_flat_N1 = rewards_NG.max(-1, keepdims=True) == rewards_NG.min(-1, keepdims=True)
    return np.where(is_flat_N1, 0.0, rewards_NG - mean_N1)


def _over_std(rewards_NG: Array, lengths_NG: Array, *, by_length: bool) -> Array:
    centred_NG = _minus_mean(rewards_NG, lengths_NG, by_length=by_length)
    if rewards_NG.shape[-1] < 2:
        return centred_NG
    return centred_NG / (rewards_NG.std(-1, ddof=1, keepdims=True) + STD_EPSILON)


def _minus_others(rewards_NG: Array, lengths_NG: Array, *, by_length: bool) -> Array:
    """A rollout without others, or whose others have no token, is worth 0: there is nothing to compare it with."""
    weights_NG = _weights(lengths_NG, by_length)
    weighted_NG = weights_NG * rewards_NG
    others_NG = weights_NG.sum(-1, keepdims=True) - weights_NG
    mean_NG = (weighted_NG.sum(-1, keepdims=True) - weighted_NG) / np.where(others_NG > 0, others_NG, 1.0)
    is_flat_N1 = rewards_NG.max(-1, keepdims=True) == rewards_NG.min(-1, keepdims=True)
    return np.where((others_NG > 0) & ~is_flat_N1, rewards_NG - mean_NG, 0.0)


_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "default": _minus_mean,
    "std": _over_std,
    "leave_one_out": _minus_others,
}


def _call_custom(function: Callable[..., Any], spec: AdvantageSpec, rewards_NG: Array, lengths_NG: Array) -> Array:
    """Call a user's function, and refuse a result that is not one finite number per rollout.

    Raises:
        ConfigError: that, or whatever the function raises.
    """
    calling = ForeignCode()
    result = None
    with calling:
        result = function(rewards_NG.copy(), lengths_NG.copy(), **spec.kwargs)
    if calling.error is not None:
        code = getattr(inspect.unwrap(function), "__code__", None)
        place = "" if code is None else code.co_filename
        raise failure(calling.error, f"advantage.import_path {spec.import_path} failed", place)
    try:
        advantages_NG = np.asarray(result, np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor with a graph
        raise ConfigError(
            f"advantage.import_path {spec.import_path} must return {_shape(rewards_NG)} numbers, and returned a "
            f"{type(result).__name__} that is not an array of numbers ({error})."
        ) from error
    if advantages_NG.shape != rewards_NG.shape:
        raise ConfigError(
            f"advantage.import_path {spec.import_path} must return {_shape(rewards_NG)} numbers, as many as it gets "
            f"rewards, and returned {_shape(advantages_NG)}."
        )
    if not np.isfinite(advantages_NG).all():
        wrong = advantages_NG[~np.isfinite(advantages_NG)][0]
        raise ConfigError(
            f"advantage.import_path {spec.import_path} returned {wrong} for the rewards {rewards_NG.tolist()}; each "
            "advantage must be a finite number."
        )
    return advantages_NG


def _shape(array: Array) -> str:
    return " x ".join(str(size) for size in array.shape) or "one"


@cache
def _import(import_path: str) -> Callable[..., Any]:
    """Import `package.module:function` or `file.py:function`."""
    source, colon, name = import_path.rpartition(":")
    if not colon or not source or not name:
        raise ConfigError(
            f"advantage.import_path is {import_path}; write `package.module:function` or `file.py:function`."
        )
    if is_file_target(import_path):
        if problem := why_missing(import_path):
            raise ConfigError(f"advantage.import_path {import_path}: {problem}")
        module: Any = import_user_file(source, f"advantage.import_path {import_path}")
    else:
        module = _import_module(source)
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"advantage.import_path {import_path}: {source} has no function {name}.")
    return function


def _import_module(name: str) -> Any:
    loading = ForeignCode()
    with loading:
        return importlib.import_module(name)
    error = loading.error
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        raise ConfigError(
            f"advantage.import_path names the module {name}, and there is no {error.name}; install it, or give a "
            "`file.py:function`."
        ) from error
    spec = None
    with ForeignCode():
        spec = importlib.util.find_spec(name)
    raise failure(error, f"advantage.import_path: the module {name} cannot be imported", (spec and spec.origin) or name)
