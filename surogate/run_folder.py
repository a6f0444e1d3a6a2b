"""The folder of a run: its paths, whose it is, whether it is finished, and its checkpoints on disk.

What is in a checkpoint is Lightning's business (callbacks/checkpoints.py); here it is a folder of files.

The one idea: **a checkpoint exists when its folder has its name.** It is written as `step_N.tmp`, listed with sizes and
digests in a manifest, flushed to disk, and only then renamed to `step_N`. A run killed at any moment leaves whole
checkpoints and perhaps a `.tmp`, which counts for nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from surogate.errors import CheckpointError
from surogate.run_lock import run_folder_lock

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer.ckpt"

_log = logging.getLogger(__name__)


class CheckpointStore:
    """The folder `checkpoints/`: step_N folders and a `latest` link.

    Only one process may write; any number may read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def steps(self) -> list[int]:
        """Steps of all checkpoints by name, whole or damaged, newest first."""
        names = [entry.name for entry in self.path.iterdir() if entry.is_dir()] if self.path.is_dir() else []
        return sorted((int(name[5:]) for name in names if re.fullmatch(r"step_\d+", name)), reverse=True)

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step is or would be."""
        return self.path / f"step_{step}"

    def draft(self, step: int) -> Path:
        """Where the checkpoint of a step is written before it counts."""
        return self.path / f"step_{step}.tmp"

    def latest_valid(self) -> Path | None:
        """Return the newest whole checkpoint; damaged ones that are newer are named in a warning."""
        for step in self.steps():
            folder = self.folder(step)
            problem = damage(folder)
            if problem is None:
                return folder
            _log.warning("checkpoint %s is damaged (%s); trying the one before it", folder, problem)
        return None

    def commit(self, step: int, facts: dict[str, Any]) -> Path:
        """Turn the draft of a step into its checkpoint.

        Args:
            step: whose draft is complete.
            facts: plain values to keep in the manifest.
        """
        draft, folder = self.draft(step), self.folder(step)
        files = {
            path.relative_to(draft).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(draft.rglob("*"))
            if path.is_file()
        }
        write_json(draft / MANIFEST, {"step": step, **facts, "files": files})
        replace_folder(draft, folder)
        link = self.path / "latest.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        os.replace(link, self.path / "latest")
        _flush(self.path)
        return folder

    def rotate(self, step: int, keep_last: int) -> None:
        """Remove what is older than the newest keep_last checkpoints, and every draft that a killed run left.

        Args:
            step: of the checkpoint just committed, which always stays. Newer ones are not touched: they can only be
                damaged ones that a resumed run has gone back behind.
            keep_last: how many stay.
        """
        self.discard_drafts()
        older = [other for other in self.steps() if other < step]
        whole = [other for other in older if damage(self.folder(other), digests=False) is None]
        for other in set(older) - set(whole[: max(keep_last - 1, 0)]):
            os.replace(self.folder(other), self.draft(other))  # a removal cut short must not look like a checkpoint
            shutil.rmtree(self.draft(other))

    def discard_drafts(self) -> None:
        """Remove what was never finished."""
        for path in self.path.glob("step_*.tmp"):
            shutil.rmtree(path)


class RunFolder:
    """Everything a run writes.

    Args:
        path: output_dir.
        checkpoint_dir: the folder that holds `checkpoints/`, where it is another one.
    """

    def __init__(self, path: str | Path, checkpoint_dir: str | Path | None = None) -> None:
        self.path = Path(path)
        self.config_yaml = self.path / "config.yaml"
        self.surogate_yaml = self.path / "surogate.yaml"
        self.adapter_dir = self.path / "adapter"
        self.model_dir = self.path / "model"
        self.metrics_jsonl = self.path / "metrics.jsonl"
        self.metrics_csv = self.path / "metrics.csv"
        self.loss_png = self.path / "loss.png"
        self.reward_png = self.path / "reward.png"
        self.rollouts_dir = self.path / "rollouts"
        self.evaluations_dir = self.path / "evaluations"
        self.samples_txt = self.path / "samples.txt"
        self.samples_jsonl = self.path / "samples.jsonl"
        self.wandb_json = self.path / "wandb.json"
        self.health_dir = self.path / "health"
        self.environment_json = self.path / "environment.json"
        self.run_json = self.path / "run.json"
        self.finished_json = self.path / "finished.json"
        self.checkpoints_dir = Path(checkpoint_dir or path) / "checkpoints"
        self.has_own_checkpoints_dir = self.checkpoints_dir.resolve() == (self.path / "checkpoints").resolve()
        self.checkpoints = CheckpointStore(self.checkpoints_dir)

    def lock(self) -> AbstractContextManager[None]:
        """Keep other commands from writing here, or be kept; see run_lock.run_folder_lock."""
        return run_folder_lock(self.path, None if self.has_own_checkpoints_dir else self.checkpoints_dir.parent)

    def latest_valid_checkpoint(self) -> Path | None:
        """Return the newest whole checkpoint; damaged ones that are newer are named in a warning."""
        return self.checkpoints.latest_valid()

    def is_finished(self, max_steps: int = -1, max_epochs: int | None = None) -> bool:
        """Tell whether the run in this folder reached a goal.

        Args:
            max_steps: the goal in optimizer steps; -1 = none.
            max_epochs: the goal in passes over the data; None or -1 = none. Without any goal a finished run is
                finished, however far it went.
        """
        reached = read_json(self.finished_json)
        step, epochs = reached.get("step"), reached.get("epochs")
        if not isinstance(step, int) or not isinstance(epochs, int):  # none, or a damaged one
            return False
        goals = [(step, max_steps), (epochs, max_epochs or -1)]
        goals = [(value, goal) for value, goal in goals if goal != -1]
        return not goals or any(value >= goal for value, goal in goals)

    def mark_finished(self, step: int, epochs: int = 0) -> None:
        """Note how far the finished run went: optimizer steps and complete passes over the data."""
        write_json(self.finished_json, {"step": step, "epochs": epochs})

    def check_same_run(self, identity: dict[str, Any]) -> None:
        """Refuse a folder that holds results of another run.

        Args:
            identity: what makes this run itself, as plain values; `{}` checks nothing.

        Raises:
            CheckpointError: naming every value that differs.
        """
        differing = _differences(read_json(self.run_json), identity)
        if differing and self.has_results():
            raise CheckpointError(
                f"{self.path} is the output_dir of a different run:\n{differing}\n"
                "Choose another output_dir, or set resume_from_checkpoint to false, which moves the old run aside."
            )

    def check_own_checkpoints(self) -> None:
        """Refuse a checkpoint_dir that holds the checkpoints of another output_dir.

        Raises:
            CheckpointError: naming that output_dir.
        """
        if self.has_own_checkpoints_dir:
            return  # they may have been moved along with the run
        owners = {
            str(read_json(self.checkpoints.folder(step) / MANIFEST).get("output_dir") or "")
            for step in self.checkpoints.steps()
        }
        if others := sorted(owner for owner in owners if owner and owner != self.identifying_path()):
            raise CheckpointError(
                f"checkpoint_dir: {self.checkpoints_dir} belongs to the run in {others[0]}, not to the one in "
                f"{self.identifying_path()}. Choose another checkpoint_dir. If it is that run, moved to a new place: "
                "move its checkpoints there too and remove checkpoint_dir."
            )

    def identifying_path(self) -> str:
        """Return output_dir in the one form that checkpoints record."""
        return str(self.path.resolve())

    def record_run(self, identity: dict[str, Any]) -> None:
        """Make this folder the given run's."""
        if _differences(read_json(self.run_json), identity):
            _log.info("The run that %s was made for ended before it saved anything; it now is this run's.", self.path)
        if identity:
            write_json(self.run_json, identity)

    def has_results(self) -> bool:
        """Tell whether a run has left anything here that would be a loss."""
        results = (self.adapter_dir, self.model_dir, self.finished_json)
        return bool(self.checkpoints.steps()) or any(path.exists() for path in results)

    def set_aside(self) -> None:
        """Rename what a run has left here to `<name>.before-<time>`, so that another one can start."""
        if not self.has_results():
            return
        suffix = f".before-{datetime.now():%Y%m%d-%H%M%S-%f}"
        files = [self.metrics_jsonl, self.metrics_csv, self.loss_png, self.run_json]
        files += [self.reward_png, self.rollouts_dir, self.evaluations_dir, self.health_dir, self.samples_jsonl]
        # Results go last: cut short before them, this is done again and completed by the next start.
        for path in (*files, self.adapter_dir, self.model_dir, self.finished_json, self.checkpoints_dir):
            if path.exists():
                os.replace(path, path.with_name(path.name + suffix))
        _log.info("Starting afresh in %s; what was there is kept under names that end in %s.", self.path, suffix)


def check_same_run(checkpoint: Path, identity: dict[str, Any]) -> None:
    """Refuse a checkpoint of another run.

    Args:
        checkpoint: a step_N folder; one that does not say whose it is passes.
        identity: as for RunFolder.check_same_run.

    Raises:
        CheckpointError: naming every value that differs.
    """
    if differing := _differences(read_json(checkpoint / MANIFEST).get("identity", {}), identity):
        raise CheckpointError(
            f"{checkpoint.parent} holds the checkpoints of a different run:\n{differing}\n"
            "Choose another checkpoint_dir or output_dir, or name a checkpoint of this run."
        )


def damage(checkpoint: Path, digests: bool = True) -> str | None:
    """Say what is wrong with a checkpoint folder, None where it is whole.

    Args:
        checkpoint: a step_N folder.
        digests: also read every file; without, only sizes are compared.
    """
    files = _listed_files(read_json(checkpoint / MANIFEST))
    if files is None:
        return f"{MANIFEST} is missing or unreadable"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != expected["bytes"]:
            return f"{name} has {size:,} of {expected['bytes']:,} bytes"
        if digests and _sha256(path) != expected["sha256"]:
            return f"{name} does not have the content that was written"
    return None


def _listed_files(manifest: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Return the files of a checkpoint by name; None where the manifest is not as CheckpointStore.commit wrote it."""
    files = manifest.get("files")
    if type(manifest.get("step")) is not int or not isinstance(files, dict):
        return None
    if not isinstance(manifest.get("identity", {}), dict):
        return None
    for listed in files.values():
        if not isinstance(listed, dict) or type(listed.get("bytes")) is not int or "sha256" not in listed:
            return None
    return files


@contextmanager
def draft_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to write into, which becomes the target when the block ends without an error.

    Args:
        target: its old content stays until then.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    draft = target.with_name(f"{target.name}.tmp")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        replace_folder(draft, target)
    except OSError as error:
        raise CheckpointError(
            f"{target} could not be written: {error.strerror or error}. Make room and give the same command again."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def replace_folder(new: Path, target: Path) -> None:
    """Put a folder, once it is on the disk, under a name that may be taken; the old content stays until then."""
    readable = new.stat().st_mode & 0o666
    for path in (new, *new.rglob("*")):
        if path.is_file():
            path.chmod(readable)  # safetensors writes files that nobody but their owner may read
        _flush(path)
    old = target.with_name(f"{target.name}.old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    _flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.tmp")
    draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    _flush(draft)
    os.replace(draft, path)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object, `{}` where there is none or it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _differences(recorded: dict[str, Any], identity: dict[str, Any]) -> str:
    """List what differs between two identities, a line each; nothing where one is unknown."""
    if not identity or not recorded:
        return ""
    before, now = _leaves(recorded), _leaves(json.loads(json.dumps(identity)))
    return "\n".join(
        f"  {key}: {_shown(before, key)} there, {_shown(now, key)} here"
        for key in sorted(before.keys() | now.keys())
        if _shown(before, key) != _shown(now, key)
    )


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts and lists to `datasets.0.path`: value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {prefix: value}
    return {
        path: leaf
        for key, child in items
        for path, leaf in _leaves(child, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _shown(leaves: dict[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "not set"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
