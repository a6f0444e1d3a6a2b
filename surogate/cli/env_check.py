"""`surogate env-check`: run the environments of an orch.yaml dry, before anything is trained on them."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable
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
    parser.add_argument("--examples", type=_count, default=16, help="prompts of each environment; default %(default)s")
    parser.add_argument(
        "--sample",
        type=_count,
        default=0,
        metavar="N",
        help="let the model answer each prompt N times; default: not at all",
    )
    options, overrides = parser.parse_known_args(argv)
    config: OrchConfig = read_config("env-check", options.orch, overrides).config
    return asyncio.run(_check(config, options))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


async def _check(config: OrchConfig, options: argparse.Namespace) -> int:
    from surogate.rl.env_check import check
    from surogate.rl.environments.registry import build_environment, check_environments

    specs = [*config.env, *config.eval.env]
    check_environments(specs)
    if options.sample and config.model.name is None:
        raise ConfigError("--sample needs a model: set model.name in orch.yaml, or add --model.name MODEL.")
    tokenizer, render = _tokenizer(config)
    environments = [build_environment(spec) for spec in specs]
    is_fit = True
    async with _sampling(config, options.sample, tokenizer) as policy:
        for environment in environments:
            try:
                count = options.sample or config.rollouts_per_example
                report = await check(environment, policy, options.examples, count, _seq_len(config), render)
            finally:
                await environment.close()
            print("\n".join(report.lines()), flush=True)
            is_fit = is_fit and not report.problems()
    if render is None:
        print("The lengths of prompts were not counted: add --model.name MODEL, whose tokenizer counts them.")
    return 0 if is_fit else 1


def _seq_len(config: OrchConfig) -> int:
    return config.seq_len or _DEFAULT_SEQ_LEN


def _tokenizer(config: OrchConfig) -> tuple[Any, Callable[[str | list[dict[str, Any]]], list[int]] | None]:
    """Return the tokenizer of the model and what gives the tokens of a prompt; None where no model is named."""
    source = config.model.tokenizer or config.model.name
    if source is None:
        return None, None
    from surogate.data.tokenizers import load_tokenizer
    from surogate.rl.rendering import check_template_options, prompt_tokens

    tokenizer, options = load_tokenizer(source, config.model.trust_remote_code), config.sampling.chat_template_kwargs
    check_template_options(tokenizer, options)
    return tokenizer, lambda prompt: prompt_tokens(tokenizer, prompt, options)


@asynccontextmanager
async def _sampling(config: OrchConfig, count: int, tokenizer: Any) -> AsyncIterator[Any]:
    """Give a policy that samples from the model in an engine of this process; None where nothing is sampled."""
    if not count:
        yield None
        return
    assert config.model.name is not None
    from surogate.cli.grpo_infer import served_folder
    from surogate.config.parts_grpo import InferenceSpec
    from surogate.rl.generators.vllm_engine import InProcessVllm
    from surogate.rl.policy import SampledPolicy

    seq_len = _seq_len(config)
    folder, dtype = served_folder(config.model.name, None, config.model.trust_remote_code)
    spec = InferenceSpec(model=config.model.name, dtype=dtype, max_model_len=seq_len, enable_lora=False)  # type: ignore[arg-type]
    generator = InProcessVllm(spec, Path(folder))
    try:
        await generator.start()
        yield SampledPolicy(tokenizer, generator, config.sampling, seq_len, seed=0)
    finally:
        await generator.close()
