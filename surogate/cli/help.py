"""Help pages, printed without importing torch. The page of a training verb is generated from its schema."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import dataclass

from surogate import __version__


@dataclass(frozen=True)
class Verb:
    """One verb of the command line."""

    module: str
    summary: str


VERBS = {
    "quickstart": Verb("surogate.cli.quickstart", "fine-tune a small real model on real data, start to finish"),
    "sft": Verb("surogate.cli.sft", "fine-tune a model on instructions or conversations, from one flat YAML"),
    "pt": Verb("surogate.cli.pt", "pretrain a model on plain text, from scratch or on, from one flat YAML"),
    "tokenizer": Verb("surogate.cli.tokenizer", "train a tokenizer on a corpus"),
    "tokenize": Verb("surogate.cli.tokenize", "tokenise the data of a configuration into the cache, and nothing else"),
    "inspect": Verb("surogate.cli.inspect", "look at the data of a configuration before training on it"),
    "chat": Verb("surogate.cli.chat", "talk to a run or a model"),
    "generate": Verb("surogate.cli.generate", "answer one prompt with a run or a model"),
    "merge": Verb("surogate.cli.merge", "merge an adapter into its base, and check the result"),
    "quantize": Verb("surogate.cli.quantize", "write a model in 4 or 8 bits, for vLLM, transformers and training"),
    "fit": Verb("surogate.cli.fit", "train from a nested LightningCLI configuration"),
    "validate": Verb("surogate.cli.validate", "measure a run on its validation data"),
}

_LATER = "it comes with a later release."
NOT_YET_VERBS = {
    "grpo": "reinforcement learning comes in a later release. `surogate sft` trains on demonstrations.",
    "grpo-infer": "reinforcement learning comes in a later release.",
    "dpo": "preference training comes in a later release. `surogate sft` trains on demonstrations.",
    "submit": "until then start `surogate sft` from your own sbatch script, on one node.",
    "dashboard": "metrics.csv, metrics.jsonl and loss.png lie in the run's folder.",
    "report": "metrics.csv, metrics.jsonl and loss.png lie in the run's folder.",
    "verify": _LATER,
    "env": _LATER,
    "env-check": _LATER,
}
"""Verbs that are planned, and what to do until then."""

_OVERVIEW = """\
surogate {version}: pretrain and fine-tune language models from one flat YAML.

usage: surogate VERB [...]

{verbs}

examples:
  surogate quickstart
  surogate inspect cfg.yaml
  surogate sft cfg.yaml --learning_rate 1e-4
  surogate chat output

`surogate VERB --help` explains a verb. Exit codes: 0 done, 1 problems that inspect found, 2 configuration,
3 data, 4 model, 5 checkpoint, 6 hardware, 130 interrupted.
"""

_SFT = """\
usage: surogate sft CFG.YAML [--key value ...] [--print_config]

Fine-tune a model on instructions or conversations. Every key can be overridden on the command line. Running the same
command again resumes the run; a finished run says so.

example cfg.yaml:
  model: HuggingFaceTB/SmolLM2-135M-Instruct
  datasets:
    - path: data/train.jsonl
      type: conversation
  num_epochs: 1

examples:
  surogate sft cfg.yaml
  surogate sft cfg.yaml --learning_rate 1e-4 --lora_target_modules '[q_proj, v_proj]' --datasets.0.path more.jsonl
  surogate sft cfg.yaml --print_config > nested.yaml     # the same run for `surogate fit`

"""

_PT = """\
usage: surogate pt CFG.YAML [--key value ...] [--print_config]

Pretrain on plain text, every token of it: a model from random weights (from_scratch: true), or a trained one further
(all weights, or an adapter with lora: true). Documents end with the end token, long ones are split, nothing is dropped.
Every key can be overridden on the command line. Running the same command again resumes the run.

example cfg.yaml:
  model: Qwen/Qwen3-0.6B-Base
  datasets:
    - path: corpus/
      type: text
  num_epochs: 1

examples:
  surogate pt cfg.yaml
  surogate pt cfg.yaml --lora true --learning_rate 5e-4
  surogate pt cfg.yaml --from_scratch true --tokenizer my-tokenizer

"""

_FIT = """\
usage: surogate fit --config NESTED.YAML [--config MORE.YAML ...] [--trainer.max_steps 10 ...]

Train from a nested LightningCLI configuration: trainer, model and data, each class named by its class_path. Files merge
from left to right and options win over files. The config.yaml that every run saves is such a configuration.

examples:
  surogate fit --config output/config.yaml
  surogate fit --config output/config.yaml --model.init_args.optim.learning_rate 1e-4 --trainer.default_root_dir other
  surogate fit --config output/config.yaml --trainer.devices 2 --trainer.strategy ddp
  surogate fit --config output/config.yaml --print_config

  --help full                    every option of the trainer (slow: imports torch)
  --model.help CLASS_PATH        every option of a model, such as surogate.modes.SftModule
  --data.help CLASS_PATH         every option of a data module
"""

_VALIDATE = """\
usage: surogate validate --config NESTED.YAML [--ckpt_path CHECKPOINT]

Measure loss, perplexity and accuracy on the validation data of a configuration: with the newest checkpoint of its run
where there is one, else with the base model.

examples:
  surogate validate --config output/config.yaml
  surogate validate --config output/config.yaml --ckpt_path output/checkpoints/step_50

  --help full                    every option of the trainer (slow: imports torch)
"""


def overview() -> str:
    """Return the page of `surogate --help`."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return _OVERVIEW.format(version=__version__, verbs=verbs)


def page(verb: str) -> str | None:
    """Return the page of a verb, or None where its module has its own."""
    if verb in _TRAINING:
        return _TRAINING[verb] + _keys(verb)
    return {"fit": _FIT, "validate": _VALIDATE}.get(verb)


_TRAINING = {"sft": _SFT, "pt": _PT}


def _keys(verb: str) -> str:
    from surogate.config.flat import GROUPS, SCHEMAS
    from surogate.config.keys import keys_of, show_default, type_name
    from surogate.config.parts import DatasetSpec

    width = min(shutil.get_terminal_size().columns, 120)
    lines = []
    for group, schema in {**GROUPS, "A dataset": DatasetSpec}.items():
        lines += [group, ""]
        of_verb = keys_of(schema) if schema is DatasetSpec else keys_of(SCHEMAS[verb])  # which has defaults of its own
        for key in map(of_verb.__getitem__, keys_of(schema)):
            lines.append(f"  {key.name}  ({type_name(key.type)}; {show_default(key)})")
            lines += textwrap.wrap(key.summary, width, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    return "\n".join(lines)
