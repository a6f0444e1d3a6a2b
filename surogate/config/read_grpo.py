"""Reading the three files of `surogate grpo` as one configuration, with the problems of all of them in one error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surogate.config.checks_grpo import orch_contradictions, train_contradictions
from surogate.config.checks_infer import infer_contradictions
from surogate.config.contradiction import Contradiction
from surogate.config.cross_check import Files, disagreements
from surogate.config.flat_grpo import SCHEMAS_GRPO, GrpoConfig, InferConfig, OrchConfig
from surogate.config.keys import keys_of, nearest
from surogate.config.not_yet_grpo import CONTRACTS_GRPO
from surogate.config.overrides import parse_overrides
from surogate.config.read import Resolved, raise_problems, resolved
from surogate.config.reader import COMMAND_LINE, Reader
from surogate.config.settle import settle
from surogate.config.yaml_file import KeyPath, YamlFile, read_yaml
from surogate.errors import ConfigError


@dataclass(frozen=True)
class GrpoResolved:
    """Three files that can run together; each config has what it takes from the others filled in."""

    train: Resolved[GrpoConfig]
    infer: Resolved[InferConfig]
    orch: Resolved[OrchConfig]


_CHECKS: dict[str, Callable[[Any, dict[str, Any]], Iterator[Contradiction]]] = {
    "train": train_contradictions,
    "infer": infer_contradictions,
    "orch": orch_contradictions,
}


def read_grpo(
    train: str | Path, infer: str | Path, orch: str | Path, overrides: list[str] | None = None
) -> GrpoResolved:
    """Read, type and check the three files, each by itself and against each other.

    Args:
        train: path of train.yaml.
        infer: path of infer.yaml.
        orch: path of orch.yaml.
        overrides: `--train.key value`, `--infer.key value`, `--orch.key=value`, nested as `--orch.env.0.id`.

    Raises:
        ConfigError: all problems of the files and the overrides, one a line.
    """
    files = _open({"train": train, "infer": infer, "orch": orch})
    readers = {
        file: Reader(SCHEMAS_GRPO[file], yaml, CONTRACTS_GRPO[file], f"{COMMAND_LINE} ({file}.yaml)")
        for file, yaml in files.items()
    }
    last = _override(readers, overrides or [])
    values = {file: reader.read_keys() for file, reader in readers.items()}
    configs = {file: reader.build(values[file]) for file, reader in readers.items()}
    given: dict[str, Any] = {}
    for file, reader in readers.items():
        of_file = values[file] | reader.nested | reader.later
        given |= {f"{file}.{key}": value for key, value in of_file.items()}
    settled: dict[str, Any] = dict(
        zip(readers, settle(configs["train"], configs["infer"], configs["orch"]), strict=True)
    )
    checked = {**configs, "train": settled["train"]}  # a schedule must fit into the steps that orch.yaml names
    for file, reader in readers.items():
        reader.check(_CHECKS[file](checked[file], values[file] | reader.nested | reader.later))
    _cross_check(Files(configs["train"], configs["infer"], configs["orch"], given), readers)
    raise_problems([*_in_order(readers), *last])
    return GrpoResolved(**{file: resolved(readers[file], settled[file], values[file]) for file in readers})


def _open(paths: dict[str, str | Path]) -> dict[str, YamlFile]:
    """Read the files; of all that cannot be read it is told in one go."""
    files, problems = {}, []
    for file, path in paths.items():
        try:
            files[file] = read_yaml(path)
        except ConfigError as error:
            problems.append(str(error))
    raise_problems(problems)
    return files


def _override(readers: dict[str, Reader], arguments: list[str]) -> list[str]:
    """Lay overrides over the files that they name; return problems of the command line itself."""
    overrides, problems = parse_overrides(arguments)
    of_file: dict[str, list[tuple[KeyPath, str]]] = {file: [] for file in readers}
    for path, text in overrides:
        if path[0] in of_file and len(path) > 1:
            of_file[str(path[0])].append((path[1:], text))
        else:
            problems.append(_without_file(path))
    for file, reader in readers.items():
        reader.override(of_file[file], prefix=file)
    return [f"{COMMAND_LINE}: {problem}" for problem in problems]


def _without_file(path: KeyPath) -> str:
    name = ".".join(map(str, path))
    having = [file for file, schema in SCHEMAS_GRPO.items() if path[0] in keys_of(schema)]
    if having:
        meant = [f"--{file}.{name}" for file in having]
    else:  # such as --orchestrator.x and --inference.x
        files = [file for file in SCHEMAS_GRPO if str(path[0]).startswith(file) and len(path) > 1]
        meant = [f"--{file}.{'.'.join(map(str, path[1:]))}" for file in files] or _similar(path)
    advice = f"Write {' or '.join(meant)}." if meant else "None has such a key; `surogate grpo --help` lists all."
    return f"--{name} does not say which file it changes. {advice}"


def _similar(path: KeyPath) -> list[str]:
    close = {file: nearest(str(path[0]).replace("-", "_"), keys_of(schema)) for file, schema in SCHEMAS_GRPO.items()}
    return [f"--{file}.{'.'.join(map(str, [key, *path[1:]]))}" for file, key in close.items() if key]


def _cross_check(files: Files, readers: dict[str, Reader]) -> None:
    """Add what the files disagree in, at the first key involved that the user typed."""
    for involved, sentence in disagreements(files):
        keys = [(readers[file], key) for file, _, key in (name.partition(".") for name in involved)]
        if any(key in reader.failed for reader, key in keys):
            continue
        reader, key = next(((reader, key) for reader, key in keys if key in reader.typed), keys[0])
        reader.complain(reader.typed.get(key, ()), sentence)


def _in_order(readers: dict[str, Reader]) -> Iterator[str]:
    """Yield all problems, file by file and in the order of their lines; those of the command line come last."""
    found = [
        (math.inf if line == math.inf else number, line, text)
        for number, reader in enumerate(readers.values())
        for line, text in reader.problems
    ]
    yield from (text for _, _, text in sorted(found, key=lambda problem: problem[:2]))
