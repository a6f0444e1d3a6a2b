"""Problems of a nested configuration, said as sentences: misspelt keys at any depth, and values of a wrong type.

jsonargparse stops at the first problem, names no neighbour and passes over an unknown key whose value is empty, so the
names of all keys are checked here first, against the signatures of the classes that the configuration names. Types are
left to jsonargparse; `explain` shortens what it says.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import Trainer

from surogate.config.keys import nearest
from surogate.config.overrides import parse_overrides
from surogate.config.reader import COMMAND_LINE, show_path
from surogate.config.yaml_file import KeyPath, read_yaml
from surogate.errors import ConfigError

_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
_TOP_KEYS = ("seed_everything", "trainer", "model", "data", "ckpt_path")
_OPTIONS = ("config", "c", "print_config")


def check_names(verb: str, argv: list[str]) -> None:
    """Check every key of the files and options of a command line.

    Raises:
        ConfigError: all unknown keys, each with the nearest known one.
    """
    names: dict[str, Any] = {}
    problems: list[str] = []
    for values, where in _sources(argv):
        for path, sentence in _unknown(values, names):
            problems.append(f"{where(path)}: {sentence}")
    if problems:
        raise ConfigError("\n".join([f"{len(problems)} problems", *problems] if len(problems) > 1 else problems))


def _sources(argv: list[str]) -> Iterator[tuple[dict[str, Any], Callable[[KeyPath], str]]]:
    """Yield each file's values and each option's, in order, with a function that says where a key stands."""
    arguments = [f"--config{argument[2:]}" if argument[:2] == "-c" else argument for argument in argv]
    for path, text in parse_overrides([a for a in arguments if not a.startswith("--print_config")])[0]:
        if path == ("config",):
            file = read_yaml(text)
            for duplicate, line in file.duplicates:
                raise ConfigError(f"{file.name}:{line}: {show_path(duplicate)} is set twice. Keep one of the lines.")
            yield file.values, file.where
        else:
            value: Any = text
            for part in reversed(_with_init_args(path)):
                value = {part: value}
            yield value, lambda _: COMMAND_LINE


def _with_init_args(path: KeyPath) -> KeyPath:
    """Spell out `--model.lora.rank` as `--model.init_args.lora.rank`, and `--model CLASS` as `--model.class_path`."""
    if path[0] == "trainer":  # what follows, such as `callbacks+`, jsonargparse knows best
        return tuple(str(part).removesuffix("+") for part in path[:2])
    if path[0] not in ("model", "data"):
        return path
    if len(path) == 1:
        return (path[0], "class_path")
    return path if path[1] in _CLASS_KEYS else (path[0], "init_args", *path[1:])


def _unknown(values: dict[str, Any], classes: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Yield the path of each unknown key and a sentence; remember in `classes` which class a source named."""
    yield from _unknown_names(values, _TOP_KEYS, ())
    yield from _unknown_arguments(Trainer, values.get("trainer"), ("trainer",))
    for key in ("model", "data"):
        spec = values.get(key)
        if isinstance(spec, dict):
            classes[key] = _imported(spec.get("class_path")) or classes.get(key)
            yield from _unknown_names(spec, _CLASS_KEYS, (key,))
            yield from _unknown_arguments(classes[key], spec.get("init_args"), (key, "init_args"))


def _unknown_arguments(cls: Any, values: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if cls is None or not isinstance(values, dict):
        return
    types = _argument_types(cls)
    if types is None:
        return
    yield from _unknown_names(values, types, path)
    for name, value in values.items():
        yield from _unknown_inside(types.get(name), value, (*path, name))


def _unknown_inside(type_: Any, value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Look into a value: a dataclass, an object with class_path, or a list of either."""
    if isinstance(value, list):
        item_type = next(iter(typing.get_args(type_)), None)
        for index, item in enumerate(value):
            yield from _unknown_inside(item_type, item, (*path, index))
    elif dataclasses.is_dataclass(type_):
        yield from _unknown_arguments(type_, value, path)
    elif isinstance(value, dict) and "class_path" in value:
        yield from _unknown_names(value, _CLASS_KEYS, path)
        yield from _unknown_arguments(_imported(value["class_path"]), value.get("init_args"), (*path, "init_args"))


def _unknown_names(values: dict[str, Any], known: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    for name in values:
        if name not in known:
            close = nearest(str(name), known)
            hint = f"Did you mean {show_path((*path, close))}?" if close else f"Known are {', '.join(known)}."
            yield (*path, name), f"{show_path((*path, name))} is not a key. {hint}"


def _imported(class_path: Any) -> Any:
    """Return the class of a full class_path, or None: what cannot be found is jsonargparse's to report."""
    module, _, name = str(class_path).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None) if module else None
    except ImportError:
        return None


def _argument_types(cls: Any) -> dict[str, Any] | None:
    """Return name and type of each argument of a class, or None where it takes any."""
    parameters = list(inspect.signature(cls).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    try:
        hints = typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)
    except NameError:  # annotations that only a type checker can resolve
        hints = {}
    return {parameter.name: hints.get(parameter.name) for parameter in parameters}


_BOILERPLATE = re.compile(
    r"^\s*(- Expected a <class 'NoneType'>|Does not validate against any|Subtypes:|Errors:|Given value|- Not a valid "
    r"subclass|Subclass types expect|- a class path|- a dict).*$\n?",
    re.MULTILINE,
)


def explain(message: str) -> str:
    """Shorten jsonargparse's report of a wrong value to one sentence about one key."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    shown = ""
    for key in keys:
        in_class = shown in ("model", "data") or shown.startswith("trainer.")
        shown += f".init_args.{key}" if in_class and shown else f".{key}" if shown else key
    wrong = re.search(r"Expected an? (.+?)\. Got value: (.*)", message)
    if wrong:
        type_ = re.sub(r"<class '([\w.]+)'>|typing\.Literal\[([^\]]*)\]", r"\1\2", wrong.group(1)).replace("'", "")
        return f"{shown} must be {type_}, got {wrong.group(2)!r}."
    wrong_class = re.search(r"Problem with given class_path '([^']+)':\s+(.+)", message)
    if wrong_class:
        return f"{shown}: {wrong_class.group(1)} cannot be used: {wrong_class.group(2).strip()}."
    text = " ".join(_BOILERPLATE.sub("", message).split())
    return text.replace(f'Parser key "{keys[0]}":', f"{keys[0]}:") if keys else text
