"""The folder of a hostile process goes away, whatever it holds."""

from __future__ import annotations

import os
from pathlib import Path

from surogate.rl.isolation.scratch import ScratchFolder


def test_a_folder_nested_deeper_than_any_path_is_removed(monkeypatch):
    folder = ScratchFolder("surogate-test-")
    monkeypatch.chdir(folder.name)
    for _ in range(1100):
        os.mkdir("a-folder")
        os.chdir("a-folder")
    Path("file").touch()
    os.chdir("/")
    folder.remove()
    assert not os.path.exists(folder.name)


def test_what_is_closed_to_its_owner_and_links_outside_are_removed_and_nothing_outside(tmp_path):
    (tmp_path / "precious").write_text("x")
    with ScratchFolder("surogate-test-") as name:
        os.symlink(tmp_path, f"{name}/link")
        os.makedirs(f"{name}/a/b")
        os.symlink(tmp_path / "precious", f"{name}/a/b/link")
        os.chmod(f"{name}/a/b", 0)
        os.chmod(f"{name}/a", 0)
    assert not os.path.exists(name)
    assert (tmp_path / "precious").read_text() == "x"
