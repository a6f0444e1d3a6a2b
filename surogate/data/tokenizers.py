"""Loading a tokenizer from wherever a model may lie.

What is not here: chat templates (chat.py). The one idea: a pad token only fills space. Labels and boundaries say what
is padding, never an id, so a tokenizer whose pad is its end token needs no special care.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from surogate.errors import ModelError
from surogate.locations import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(source: str, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer.

    Args:
        source: folder, `.gguf` file, `pkg://package/file`, or hub id; only the last may use the network.
        trust_remote_code: run code that comes with a hub repository.

    Returns:
        A tokenizer with a pad token.

    Raises:
        ModelError: there is none at the source, or only a slow one, which cannot say which characters a token covers.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    location = resolve(source, error=ModelError)
    gguf_file = None
    if isinstance(location, Path) and location.is_file():
        if location.suffix != ".gguf":
            raise ModelError(f"{source!r} is a file; a tokenizer is loaded from a folder, a .gguf file or a hub id.")
        location, gguf_file = location.parent, location.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(location),
            gguf_file=gguf_file,
            trust_remote_code=trust_remote_code,
            local_files_only=isinstance(location, Path),
        )
    except (OSError, ValueError, KeyError) as error:
        if isinstance(location, Path) and gguf_file is None and not any(location.glob("*token*")):
            raise ModelError(
                f"{source!r} holds no tokenizer. Set tokenizer to the folder of one; `surogate tokenizer train` makes "
                "one from a corpus."
            ) from error
        raise ModelError(f"no tokenizer could be loaded from {source!r}: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"{source!r} has only a slow tokenizer; add its tokenizer.json.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer
