"""`surogate tokenizer train`: make a tokenizer from text.

What is not here: the training itself (data/tokenizer_training.py). The one idea: the folder appears whole or not at
all, and nothing but another tokenizer is ever replaced.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from surogate.config.parts import DatasetSpec
from surogate.errors import ConfigError
from surogate.run_folder import replace_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FILES = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
"""What a tokenizer folder may hold."""

_EXAMPLES = """\
examples:
  surogate tokenizer train --data corpus.txt --vocab_size 8192 --output output/tokenizer
  surogate tokenizer train --data books --data wiki.jsonl.gz --vocab_size 32000 --output output/tokenizer --chat

`tokenizer: output/tokenizer` in a YAML then trains with it; the model's vocab_size must be at least as large.
"""


def main(argv: list[str]) -> int:
    """Run `surogate tokenizer train`."""
    options = _parser().parse_args(argv)
    folder = Path(options.output).expanduser()
    _check_output(folder, options.force)
    chosen = {field.name: value for field in fields(DatasetSpec) if (value := getattr(options, field.name, None))}
    started = time.monotonic()

    from surogate.data.tokenizer_training import train_tokenizer

    trained = train_tokenizer(
        [DatasetSpec(path=path, **chosen) for path in options.data],
        options.vocab_size,
        chat=options.chat,
        show_progress=sys.stderr.isatty(),
    )
    _save(trained.tokenizer, folder)
    size = len(trained.tokenizer)
    print(f"{folder}: {size} tokens from {trained.num_documents} documents ({trained.num_bytes / 1e6:.1f} MB)")
    if size < options.vocab_size:
        print(f"  fewer than vocab_size {options.vocab_size}: no more pairs occur twice in this text")
    print(f"  {trained.bytes_per_token:.2f} bytes per token, {time.monotonic() - started:.1f} seconds")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="surogate tokenizer",
        description="Train a byte-level BPE tokenizer on text: files, folders, hub data sets, compressed or not.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train = parser.add_subparsers(dest="action", required=True, metavar="train").add_parser(
        "train",
        description="Train a byte-level BPE tokenizer. The same data gives the same tokenizer.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("--data", action="append", required=True, metavar="PATH", help="as in `datasets: - path:`")
    train.add_argument("--vocab_size", type=int, required=True, metavar="N", help="tokens, special ones included")
    train.add_argument("--output", required=True, metavar="DIR", help="folder of the tokenizer")
    train.add_argument("--text_field", metavar="COLUMN", help="column of the text (default: text)")
    train.add_argument("--samples", type=_count, metavar="N", help="read only the first N rows of each --data")
    train.add_argument("--split", help="split of a hub data set or folder (default: train)")
    train.add_argument("--subset", help="configuration of a hub data set, or subfolder of a folder")
    train.add_argument("--chat", action="store_true", help="add the tokens and the template of ChatML")
    train.add_argument("--force", action="store_true", help="replace the tokenizer in --output")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def _check_output(folder: Path, force: bool) -> None:
    """Refuse, before anything is read, a folder that must not be replaced."""
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder} is a file; give the name of a folder.")
    if held - _FILES:
        raise ConfigError(
            f"--output {folder} holds more than a tokenizer ({min(held - _FILES)}). Choose a folder of its own."
        )
    if held and not force:
        raise ConfigError(f"--output {folder} holds a tokenizer already. Add --force to replace it.")


def _save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    draft = folder.with_name(f"{folder.name}.tmp")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        tokenizer.save_pretrained(draft)
        replace_folder(draft, folder)
    except OSError as error:
        raise ConfigError(f"--output {folder} cannot be written: {error.strerror or error}.") from error
