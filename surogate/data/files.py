"""Data files and the folders they lie in, on this machine; remote.py has the same for URLs.

What is not here: what rows a file holds (sources.py). The one idea: a file is something with a name for messages, a
name within its source, bytes to stream and a digest of its contents; where it lies matters to nobody else.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from surogate.data.digests import file_digest
from surogate.data.remote import network_errors, said
from surogate.errors import DataError


def _open_zstd(stored: IO[bytes]) -> Any:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(stored, compression="zstd"))


_DECOMPRESSORS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
COMPRESSIONS = tuple(_DECOMPRESSORS)

_BLOCK_LEN = 1 << 20
"""Characters of a TextFile's block, about."""


class DataFile(Protocol):
    """A file of rows, here or behind a URL."""

    @property
    def name(self) -> str:
        """What messages call it: a path or a URL, without credentials."""

    @property
    def inner(self) -> str:
        """Its name relative to the folder that is the source; a single file's own name."""

    def open(self, *, seeks: bool = False) -> IO[bytes]:
        """Open it for reading, as it is stored; `seeks` where it is not just read from its start to its end."""

    def digest(self) -> str:
        """Identify its contents."""


class Place(Protocol):
    """A file or a folder of files."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def is_folder(self) -> bool:
        """Tell a folder from a file."""

    def file(self) -> DataFile:
        """Give the file that is here."""

    def files(self) -> Sequence[DataFile]:
        """Give the files of the folder and its folders, sorted by name."""

    def folder(self, name: str) -> Place | None:
        """Give a folder of this one, None where there is none."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine."""

    path: Path
    inner: str

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    def open(self, *, seeks: bool = False) -> IO[bytes]:
        """Open it for reading."""
        return self.path.open("rb")

    def digest(self) -> str:
        """Hash its contents, or remember their hash."""
        return file_digest(self.path)


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A path on this machine."""

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def is_folder(self) -> bool:
        """Tell a folder from a file."""
        return self.path.is_dir()

    def file(self) -> LocalFile:
        """Give the file that is here."""
        return LocalFile(self.path, self.path.name)

    def files(self) -> list[LocalFile]:
        """Give the files of the folder and its folders, sorted by name."""
        found = sorted(path for path in self.path.rglob("*") if path.is_file())
        return [LocalFile(path, path.relative_to(self.path).as_posix()) for path in found]

    def folder(self, name: str) -> LocalPlace | None:
        """Give a folder of this one, None where there is none."""
        return LocalPlace(self.path / name) if (self.path / name).is_dir() else None


@dataclass(frozen=True, slots=True)
class TextFile:
    """A document that is a whole text file, of any size; `str` of it is the text."""

    file: DataFile

    def __str__(self) -> str:
        return "".join(self.blocks())

    def blocks(self) -> Iterator[str]:
        """Yield the text in pieces of about a million characters.

        A piece ends where a line ends and the next begins with a character that is not blank, in a text without such
        a place before a word, else anywhere; so tokens seldom lie across pieces.

        Raises:
            DataError: the file cannot be read, or is not UTF-8.
        """
        rest = ""
        with opened(self.file) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
            while piece := text.read(_BLOCK_LEN):
                rest += piece
                if len(rest) > _BLOCK_LEN:
                    cut = _cut(rest)
                    yield rest[:cut]
                    rest = rest[cut:]
        if rest:
            yield rest


def _cut(text: str) -> int:
    """Find the last place at which a text may be cut; behind its first character and before its last."""
    for blank, before in (("\n", 1), (" ", 0)):
        end = len(text)
        while (end := text.rfind(blank, 1, end)) > 0:
            if end + 1 < len(text) and not text[end + 1].isspace() and (before or not text[end - 1].isspace()):
                return end + before
    return len(text) - 1


def kind(file: DataFile) -> str:
    """Return the suffix that tells a file's type, in lower case and without that of the compression."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(file.inner).suffixes]
    if compression(file):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def compression(file: DataFile) -> str | None:
    """Return the suffix of a file's compression, None where it has none."""
    suffix = PurePosixPath(file.inner).suffix.lower()
    return suffix if suffix in _DECOMPRESSORS else None


@contextmanager
def opened(file: DataFile, *, seeks: bool = False) -> Iterator[IO[bytes]]:
    """Open a file, decompressed; what goes wrong with it inside the block is a DataError that names it."""
    compressed = compression(file)
    try:
        with file.open(seeks=seeks and compressed is None) as stored:
            if compressed is None:
                yield stored
            else:
                with _DECOMPRESSORS[compressed](stored) as stream:
                    yield stream
    except UnicodeDecodeError as error:
        raise DataError(f"{file.name}: the file is not UTF-8 text ({error}). Convert it first.") from error
    except network_errors(EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{file.name}: the file cannot be read: {said(error)}") from error
