"""`surogate merge`: an adapter and its base become one model folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from surogate.config.parts import SHORT_DTYPES
from surogate.errors import ConfigError, ModelError

_EXAMPLES = """\
The merge is checked: the folder that was written is read again, and its logits are compared with those of base +
adapter. 16 bits round the merged weights, and the report says how much that is beside the update.

examples:
  surogate merge output                                   # writes output/model
  surogate merge output --dtype float32
  surogate merge my-adapter --model Qwen/Qwen3-0.6B --output merged
"""


def main(argv: list[str]) -> int:
    """Merge, and print how well it came out."""
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
    parser.add_argument("--force", action="store_true", help="replace a folder that is not an earlier merge")
    options = parser.parse_args(argv)

    from surogate.data.tokenizers import load_tokenizer
    from surogate.models.inference import find_model
    from surogate.models.merge import check_target, merge
    from surogate.run_folder import RunFolder

    if not Path(options.location).is_dir():
        raise ModelError(f"{options.location} is not a folder. Give the folder of a run or of an adapter.")
    found = find_model(options.location, base=options.model)
    run = RunFolder(options.location)
    if not options.output and not run.surogate_yaml.exists():
        raise ConfigError(f"{options.location} is not the folder of a run. Say where the model goes with --output DIR.")
    folder = Path(options.output) if options.output else run.model_dir
    check_target(found, folder, options.force)  # before anything is loaded
    tokenizer = load_tokenizer(found.tokenizer, found.trust_remote_code)
    print(merge(found, options.dtype, folder, tokenizer, force=options.force))
    return 0
