"""A taskset of verifiers for tests: the reward is the share of digits. Its harness runs in the process that asks."""

from __future__ import annotations

import json
from collections.abc import Iterable

import verifiers.v1 as vf
from openai import AsyncOpenAI, BadRequestError

LOOK_UP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a number up.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
}


class CountData(vf.TaskData):
    want: int = 0


class CountTask(vf.Task[CountData]):
    @vf.reward(weight=2.0)
    async def digit_share(self, trace: vf.Trace) -> float:
        text = trace.last_reply
        return sum(character.isdigit() for character in text) / max(len(text), 1)

    @vf.reward(weight=0.0)
    async def is_short(self, trace: vf.Trace) -> float:
        if self.data.want == 13:
            raise ValueError("thirteen cannot be scored")
        return float(len(trace.last_reply) < 100)

    @vf.metric
    async def reply_chars(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply))


class CountConfig(vf.TasksetConfig):
    n: int = 4
    first: int = 3


class CountTaskset(vf.Taskset[CountTask, CountConfig]):
    def load(self) -> Iterable[CountTask]:
        for want in range(self.config.first, self.config.first + self.config.n):
            data = CountData(prompt=f"Count to {want}.", system_prompt="Be brief.", want=want)
            yield CountTask(data, self.config.task)


class TalkConfig(vf.HarnessConfig):
    turns: int = 1
    tools: bool = False
    forgets: bool = False
    """Leave the replies out of the next request, as a harness does that makes its context smaller."""
    temperature: float | None = None
    survives: bool = False
    """End quietly when the model refuses."""


class Talk(vf.Harness[TalkConfig]):
    """Asks so many times; answers tool calls with a number."""

    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        more = {"tools": [LOOK_UP]} if self.config.tools else {}
        if self.config.temperature is not None:
            more["temperature"] = self.config.temperature
        async with AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0) as client:
            for turn in range(self.config.turns):
                try:
                    done = await client.chat.completions.create(model=ctx.model, messages=messages, **more)
                except BadRequestError:
                    if self.config.survives:
                        break
                    raise
                reply = done.choices[0].message
                calls = reply.tool_calls or []
                if not self.config.forgets:
                    messages.append(reply.model_dump(exclude_none=True))
                    for call in calls:
                        answer = str(len(json.loads(call.function.arguments)))
                        messages.append({"role": "tool", "tool_call_id": call.id, "content": answer})
                if not calls:
                    messages.append({"role": "user", "content": f"And {turn}?"})
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")


__all__ = ["CountTaskset", "Talk"]
