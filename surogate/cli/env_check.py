"""`surogate env-check`: run the environments of an orch.yaml dry, before anything is trained on them."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from surogate.config.flat_grpo import OrchConfig
from surogate.config.read import read_config
from surogate.errors import ConfigError

_DESCRIPTION = """\
Run the environments of an orch.yaml without training: rewards of the reference answers and of sampled completions, the
time each reward takes, what raises, and how many groups would teach nothing because all their rewards are alike."""
_DEFAULT_SEQ_LEN = 1024
_EXAMPLES = """\
examples:
  surogate env-check orch.yaml
  surogate env-check orch.yaml --sample 4                  # completions of the model that orch.yaml names
  surogate env-check orch.yaml --env.0.args.num_examples 50
"""


def main(argv: list[str]) -> int:
    """Print a report for each environment; 1 where one of them cannot be trained on."""
    parser = argparse.ArgumentParser(
        prog="surogate env-check",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("orch", metavar="ORCH.YAML")
    parser.add_argument("--examples", type=int, default=16, help="prompts of each environment; default %(default)s")
    parser.add_argument(
        "--sample",
        type=int,
        default=0,
        metavar="N",
        help="let the model answer each prompt N times; default: not at all",
    )
    options, overrides = parser.parse_known_args(argv)
    config: OrchConfig = read_config("env-check", options.orch, overrides).config
    return asyncio.run(_check(config, options))


async def _check(config: OrchConfig, options: argparse.Namespace) -> int:
    from surogate.rl.env_check import check
    from surogate.rl.environments.registry import build_environment

    environments = [build_environment(spec) for spec in [*config.env, *config.eval.env]]
    is_fit = True
    async with _sampling(config, options.sample) as policy:
        for environment in environments:
            try:
                count = options.sample or config.rollouts_per_example
                report = await check(environment, policy, options.examples, count)
            finally:
                await environment.close()
            print("\n".join(report.lines()), flush=True)
            is_fit = is_fit and not report.problems()
    return 0 if is_fit else 1


@asynccontextmanager
async def _sampling(config: OrchConfig, count: int) -> AsyncIterator[Any]:
    """Give a policy that samples from the model in an engine of this process; None where nothing is sampled."""
    if not count:
        yield None
        return
    if config.model.name is None:
        raise ConfigError("--sample needs a model: set model.name in orch.yaml, or add --model.name MODEL.")
    from surogate.cli.grpo_infer import served_folder
    from surogate.config.parts_grpo import InferenceSpec
    from surogate.data.tokenizers import load_tokenizer
    from surogate.rl.generators.vllm_engine import InProcessVllm
    from surogate.rl.policy import SampledPolicy

    seq_len = config.seq_len or _DEFAULT_SEQ_LEN
    folder, dtype = served_folder(config.model.name, None, trust_remote_code=False)
    spec = InferenceSpec(model=config.model.name, dtype=dtype, max_model_len=seq_len, enable_lora=False)  # type: ignore[arg-type]
    generator = InProcessVllm(spec, Path(folder))
    try:
        await generator.start()
        yield SampledPolicy(load_tokenizer(config.model.name), generator, config.sampling, seq_len, seed=0)
    finally:
        await generator.close()
