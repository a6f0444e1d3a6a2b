"""Settings of verifiers: what a user may say of a taskset, its agents and its renderer, and what is refused.

What is not here: holding conversations (verifiers_env.py). Only functions of this module import the library, which is
an optional extra.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jsonargparse.typing import PositiveInt

from surogate.errors import ConfigError, DataError

PREFIX = "verifiers:"

_LOCAL_RUNTIMES = ("subprocess", "docker", "podman", "apptainer")
"""Where an agent's program may run; the others are companies' clouds."""
_TEMPLATE_RENDERER = "surogate.rl.environments.verifiers_renderer.TemplateRenderer"


@dataclass(frozen=True, kw_only=True)
class VerifiersArgs:
    """Arguments of `verifiers:<taskset>`."""

    taskset: dict[str, Any] = field(default_factory=dict)
    """Settings of the taskset, by its own names."""
    agent: dict[str, Any] = field(default_factory=dict)
    """The policy's seat, as verifiers names it: harness, runtime, max_turns, timeout and so on. Default: the taskset's
    own harness or else `null`, in the runtime `subprocess`."""
    env: dict[str, Any] = field(default_factory=dict)
    """Further settings of verifiers' environment: id, timeout, retries, other agents by their names."""
    renderer: str | dict[str, Any] | None = None
    """How messages become tokens: a renderer's name or settings, such as `qwen3`. Default: the one that `renderers`
    has for the model, or else the chat template, without tools."""
    num_examples: PositiveInt | None = None
    """Tasks at most, from the first on. Default: all."""
    local_execution: bool = False
    """Let a harness that runs what the model writes do so on this machine, unprotected, in the runtime subprocess."""


def environment_settings(taskset: str, args: VerifiersArgs) -> Any:
    """Return verifiers' configuration, with what it may not say refused.

    Raises:
        ConfigError: it says that.
        ValueError: verifiers refuses it.
    """
    import verifiers.v1 as vf

    for name in ("id" in args.taskset and "taskset.id", "taskset" in args.env and "env.taskset"):
        if name:
            raise ConfigError(f"environment {PREFIX + taskset!r}: {name} is set by the environment's id; remove it.")
    data = {**args.env, "taskset": {**args.taskset, "id": taskset}}
    if args.agent:
        data["agent"] = {**data.get("agent", {}), **args.agent}
    defaults = vf.env_config_type(taskset, str(args.env.get("id", ""))).model_fields
    is_bare = vf.default_harness_id(taskset) == "bash"  # verifiers' default, which runs what the model writes
    for name, info in defaults.items():
        if isinstance(info.default, vf.AgentConfig):
            seat = data[name] = {"runtime": {"type": "subprocess"}, **data.get(name, {})}
            if is_bare and info.default.harness is None:
                seat.setdefault("harness", {"id": "null"})
    config = vf.resolve_env_config(data)
    for name, harness in config.agent_harnesses().items():
        for problem in _seat_problems(getattr(config, name), harness, args.local_execution):
            raise ConfigError(f"environment {PREFIX + taskset!r}: {name}.{problem}")
    return config


def _seat_problems(seat: Any, harness: Any, local_execution: bool) -> Iterator[str]:
    """Say what an agent may not have."""
    import verifiers.v1 as vf

    if seat.client is None:
        for key in ("sampling", "model"):
            if getattr(seat, key) is not None:
                yield f"{key} is set, but the policy plays this agent, and orch.yaml says how it is sampled: remove it."
    runtime = seat.runtime.type
    if runtime not in _LOCAL_RUNTIMES:
        yield f"runtime.type is {runtime!r}, which runs programs elsewhere; it must be {', '.join(_LOCAL_RUNTIMES)}."
    if runtime == "subprocess" and vf.load_harness(harness).EXECUTES_CODE and not local_execution:
        yield (
            f"harness {harness.id!r} runs what the model writes, and the runtime subprocess does not keep it from "
            "anything on this machine: set runtime.type to docker, podman or apptainer, or local_execution: true."
        )


def renderer_settings(renderer: str | Mapping[str, Any]) -> Any:
    """Return the settings of a renderer as its package has them.

    Raises:
        ValueError: it refuses them.
    """
    from pydantic import TypeAdapter
    from renderers import RendererConfig

    settings = {"name": renderer} if isinstance(renderer, str) else renderer
    return TypeAdapter(RendererConfig).validate_python(settings)


def renderer_of(tokenizer: Any, asked: Any, options: Mapping[str, Any], name: str) -> Any:
    """Return the settings of the renderer of a model; it is found by the model's name, which no copy's folder tells.

    Args:
        tokenizer: the model's.
        asked: the user's settings, None for those of the model's own renderer.
        options: of the chat template; a renderer has them as settings of its own.
        name: of the environment, in messages.

    Raises:
        ConfigError: the renderer does not know an option, or is told another value for it.
        DataError: there is no renderer, nor a chat template.
    """
    from renderers import CustomRendererConfig, create_renderer
    from renderers.base import merge_chat_template_kwargs

    config = asked or create_renderer(tokenizer).config
    if config.name == "default" and asked is None:
        if tokenizer.chat_template is None:
            raise DataError("The tokenizer has no chat template, and verifiers asks in messages.")
        config = CustomRendererConfig(import_path=_TEMPLATE_RENDERER)
    for key, value in options.items():
        if key in config.model_fields_set and getattr(config, key) != value:
            raise ConfigError(
                f"environment {name!r}: renderer.{key} is {getattr(config, key)!r}, and sampling.chat_template_kwargs "
                f"says {value!r}. Remove one of the two."
            )
    try:
        return merge_chat_template_kwargs(config, options)
    except ValueError as error:
        raise ConfigError(
            f"environment {name!r}: the renderer {config.name!r} refuses sampling.chat_template_kwargs: "
            f"{explained(error)}"
        ) from error


def explained(error: Exception) -> str:
    """Say what verifiers or its renderers refuse, in a line."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error}"
    problems = (
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors(include_url=False)
    )
    return "; ".join(problems)
