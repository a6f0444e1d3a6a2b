"""Data files behind URLs, through fsspec: s3, gs, https and whatever else has an fsspec file system.

What is not here: files of this machine (files.py). The one idea: a URL may hold a secret, so it is shown only without
its user, password and query, and so is whatever a library says about it.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote

from surogate.errors import DataError
from surogate.locations import without_credentials

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_BUFFER = 1 << 20
_CONTENT_KEYS = ("md5Hash", "Content-MD5", "ETag", "etag")
"""Entries of a file's information that change with its contents and with nothing else."""
_VERSION_KEYS = ("Last-Modified", "LastModified", "last_modified", "mtime", "modified", "created")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind a URL."""

    fs: AbstractFileSystem = field(repr=False)
    path: str = field(repr=False)
    name: str
    inner: str
    info: dict[str, Any] = field(repr=False)

    def open(self, *, seeks: bool = False) -> IO[bytes]:
        """Open it for reading; only what is read is transferred."""
        # Many a web server sends files from their start only, which is all that most formats need.
        in_order = {} if seeks or not self.path.startswith("http") else {"block_size": 0}
        with explained(self.name):
            return io.BufferedReader(self.fs.open(self.path, "rb", **in_order), _BUFFER)

    def digest(self) -> str:
        """Return what the server says that identifies the contents: a hash, else a time of change; and the size."""
        with explained(self.name):
            # A listing that is a web page tells nothing but names.
            info = self.fs.info(self.path) if self.info.get("size") is None else self.info
            told = [f"{key}={info[key]}" for key in (*_CONTENT_KEYS, *_VERSION_KEYS) if info.get(key)]
            return f"{told[0] if told else self.fs.ukey(self.path)} size={info.get('size')}"


class RemotePlace:
    """A URL of a file or a folder.

    Raises:
        DataError: fsspec knows no such protocol, or a package for it is missing.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.name = without_credentials(url)
        self._url = url
        with explained(self.name):
            self._fs, self._path = url_to_fs(url)

    def is_folder(self) -> bool:
        """Tell a folder from a file."""
        return self._url.endswith("/") or self._info["type"] == "directory"

    def file(self) -> RemoteFile:
        """Give the file that is here."""
        inner = PurePosixPath(unquote(without_credentials(self._path))).name
        return RemoteFile(self._fs, self._path, self.name, inner, self._info)

    def files(self) -> list[RemoteFile]:
        """Give the files of the folder and its folders, sorted by name."""
        with explained(self.name):
            found = self._fs.find(self._path, detail=True)
        files = []
        for path, info in sorted(found.items()):
            inner = path.removeprefix(self._path.rstrip("/")).lstrip("/")
            files.append(RemoteFile(self._fs, path, f"{self.name.rstrip('/')}/{inner}", inner, info))
        return files

    def folder(self, name: str) -> RemotePlace | None:
        """Give a folder of this one, None where there is none."""
        inner = RemotePlace(f"{self._url.rstrip('/')}/{name}")
        with explained(inner.name):
            return inner if inner._fs.isdir(inner._path) else None

    @cached_property
    def _info(self) -> dict[str, Any]:
        with explained(self.name):
            info: dict[str, Any] = self._fs.info(self._path)
        return info


def network_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """List what file systems raise, and others; their libraries share no base, and only loaded ones can raise."""
    names = {
        "aiohttp": ("ClientError",),
        "botocore.exceptions": ("BotoCoreError", "ClientError"),
        "gcsfs.retry": ("HttpError",),
        "google.auth.exceptions": ("GoogleAuthError",),
        "azure.core.exceptions": ("AzureError",),
        "httpx": ("HTTPError",),
        "httpx2": ("HTTPError",),
        "paramiko.ssh_exception": ("SSHException",),
    }
    loaded = [(sys.modules[module], classes) for module, classes in names.items() if module in sys.modules]
    return (OSError, *others, *(getattr(module, name) for module, classes in loaded for name in classes))


def said(error: BaseException) -> str:
    """Spell what a library says on one line and without secrets; the error's name where it says nothing."""
    return " ".join(without_credentials(str(error)).split()) or type(error).__name__


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what goes wrong with a URL inside the block into one sentence."""
    try:
        yield
    except ImportError as error:
        package = getattr(error.__cause__ or error, "name", None) or "the package of its file system"
        raise DataError(
            f"{name}: reading {name.partition('://')[0]}:// needs {package}, which is not installed. "
            f"Install it, for example with `pip install {package}`."
        ) from error
    except FileNotFoundError as error:
        because = f" ({said(error.__cause__)})" if error.__cause__ else ""
        raise DataError(f"{name} cannot be found{because}. Check the URL.") from error
    except PermissionError as error:
        raise DataError(
            f"{name}: access is denied ({said(error)}). Give the credentials as the service's own "
            "tools take them: environment variables or their configuration file."
        ) from error
    except network_errors(ValueError) as error:
        raise DataError(
            f"{name} cannot be reached: {said(error)}. Check the URL, the network and the credentials."
        ) from error
