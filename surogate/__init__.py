"""Surogate trains language models: one flat YAML for users, the same modules under LightningCLI for engineers."""

from importlib import metadata

try:
    __version__ = metadata.version("surogate")
except metadata.PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
