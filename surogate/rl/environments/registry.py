"""From an EnvSpec to an environment.

What is not here: any environment. The one idea: a spec can be checked, its arguments too, without building anything or
importing an optional library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surogate.config.keys import nearest
from surogate.config.parts_grpo import EnvSpec
from surogate.config.user_file import is_file_target, names_class, why_missing
from surogate.errors import ConfigError
from surogate.rl.environments import reasoning_gym_env, verifiers_env, verifiers_settings
from surogate.rl.environments.arguments import read_arguments
from surogate.rl.environments.arithmetic import ArithmeticArgs, ArithmeticEnvironment
from surogate.rl.environments.base import Environment
from surogate.rl.environments.code import CodeArgs, CodeEnvironment
from surogate.rl.environments.custom import CustomArgs, CustomEnvironment
from surogate.rl.environments.guess_number import GuessNumberArgs, GuessNumberEnvironment
from surogate.rl.environments.math import MathArgs, MathEnvironment
from surogate.rl.environments.prompts import PromptArgs, check_path
from surogate.rl.environments.reverse_text import ReverseTextArgs, ReverseTextEnvironment
from surogate.rl.environments.user_class import build_user_class


@dataclass(frozen=True, slots=True)
class _Kind:
    """A sort of environment: the dataclass of its arguments, and what builds it from a name and those."""

    args: type
    build: Callable[[str, Any], Environment]


_BUILT_IN = {
    "arithmetic": _Kind(ArithmeticArgs, ArithmeticEnvironment),
    "code": _Kind(CodeArgs, CodeEnvironment),
    "guess-number": _Kind(GuessNumberArgs, GuessNumberEnvironment),
    "math": _Kind(MathArgs, MathEnvironment),
    "reverse-text": _Kind(ReverseTextArgs, ReverseTextEnvironment),
}
_FORMS = ("reasoning-gym/<task>", "verifiers:<taskset>", "path/file.py:function")


def environment_ids() -> list[str]:
    """Return what an id may be, for messages."""
    return [*_BUILT_IN, *_FORMS]


def arguments_of(env_id: str) -> type:
    """Return the dataclass whose fields are the arguments of an environment; a task of reasoning-gym has more.

    Raises:
        ConfigError: there is no such environment.
    """
    if env_id.startswith(reasoning_gym_env.PREFIX):
        return reasoning_gym_env.ReasoningGymArgs
    if env_id.startswith(verifiers_settings.PREFIX):
        return verifiers_settings.VerifiersArgs
    if is_file_target(env_id):
        return CustomArgs
    if env_id in _BUILT_IN:
        return _BUILT_IN[env_id].args
    close = nearest(env_id, _BUILT_IN)
    hint = f" Did you mean {close!r}?" if close else ""
    raise ConfigError(f"There is no environment {env_id!r}.{hint} Known are: {', '.join(environment_ids())}.")


def check_environment(spec: EnvSpec) -> None:
    """Check an id and its arguments without building the environment.

    Raises:
        ConfigError: the id or an argument is unknown, or an argument cannot be. The settings of a reasoning-gym task
            and of a verifiers taskset are only known to the library, and are checked when they are built.
    """
    _checked(spec.id, spec.args)


def check_environments(specs: Sequence[EnvSpec]) -> None:
    """Check several environments, as `check_environment` does.

    Raises:
        ConfigError: what is wrong with any of them, a line each.
    """
    problems = []
    for spec in specs:
        try:
            check_environment(spec)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))


def build_environment(spec: EnvSpec) -> Environment:
    """Build an environment with at least one prompt.

    Raises:
        ConfigError: as `check_environment`; or there are no prompts, or an optional library is missing.
        DataError: its data cannot be read.
        HardwareError: it runs what a model wrote, and this machine cannot isolate that.
    """
    name, args = spec.name or spec.id, _checked(spec.id, spec.args)
    environment: Environment
    if spec.id.startswith(reasoning_gym_env.PREFIX):
        task = spec.id.removeprefix(reasoning_gym_env.PREFIX)
        environment = reasoning_gym_env.ReasoningGymEnvironment(name, task, spec.args)
    elif spec.id.startswith(verifiers_settings.PREFIX):
        environment = verifiers_env.VerifiersEnvironment(name, spec.id.removeprefix(verifiers_settings.PREFIX), args)
    elif is_file_target(spec.id) and names_class(spec.id):
        environment = build_user_class(name, spec.id, spec.args)
    elif is_file_target(spec.id):
        environment = CustomEnvironment(name, args, spec.id)
    else:
        environment = _BUILT_IN[spec.id].build(name, args)
    if not len(environment):
        raise ConfigError(
            f"environment {spec.id!r} has no prompts with the arguments {spec.args}. Change them, or leave it out."
        )
    return environment


def _checked(env_id: str, args: Mapping[str, Any]) -> Any:
    schema = arguments_of(env_id)
    if env_id.startswith(reasoning_gym_env.PREFIX):
        task = env_id.removeprefix(reasoning_gym_env.PREFIX)
        reasoning_gym_env.check_task(task)
        return reasoning_gym_env.own_arguments(task, args)
    if env_id.startswith(verifiers_settings.PREFIX):
        verifiers_env.check_taskset(env_id.removeprefix(verifiers_settings.PREFIX))
    if is_file_target(env_id):
        if problem := why_missing(env_id):
            raise ConfigError(f"environment {env_id!r}: {problem}")
        if names_class(env_id):
            return args  # its constructor's business
    read: Any = read_arguments(schema, args, env_id)
    if isinstance(read, PromptArgs):
        check_path(read, env_id)
    return read
