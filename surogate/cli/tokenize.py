"""`surogate tokenize`: fill the token cache for a configuration, without a model and before any process group."""

from __future__ import annotations

import argparse
import os

from surogate.config.lower import to_environment, to_lightning
from surogate.config.read import likely_verb, read_config

_EXAMPLES = """\
Training then starts at once, on every rank. Without it the first start of a training verb does the same work, and all
ranks wait. Text is tokenised alike for both verbs; --mode matters for conversations, which pt supervises whole.

examples:
  surogate tokenize cfg.yaml
  surogate tokenize cfg.yaml --sequence_len 2048
  SUROGATE_CACHE=/scratch/cache surogate tokenize cfg.yaml
"""


def main(argv: list[str]) -> int:
    """Tokenise the data sets of a configuration and say where they are."""
    parser = argparse.ArgumentParser(
        prog="surogate tokenize",
        usage="surogate tokenize CFG.YAML [--mode sft|pt] [--key value ...]",
        description="Tokenise the data sets of a training configuration into the cache.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CFG.YAML", help="the configuration of a training verb")
    parser.add_argument("--mode", choices=["sft", "pt"], help="its verb; default pt where all data is text, else sft")
    options, overrides = parser.parse_known_args(argv)
    mode = options.mode or likely_verb(options.config)
    config = read_config(mode, options.config, overrides).config

    os.environ.update(to_environment(config))
    data = to_lightning(config)["data"]["init_args"]
    from surogate.config.parts import ChatSpec, DatasetSpec
    from surogate.data.cache import TokenCache
    from surogate.data.prepare import TokenSettings, named, prepare

    settings = TokenSettings.load(
        data["tokenizer"],
        ChatSpec(**data["chat"]),
        data["batch"]["sequence_len"],
        prefers_text=mode == "pt",
        trust_remote_code=data["trust_remote_code"],
    )
    cache = TokenCache()
    for key in ("datasets", "validation_datasets"):
        for name, spec in named([DatasetSpec(**entry) for entry in data[key]]):
            store = prepare(name, spec, settings, cache)
            print(f"{name}  {len(store)} rows  {int(store.lengths.sum())} tokens  {store.folder}")
    return 0
