"""`surogate quantize`: a model becomes one with weights of 4 or 8 bits, in the layouts that other programs read."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surogate.errors import ConfigError

if TYPE_CHECKING:
    from surogate.quant.checkpoints.writing import Layout

_EXAMPLES = """\
formats:
  nf4     bitsandbytes' NF4, 4.1 bits a weight (4.5 without double quantisation), any GPU
  fp8     E4M3 with a scale for each tile of 128 x 128, 8.0 bits, as DeepSeek and Qwen publish it; layers whose sides
          are not multiples of the tile stay as they are
  nvfp4   compressed-tensors' NVFP4, weights only, 4.5 bits; fastest on Blackwell

The LM head and the embeddings stay as they are. The result is loaded by transformers, in layouts that vLLM reads
too, and trained on by `surogate sft` with an adapter, without a qlora key.

examples:
  surogate quantize Qwen/Qwen3-0.6B --format nf4 --output qwen3-nf4
  surogate quantize output/model --format fp8 --output served --skip-first-layers 1 --skip-last-layers 2
  surogate quantize my-model --format nf4 --block-size 128 --no-double-quant --output my-model-nf4
"""

_BLOCK_SIZES = {"nf4": (64, 128, 256, 512), "fp8": (64, 128, 256)}


def main(argv: list[str]) -> int:
    """Quantise, and print how small it got."""
    options = _parser().parse_args(argv)
    _check(options)

    from surogate.data.tokenizers import load_tokenizer
    from surogate.models.quantize import check_target, quantize
    from surogate.quant.convert import Skip

    folder = Path(options.output)
    check_target(options.model, folder, options.force)  # before anything is loaded
    skip = Skip(first_layers=options.skip_first_layers, last_layers=options.skip_last_layers)
    tokenizer = load_tokenizer(options.model)
    report = quantize(
        options.model, _layout(options), skip, folder, tokenizer, force=options.force, progress=_show_progress
    )
    print(report)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="surogate quantize",
        description="Write a model with its linear layers in 4 or 8 bits, as a folder that transformers and vLLM load.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a folder, a .gguf file, pkg://package/file or a hub id")
    parser.add_argument("--format", required=True, choices=["nf4", "fp8", "nvfp4"], help="see below")
    parser.add_argument("--output", required=True, metavar="DIR", help="where the model goes")
    parser.add_argument(
        "--block-size",
        type=int,
        metavar="N",
        help="nf4: elements that share a scale, 64 (default), 128, 256 or 512; fp8: side of a tile, 64, 128 (default, "
        "and the only one that vLLM reads) or 256",
    )
    parser.add_argument("--no-double-quant", action="store_true", help="nf4: keep the scales in float32")
    parser.add_argument(
        "--no-four-over-six", action="store_true", help="nvfp4: let every block end at 6, not at 4 where that errs less"
    )
    parser.add_argument("--skip-first-layers", type=int, default=0, metavar="N", help="decoder layers left as they are")
    parser.add_argument("--skip-last-layers", type=int, default=0, metavar="N", help="the same at the end")
    parser.add_argument("--force", action="store_true", help="replace what is in DIR")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse options that mean nothing together.

    Raises:
        ConfigError: naming the option.
    """
    sizes = _BLOCK_SIZES.get(options.format, ())
    if options.block_size is not None and options.block_size not in sizes:
        allowed = f"{', '.join(map(str, sizes))} with --format {options.format}" if sizes else "fixed in nvfp4, at 16"
        raise ConfigError(f"--block-size {options.block_size} is not possible; it is {allowed}.")
    for option, format_ in {"no_double_quant": "nf4", "no_four_over_six": "nvfp4"}.items():
        if getattr(options, option) and options.format != format_:
            raise ConfigError(f"--{option.replace('_', '-')} needs --format {format_}, not {options.format}.")
    for option in ("skip_first_layers", "skip_last_layers"):
        if getattr(options, option) < 0:
            raise ConfigError(f"--{option.replace('_', '-')} must be 0 or more, got {getattr(options, option)}.")


def _layout(options: argparse.Namespace) -> Layout:
    from surogate.quant.checkpoints import writing
    from surogate.quant.fp4 import Nvfp4Format
    from surogate.quant.fp8 import Fp8Format
    from surogate.quant.nf4 import Nf4Format

    if options.format == "nf4":
        storage = Nf4Format(block_size=options.block_size or 64, double_quant=not options.no_double_quant)
        return writing.BitsAndBytesLayout(storage)
    if options.format == "fp8":
        return writing.FineGrainedFp8Layout(Fp8Format(block_size=options.block_size or 128))
    return writing.CompressedTensorsLayout(Nvfp4Format(four_over_six=not options.no_four_over_six))


def _show_progress(groups: list[Any]) -> Iterator[Any]:
    """Iterate with a bar on a terminal that vanishes when it is full."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(groups, description="Quantising")
