"""A reward of the user's own, `path/file.py:function`, with prompts from data.

The one idea: the function has the form of TRL's rewards, `f(completions, **columns) -> list[float]`, with a list for
each column of the data; completions are text, in chat too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jsonargparse.typing import PositiveFloat, PositiveInt

from surogate.rl.environments.base import SingleTurnEnvironment
from surogate.rl.environments.prompts import PromptArgs, read_prompts
from surogate.rl.rewards import RewardWorker
from surogate.rl.types import Example


@dataclass(frozen=True, kw_only=True)
class CustomArgs(PromptArgs):
    """Arguments of `path/file.py:function`."""

    timeout_seconds: PositiveFloat = 60.0
    """Longest time of one call of the function; it scores all completions of a prompt."""
    num_workers: PositiveInt = 1
    """Calls at a time, each in a process of its own; more for a function that waits, such as on a judge."""
    stop: list[str] = field(default_factory=list)
    """Texts that end a completion."""
    reference_field: str | None = None
    """Column with a completion that deserves a high reward, for `surogate env-check`."""

    def _check_without_path(self) -> None:
        raise ValueError("path must be set: the file, folder, URL or hub data set with the prompts.")


class CustomEnvironment(SingleTurnEnvironment):
    """Asks the prompts of a data set and scores with a function of the user's.

    Args:
        name: in metrics.
        args: where the prompts are.
        target: `path/file.py:function`.
    """

    def __init__(self, name: str, args: CustomArgs, target: str) -> None:
        super().__init__(name)
        self.stop = tuple(args.stop)
        self._prompts = read_prompts(args)
        self._reference_field = args.reference_field
        self._worker = RewardWorker(target, name, timeout_seconds=args.timeout_seconds, num_processes=args.num_workers)

    def __len__(self) -> int:
        return len(self._prompts)

    def example(self, index: int) -> Example:
        """Return a row; see Environment.example."""
        row = self._prompts[index]
        return Example(id=f"{self.name}/{index}", env=self.name, prompt=row.prompt, columns=row.columns)

    async def rewards(self, completions: list[str], example: Example) -> list[float]:
        """Call the function, with the row's columns repeated for each completion."""
        columns = {name: [value] * len(completions) for name, value in example.columns.items()}
        return await self._worker.score(completions, columns)

    def reference(self, example: Example) -> str | None:
        """Return the column that the user named."""
        return None if self._reference_field is None else str(example.columns.get(self._reference_field))

    async def close(self) -> None:
        """End the processes of the reward."""
        await self._worker.close()
