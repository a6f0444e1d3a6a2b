"""The repository's own files, as the architecture tests see them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NOT_OURS = {".venv", ".cache", ".hypothesis", "__pycache__", "build", "dist", "output"}


@pytest.fixture(scope="session")
def tracked_files() -> list[Path]:
    """Files that git tracks or would track; in a copy without git, all but what .gitignore names."""
    if not (REPOSITORY / ".git").exists():
        files = [path for path in REPOSITORY.rglob("*") if path.is_file()]
        return [path for path in files if not NOT_OURS & set(path.relative_to(REPOSITORY).parts)]
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [REPOSITORY / line for line in listing.stdout.splitlines() if (REPOSITORY / line).is_file()]
