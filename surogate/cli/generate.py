"""`surogate generate`: answer prompts with a run or a model."""

from __future__ import annotations

import argparse

_EXAMPLES = """\
examples:
  surogate generate output --prompt "What is the capital of France?"
  surogate generate output --adapter french=other/adapter --prompt "Where is Paris?"
  surogate generate HuggingFaceTB/SmolLM2-135M-Instruct --prompt "Say hello." --temperature 0.8 --seed 7
"""


def main(argv: list[str]) -> int:
    """Print the answer to each prompt; with several prompts, each answer stands below its prompt."""
    from surogate.cli.adapters import one_of
    from surogate.cli.answering import Answerer, add_options

    parser = argparse.ArgumentParser(
        prog="surogate generate",
        description="Answer prompts with a run, an adapter or a model.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, max_new_tokens=64)
    parser.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="may be given several times")
    parser.add_argument("--adapter", metavar="[NAME=]DIR", help="adapter or run to use instead of the run's own")
    parser.add_argument("--raw", action="store_true", help="go on with the prompt as plain text, without a template")
    options = parser.parse_args(argv)
    answerer = Answerer(options, one_of(options.adapter) if options.adapter else None)
    for prompt in options.prompt:
        prompt = prompt.replace("\\n", "\n") if options.raw else prompt
        answer = answerer.go_on(prompt) if options.raw else answerer.answer([{"role": "user", "content": prompt}])
        print(answer if len(options.prompt) == 1 else f"> {prompt}\n{answer}\n", flush=True)
    return 0
