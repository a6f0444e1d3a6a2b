"""`surogate merge`: an adapter and its base become one model folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surogate.config.parts import SHORT_DTYPES
from surogate.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from surogate.models.inference import FoundModel
    from surogate.models.stored_base import StoredBase

_EXAMPLES = """\
The merge is checked: the folder that was written is read again, and its logits are compared with those of base +
adapter. 16 bits round the merged weights, and the report says how much that is beside the update.

An adapter that trained on a quantised base has three targets, all of which are made and measured on held-out rows
against what trained (KL divergence, agreement of the likeliest token, change of loss). One of them is kept:
  original       merged into the weights before they were quantised. The adapter never saw them.
  dequantized    merged into the weights that trained, dequantised. What trained, in 16 bits.
  requantized    merged and quantised again to the run's format (bitsandbytes NF4, fine-grained FP8 or
                 compressed-tensors NVFP4), as small as what trained; chat, transformers and vLLM load it.
Default is the recommended one of the first two. A target that is too far from what trained needs --force.

examples:
  surogate merge output                                   # writes output/model
  surogate merge output --dtype float32
  surogate merge output --target requantized --output served
  surogate merge output --rows more/held_out.jsonl --max-rows 200
  surogate merge my-adapter --model Qwen/Qwen3-0.6B --output merged
  surogate merge output --original Qwen/Qwen3-0.6B        # where the run's base was a quantised checkpoint
"""

_ONLY_QUANTISED = ("target", "rows", "max_rows")


def main(argv: list[str]) -> int:
    """Merge, and print how well it came out."""
    options = _parser().parse_args(argv)

    from surogate.cli.merge_inputs import base_of, run_of
    from surogate.data.tokenizers import load_tokenizer
    from surogate.models.inference import find_model
    from surogate.models.merge import check_target, merge
    from surogate.run_folder import RunFolder

    if not Path(options.location).is_dir():
        raise ModelError(f"{options.location} is not a folder. Give the folder of a run or of an adapter.")
    found = find_model(options.location, base=options.model)
    run = RunFolder(options.location)
    if not options.output and not (run.surogate_yaml.exists() or run.config_yaml.exists()):
        raise ConfigError(f"{options.location} is not the folder of a run. Say where the model goes with --output DIR.")
    folder = Path(options.output) if options.output else run.model_dir
    check_target(found, folder, options.force)  # before anything is loaded
    configuration = run_of(options.location)
    base = base_of(configuration, found, options.original)
    tokenizer = load_tokenizer(found.tokenizer, found.trust_remote_code)
    if base is not None:
        _merge_stored(options, configuration, found, base, folder, tokenizer)
        return 0
    for name in _ONLY_QUANTISED:
        if getattr(options, name) not in (None, "original"):
            raise ConfigError(
                f"--{name.replace('_', '-')} is for adapters that trained on a quantised base, and {found.base} is "
                "none. Remove the option."
            )
    print(merge(found, options.dtype, folder, tokenizer, force=options.force))
    return 0


def _merge_stored(
    options: argparse.Namespace,
    run: dict[str, Any],
    found: FoundModel,
    base: StoredBase,
    folder: Path,
    tokenizer: Any,
) -> None:
    from surogate.cli.merge_inputs import held_out_rows
    from surogate.models.stored_merge import Wanted, merge_stored

    rows = held_out_rows(run, found, tokenizer, options.rows, options.max_rows)
    wanted = Wanted(target=options.target, dtype=options.dtype, force=options.force)
    print(merge_stored(found, base, rows, folder, tokenizer, wanted, show=lambda table: print(table, flush=True)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="surogate merge",
        description="Merge an adapter into its base model and write a complete model folder.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("location", metavar="RUN_OR_ADAPTER", help="folder of a run or of an adapter")
    parser.add_argument("--model", metavar="BASE", help="base model; default the one that the run or adapter names")
    parser.add_argument("--output", metavar="DIR", help="where the model goes; default RUN/model")
    parser.add_argument(
        "--dtype",
        type=lambda name: SHORT_DTYPES.get(name, name),
        choices=["float32", "bfloat16", "float16"],
        help="of the merged weights; default the base's own",
    )
    parser.add_argument(
        "--target",
        choices=["original", "dequantized", "requantized"],
        help="what an adapter of a quantised base is merged into; default the recommended of the first two",
    )
    parser.add_argument(
        "--original", metavar="MODEL", help="the unquantised model, where the base is a quantised checkpoint"
    )
    parser.add_argument(
        "--rows", metavar="FILE", help="held-out rows to measure drift on; default the run's validation rows"
    )
    parser.add_argument(
        "--max-rows", type=_positive, metavar="N", help="use at most N of them; default 8,192 tokens in all"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="keep a target that is too far from what trained, and replace a folder that is not an earlier merge",
    )
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value
