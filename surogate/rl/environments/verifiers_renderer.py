"""TemplateRenderer: a chat template for `renderers`, in which a conversation goes on token by token.

What is not here: renderers that know a model's tool calls, which the package has. The package itself loads this module,
by its name. The one idea: its own renderer of templates tokenises replies again, so what was sampled in earlier turns
would often be lost to training; this one keeps it, as multi_turn.py does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

from pydantic import ConfigDict
from renderers import BaseRendererConfig, DefaultRendererConfig, RenderedTokens
from renderers.default import DefaultRenderer

from surogate.errors import DataError
from surogate.rl.environments.multi_turn import turn_ids
from surogate.rl.types import Message

_OPENING: list[Message] = [{"role": "user", "content": "A"}]
"""Stands for everything before the reply, on which the tokens after it must not depend."""


class TemplateRendererConfig(BaseRendererConfig):
    """What is set is an option of the chat template."""

    model_config = ConfigDict(frozen=True, extra="allow")
    _allow_opaque_template_kwargs = True

    name: Literal["surogate-template"] = "surogate-template"


class TemplateRenderer(DefaultRenderer):
    """Renders by the tokenizer's chat template, without tools.

    Args:
        tokenizer: with a template.
    """

    config_class = TemplateRendererConfig

    def __init__(self, tokenizer: Any, config: TemplateRendererConfig | None = None) -> None:
        options = {} if config is None else config.model_extra or {}
        super().__init__(tokenizer, DefaultRendererConfig(**options))

    def render(
        self, messages: list[Message], *, tools: Sequence[Any] | None = None, add_generation_prompt: bool = False
    ) -> RenderedTokens:
        """Return a conversation as tokens.

        Raises:
            ValueError: there are tools.
        """
        if tools:
            raise ValueError(
                "the task has tools, and how this model calls them is not known: set the argument `renderer` to that "
                "of its family, such as qwen3"
            )
        return super().render(messages, add_generation_prompt=add_generation_prompt)

    def bridge_to_next_turn(
        self,
        previous_prompt_ids: list[int],
        previous_completion_ids: list[int],
        new_messages: list[Message],
        *,
        tools: Sequence[Any] | None = None,
    ) -> RenderedTokens | None:
        """Return the next prompt, which begins with the previous one and its completion.

        Returns:
            None where the template does not write a conversation as its beginning and what was added: then all of it is
            rendered anew, and earlier turns do not train.
        """
        if any(message["role"] != "user" for message in new_messages):
            return None
        before = previous_prompt_ids + previous_completion_ids
        policy: Any = SimpleNamespace(render=partial(self._apply, add_generation_prompt=True))
        try:
            after = turn_ids(policy, _OPENING, new_messages, previous_completion_ids[-1:], "verifiers")
        except DataError:
            return None
        return RenderedTokens(
            token_ids=before + after,
            message_indices=[-1] * (len(before) + len(after)),  # whose a token is matters to nobody here
            message_roles=[str(message["role"]) for message in new_messages],
        )
