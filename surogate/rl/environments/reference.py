"""The tables of arguments in docs/guides/rl-environments.md, generated from the environments' dataclasses.

`python -m surogate.rl.environments.reference docs/guides/rl-environments.md` writes them anew; a test compares. What is
not here: the keys of configuration files (config/reference.py). The one idea: a page says which table it wants where,
and everything outside the tables is written by hand.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from surogate.config.keys import keys_of, show_default, type_name
from surogate.rl.environments.prompts import PromptArgs
from surogate.rl.environments.registry import arguments_of

PROMPTS = "prompts"
"""Name of the table of what every environment with prompts of its own data takes."""
CUSTOM = "file.py:function"

_TABLE = re.compile(r"(<!-- arguments: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """Return a page with the tables between `<!-- arguments: NAME -->` and `<!-- end -->` written anew.

    Args:
        page: where NAME is the id of an environment, or `prompts`.

    Raises:
        ConfigError: there is no such environment.
    """
    return _TABLE.sub(lambda found: f"{found[1]}\n{argument_table(found[2])}\n\n{found[3]}", page)


def argument_table(name: str) -> str:
    """Return the table of an environment's own arguments; those of `prompts` have a table of their own."""
    return "\n".join(_lines(PromptArgs if name == PROMPTS else arguments_of(name)))


def _lines(schema: type) -> Iterator[str]:
    own = inspect.get_annotations(schema)
    yield from ("| argument | type | default | meaning |", "| --- | --- | --- | --- |")
    for key in keys_of(schema).values():
        if key.name in own:
            cells = (f"`{key.name}`", type_name(key.type), show_default(key), " ".join(key.manual.split()))
            yield " | ".join(["", *map(_escaped, cells), ""]).strip()


def _escaped(cell: str) -> str:
    """Keep what a cell says from ending it, or from being taken for HTML."""
    return cell.replace("|", r"\|").replace("<", "&lt;")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
