"""Names of environments, so that a misspelt one is told without loading any. What they do is in surogate/rl."""

from __future__ import annotations

import re
from pathlib import Path

from surogate.config.keys import nearest

ENVIRONMENTS = {
    "reverse-text": "write a text backwards",
    "arithmetic": "sums and products",
    "math": "word problems, answers compared by math-verify",
    "code": "programs, run against unit tests in a sandbox",
    "guess-number": "guess a number in several turns",
    "reasoning-gym/<task>": "any task of reasoning-gym, such as `reasoning-gym/chain_sum`",
    "verifiers:<taskset>": "an installed taskset of verifiers, such as `verifiers:wordle-v1`",
    "<file>.py:<name>": "a reward function or an Environment class of one's own, such as `rewards.py:score`",
}
"""Every form of an environment's id, and what it is."""


def why_unknown(env_id: str) -> str | None:
    """Return why an id names no environment, as the end of a sentence and what to do; None where it names one."""
    file, colon, function = env_id.rpartition(":")
    if env_id in ENVIRONMENTS and "<" not in env_id:
        return None
    if colon and file.endswith(".py"):
        if not function.isidentifier():
            return f"names no function: {function!r} is not a name. Write it as rewards.py:score."
        return None if Path(file).is_file() else f"names the file {file}, which does not exist."
    if re.fullmatch(r"reasoning-gym/\w+|verifiers:\w[\w-]*", env_id):
        return None
    close = nearest(env_id, [name for name in ENVIRONMENTS if "<" not in name])
    hint = f"Did you mean {close}? " if close else ""
    return f"is not an environment. {hint}Known are {', '.join(ENVIRONMENTS)}."
