"""ScratchFolder: a temporary folder for a process that nobody trusts; for who starts it, not for the process itself.

The one idea: what such a process leaves may be nested so deep that no path reaches it, or closed to its owner, and is
removed all the same. tempfile's own folders fail there, since shutil.rmtree calls itself for each level.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile


class ScratchFolder:
    """A new folder; as a context, its name and in the end its removal.

    Args:
        prefix: of its name.
    """

    def __init__(self, prefix: str) -> None:
        self.name = tempfile.mkdtemp(prefix=prefix)

    def __enter__(self) -> str:
        return self.name

    def __exit__(self, *raised: object) -> None:
        self.remove()

    async def __aenter__(self) -> str:
        return self.name

    async def __aexit__(self, *raised: object) -> None:
        await asyncio.to_thread(self.remove)  # a hundred thousand files take seconds

    def remove(self) -> None:
        """Remove the folder and all that is in it, which nobody may change any more."""
        token, count = secrets.token_hex(8), 0
        folders = self._empty("")
        while folders:
            folder = folders.pop()
            for inner in self._empty(folder):
                # A level up, so that no path is longer than two names.
                count += 1
                os.rename(self._path(folder, inner), self._path(f"{token}-{count}"))
                folders.append(f"{token}-{count}")
            os.rmdir(self._path(folder))
        os.rmdir(self.name)

    def _path(self, *names: str) -> str:
        return os.path.join(self.name, *names)

    def _empty(self, folder: str) -> list[str]:
        """Remove the files of a folder, open its folders to their owner, and return their names."""
        inner = []
        with os.scandir(self._path(folder)) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
                    inner.append(entry.name)
                else:
                    os.unlink(entry.path)
        return inner
