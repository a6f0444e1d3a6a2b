from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from surogate.errors import CheckpointError
from surogate.run_folder import CheckpointStore, RunFolder, check_same_run, damage, draft_folder, replace_folder


def save(store: CheckpointStore, step: int, content: bytes = b"weights", **facts: object) -> Path:
    draft = store.draft(step)
    draft.mkdir(parents=True)
    (draft / "trainer.ckpt").write_bytes(content)
    return store.commit(step, {"epochs": 0, **facts})


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.path.iterdir())


def test_a_draft_is_no_checkpoint_until_it_is_committed(store: CheckpointStore) -> None:
    store.draft(3).mkdir(parents=True)
    (store.draft(3) / "trainer.ckpt").write_bytes(b"weights")
    assert store.latest_valid() is None
    assert store.commit(3, {}) == store.latest_valid() == store.folder(3)
    assert names(store) == ["latest", "step_3"]


def test_steps_are_ordered_as_numbers_not_as_names(store: CheckpointStore) -> None:
    for step in (9, 100, 20):
        save(store, step)
    assert store.steps() == [100, 20, 9]


def test_a_store_that_does_not_exist_is_empty(store: CheckpointStore) -> None:
    assert store.steps() == [] and store.latest_valid() is None


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda file: os.truncate(file, 3), "trainer.ckpt has 3 of 7 bytes"),
        (lambda file: file.write_bytes(b"WEIGHTS"), "does not have the content"),
        (lambda file: file.unlink(), "trainer.ckpt is missing"),
        (lambda file: (file.parent / "manifest.json").write_text("{"), "manifest.json is missing or unreadable"),
        *(
            (lambda file, text=text: (file.parent / "manifest.json").write_text(text), "missing or unreadable")
            for text in (
                "[]",
                '{"step": 2}',
                '{"step": 2, "files": ["x"]}',
                '{"step": 2, "files": {"trainer.ckpt": "x"}}',
                '{"step": 2, "files": {"trainer.ckpt": {"sha256": "x"}}}',
                '{"step": 2, "files": {"trainer.ckpt": {"bytes": "7", "sha256": "x"}}}',
                '{"step": 2, "files": {"trainer.ckpt": {"bytes": 7}}}',
                '{"step": "2", "files": {}}',
                '{"step": 2, "files": {}, "identity": "x"}',
            )
        ),
    ],
)
def test_damage_of_any_kind_is_seen_and_the_checkpoint_before_is_taken(
    store: CheckpointStore, harm: object, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, newest = save(store, 1), save(store, 2)
    assert damage(newest) is None
    harm(newest / "trainer.ckpt")  # type: ignore[operator]
    assert said in (damage(newest) or "")
    assert store.latest_valid() == before
    assert "step_2 is damaged" in caplog.text and said in caplog.text


def test_rotation_keeps_the_newest_and_clears_drafts_and_damage_behind_them(store: CheckpointStore) -> None:
    for step in range(1, 6):
        save(store, step)
    (store.folder(3) / "manifest.json").unlink()
    store.draft(9).mkdir()
    store.rotate(5, keep_last=3)
    assert names(store) == ["latest", "step_2", "step_4", "step_5"]


def test_rotation_never_removes_the_checkpoint_just_written(store: CheckpointStore) -> None:
    for step in (1, 2, 5):
        save(store, step)
    store.rotate(2, keep_last=1)  # a run that went back behind step 5, whose content is damaged
    assert names(store) == ["latest", "step_2", "step_5"]
    store.rotate(5, keep_last=0)
    assert names(store) == ["latest", "step_5"]


def test_a_damaged_checkpoint_is_replaced_when_the_run_comes_past_it_again(store: CheckpointStore) -> None:
    save(store, 1, b"old")
    save(store, 1, b"new")
    assert (store.folder(1) / "trainer.ckpt").read_bytes() == b"new"
    assert damage(store.folder(1)) is None
    assert names(store) == ["latest", "step_1"]


def test_replacing_a_folder_leaves_no_file_of_the_old_one(tmp_path: Path) -> None:
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of_{name}").touch()
    replace_folder(tmp_path / "new", tmp_path / "target")
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "of_new"]


def test_a_run_is_finished_at_any_goal_it_has_reached(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert not run.is_finished()
    run.mark_finished(step=10, epochs=2)
    assert run.is_finished() and run.is_finished(max_steps=10) and run.is_finished(max_steps=4)
    assert run.is_finished(max_epochs=2) and run.is_finished(max_steps=-1, max_epochs=1)
    assert not run.is_finished(max_steps=11)
    assert not run.is_finished(max_epochs=3)
    assert not run.is_finished(max_steps=11, max_epochs=-1)
    assert run.is_finished(max_steps=11, max_epochs=2), "either limit ends a run"
    for damaged in ('{"step": "q"}', '{"step": 10}', '{"step": 10, "epochs": null}'):
        run.finished_json.write_text(damaged)
        assert not run.is_finished() and not run.is_finished(max_steps=4)


def test_another_run_in_the_same_folder_is_named_by_every_value_that_differs(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.check_same_run({"model": "a"})
    save(run.checkpoints, 1)
    run.record_run({"model": "a", "lora": {"rank": 8}, "datasets": [{"path": "x"}]})
    run.check_same_run({"model": "a", "lora": {"rank": 8}, "datasets": [{"path": "x"}]})
    run.check_same_run({})
    with pytest.raises(CheckpointError) as caught:
        run.check_same_run({"model": "a", "lora": {"rank": 16}, "datasets": [{"path": "x"}, {"path": "y"}]})
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == ["  datasets.1.path: not set there, 'y' here", "  lora.rank: 8 there, 16 here"]
    assert "Choose another output_dir" in lines[-1]


def test_tuples_and_lists_are_the_same_identity(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.record_run({"target_modules": ("q", "v")})
    save(run.checkpoints, 1)
    run.check_same_run({"target_modules": ("q", "v")})


def test_a_run_that_left_nothing_does_not_keep_its_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunFolder(tmp_path)
    run.record_run({"model": "a"})
    run.metrics_jsonl.write_text("{}")
    run.check_same_run({"model": "b"})
    with caplog.at_level("INFO"):
        run.record_run({"model": "b"})
    assert "ended before it saved anything" in caplog.text
    assert json.loads(run.run_json.read_text()) == {"model": "b"}


@pytest.mark.parametrize("leaves", ["checkpoint", "adapter", "finished"])
def test_a_run_that_left_anything_keeps_its_folder(tmp_path: Path, leaves: str) -> None:
    run = RunFolder(tmp_path)
    run.record_run({"model": "a"})
    if leaves == "checkpoint":
        save(run.checkpoints, 1)
    elif leaves == "adapter":
        run.adapter_dir.mkdir()
    else:
        run.mark_finished(1)
    with pytest.raises(CheckpointError, match="different run"):
        run.check_same_run({"model": "b"})


def test_a_checkpoint_says_whose_it_is(store: CheckpointStore) -> None:
    checkpoint = save(store, 1, identity={"model": "a"})
    check_same_run(checkpoint, {"model": "a"})
    check_same_run(checkpoint, {})
    check_same_run(save(store, 2), {"model": "b"})
    with pytest.raises(CheckpointError, match=r"checkpoints of a different run:\n  model: 'a' there, 'b' here"):
        check_same_run(checkpoint, {"model": "b"})


def test_a_checkpoint_dir_belongs_to_one_output_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = RunFolder("a", "disk")
    save(first.checkpoints, 1, output_dir=first.identifying_path())
    first.check_own_checkpoints()
    RunFolder(tmp_path / "a", tmp_path / "disk").check_own_checkpoints()
    with pytest.raises(CheckpointError, match=r"belongs to the run in .*/a, not to the one in .*/b\."):
        RunFolder("b", "disk").check_own_checkpoints()


def test_a_run_moved_with_its_checkpoints_still_owns_them(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a")
    save(run.checkpoints, 1, output_dir=run.identifying_path())
    moved = (tmp_path / "a").rename(tmp_path / "b")
    RunFolder(moved).check_own_checkpoints()
    RunFolder(moved, checkpoint_dir=moved).check_own_checkpoints()


def test_a_run_set_aside_keeps_every_byte(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", tmp_path / "disk")
    save(run.checkpoints, 1)
    run.record_run({"model": "a"})
    run.mark_finished(1)
    run.adapter_dir.mkdir()
    for path in (run.metrics_jsonl, run.metrics_csv, run.loss_png, run.adapter_dir / "weights", run.config_yaml):
        path.write_text(path.name)
    before = contents(tmp_path)
    run.set_aside()
    assert [path.name for path in run.path.iterdir() if ".before-" not in path.name] == ["config.yaml"]
    assert not run.has_results() and not run.is_finished()
    assert contents(tmp_path) == before
    run.set_aside()
    assert contents(tmp_path) == before


def contents(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_result_is_readable_by_whom_the_umask_lets(tmp_path):
    with draft_folder(tmp_path / "model") as draft:
        (draft / "weights").touch(mode=0o600)
    assert (tmp_path / "model/weights").stat().st_mode & 0o777 == (tmp_path / "model").stat().st_mode & 0o666
