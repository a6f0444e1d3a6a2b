"""Adapters by name: what `--adapter` offers, and an answerer that swaps between them.

What is not here: how a swap happens (models/adapter_switch.py).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from surogate.cli.answering import Answerer
from surogate.errors import ConfigError, ModelError, SurogateError
from surogate.locations import resolve
from surogate.models.inference import find_model
from surogate.models.stacks import adapter_in

if TYPE_CHECKING:
    from surogate.models.inference import FoundModel

BASE = "none"
"""What the base without any adapter is called."""


def offered(arguments: Sequence[str]) -> dict[str, str]:
    """Return the folder of each adapter by its name.

    Args:
        arguments: `NAME=DIR`, or `DIR`, named after the folder. A DIR that holds several adapters or runs offers each.

    Raises:
        ConfigError: a name is given twice, or to several adapters.
        ModelError: a folder holds no adapter.
    """
    offers: dict[str, str] = {}
    for argument in arguments:
        for name, folder in _folders(argument):
            if name == BASE or name in offers:
                reason = "is the base without any" if name == BASE else f"is {offers[name]} already"
                raise ConfigError(f"--adapter: {folder} cannot be called {name}, which {reason}. Use NAME={folder}.")
            offers[name] = folder
    return offers


def one_of(argument: str) -> str:
    """Return the folder that `NAME=DIR` or `DIR` means, which must be one adapter.

    Raises:
        ConfigError: it holds several.
        ModelError: it holds none.
    """
    offers = offered([argument])
    if len(offers) > 1:
        raise ConfigError(f"--adapter: {argument} holds several adapters: {', '.join(offers)}. Name one of them.")
    return next(iter(offers.values()))


def _folders(argument: str) -> list[tuple[str, str]]:
    name, equals, location = argument.partition("=")
    if not equals or not re.fullmatch(r"[\w.-]+", name) or Path(argument).exists():
        name, location = "", argument
    folder = Path(resolve(location, error=ModelError))
    if adapter_in(folder):
        return [(name or name_of(folder), str(folder))]
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    inside = [path for path in entries if path.is_dir() and adapter_in(path)]
    if not inside:
        raise ModelError(
            f"--adapter: {folder} is no adapter folder: it holds no adapter_config.json, nor a finished run"
        )
    if name:
        several = ", ".join(path.name for path in inside)
        raise ConfigError(f"--adapter: {argument} gives one name to several adapters: {several}. Leave the name out.")
    return [(path.name, str(path)) for path in inside]


def name_of(folder: Path) -> str:
    """Return what an adapter is called that was given no name: its folder, or its run's."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "adapter" else folder.name


class SwappingAnswerer(Answerer):
    """An answerer whose adapter can be swapped between two answers.

    Args:
        options: of `add_options`, and `adapter`, a list of arguments for `offered`. The first is used first; without
            any, the location's own.

    Attributes:
        offers: folder of each adapter by its name; the location's own is among them.
        active: name of the one in use, or `none`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.offers = offered(options.adapter)
        first = next(iter(self.offers), None)
        self.active = first or BASE
        path = Path(resolve(options.location, error=ModelError))
        if adapter_in(path):
            own = name_of(path)
            self.offers.setdefault(own, options.location)
            self.active = first or own
        self._switch: Any = None
        super().__init__(options, first and self.offers[first])

    def swap(self, name: str) -> None:
        """Use another adapter from the next answer on.

        Args:
            name: of an offered one, `none` for the base alone, or the folder of another.

        Raises:
            ModelError: there is no such adapter, or it is of another base or tokenizer; the one before stays.
        """
        new = {} if name in (*self.offers, BASE) else self._more(name)
        name = next(iter(new), name)
        before, offers = self.active, {**self.offers, **new}
        try:
            self._use(name, offers)
        except SurogateError:
            self._use(before, offers)
            raise
        self.active, self.offers = name, offers

    def _more(self, location: str) -> dict[str, str]:
        if not Path(location).expanduser().exists():
            known = ", ".join([*self.offers, BASE])
            raise ModelError(f"there is no adapter {location}. Allowed are {known}, and the folder of another adapter.")
        return offered([location])

    def _use(self, name: str, offers: dict[str, str]) -> None:
        location = self._options.location
        self._speak_as(replace(self._own, adapters=()) if name == BASE else find_model(location, offers[name]))

    @override
    def _load(self, found: FoundModel) -> Any:
        from surogate.models.adapter_switch import AdapterSwitch

        self._switch = self._switch or AdapterSwitch(found)
        self._switch.use(found.adapters)
        return self._switch.model
