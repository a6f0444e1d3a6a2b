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
    "quickstart-grpo": Verb("surogate.cli.quickstart_grpo", "teach it arithmetic by rewards, start to finish"),
    "sft": Verb("surogate.cli.sft", "fine-tune a model on instructions or conversations, from one flat YAML"),
    "pt": Verb("surogate.cli.pt", "pretrain a model on plain text, from scratch or on, from one flat YAML"),
    "grpo": Verb("surogate.cli.grpo", "improve a model by rewards: vLLM generates, environments reward, LoRA trains"),
    "grpo-infer": Verb("surogate.cli.grpo_infer", "the generator of a grpo run, as a server of its own"),
    "grpo-orch": Verb("surogate.cli.grpo_orch", "the orchestrator of a grpo run, as a process of its own"),
    "grpo-train": Verb("surogate.cli.grpo_train", "the trainer of a grpo run, as processes of their own"),
    "env-check": Verb("surogate.cli.env_check", "try environments and their rewards without training"),
    "tokenizer": Verb("surogate.cli.tokenizer", "train a tokenizer on a corpus"),
    "tokenize": Verb("surogate.cli.tokenize", "tokenise the data of a configuration into the cache, and nothing else"),
    "inspect": Verb("surogate.cli.inspect", "look at the data of a configuration before training on it"),
    "chat": Verb("surogate.cli.chat", "talk to a run or a model"),
    "generate": Verb("surogate.cli.generate", "answer one prompt with a run or a model"),
    "merge": Verb("surogate.cli.merge", "merge an adapter into its base, and check the result"),
    "quantize": Verb("surogate.cli.quantize", "write a model in 4 or 8 bits, for vLLM, transformers and training"),
    "fit": Verb("surogate.cli.fit", "train from a nested LightningCLI configuration"),
    "report": Verb("surogate.cli.report", "a run, or several side by side, as one HTML page"),
    "dashboard": Verb("surogate.cli.dashboard", "make a W&B workspace with the charts that runs fill"),
    "validate": Verb("surogate.cli.validate", "measure a run on its validation data"),
    "verify": Verb("surogate.cli.verify", "prove that a run resumes exactly, or that its loss is invariant"),
    "env": Verb("surogate.cli.env", "say what this machine can do: GPUs, recipes, formats, packages"),
    "submit": Verb("surogate.cli.submit", "run any of these on a SLURM cluster: write the batch script, submit it"),
}

NOT_YET_VERBS = {
    "dpo": "preference training comes in a later release. `surogate sft` trains on demonstrations.",
}
"""Verbs that are planned, and what to do until then."""

_OVERVIEW = """\
surogate {version}: pretrain and fine-tune language models, and improve them by rewards, from flat YAML.

usage: surogate VERB [...]

{verbs}

examples:
  surogate quickstart
  surogate inspect cfg.yaml
  surogate sft cfg.yaml --learning_rate 1e-4
  surogate chat output

`surogate VERB --help` explains a verb. Exit codes: 0 done, 1 problems that inspect, env or verify
found, 2 configuration, 3 data, 4 model, 5 checkpoint, 6 hardware, 130 interrupted.
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

_GRPO = """\
usage: surogate grpo --train TRAIN.YAML --infer INFER.YAML --orch ORCH.YAML [--train.key value ...] [--print_config]

Improve a model by rewards (GRPO and its kin): vLLM samples completions, environments reward them, and a LoRA adapter
trains on what they were worth. One command starts all parts. Every key can be overridden with its file in front.
Running the same command again resumes the run; a finished run says so.

  --vllm-gpus 0,1 --trainer-gpus 2,3   give generation and training GPUs of their own; without them they share one

example train.yaml:
  model: HuggingFaceTB/SmolLM2-135M-Instruct
  learning_rate: 1e-4

example infer.yaml:
  max_num_seqs: 64

example orch.yaml:
  env:
    - id: arithmetic
  batch_size: 64
  rollouts_per_example: 8
  max_steps: 100
  sampling: {max_tokens: 64}

examples:
  surogate env-check orch.yaml
  surogate grpo --train train.yaml --infer infer.yaml --orch orch.yaml
  surogate grpo --train train.yaml --infer infer.yaml --orch orch.yaml --train.loss.type dapo --orch.batch_size 128

"""

_GRPO_INFER = """\
usage: surogate grpo-infer INFER.YAML [--key value ...]

Serve the model of a grpo run with vLLM, in a process or on a node of its own. orch.yaml names the server's address as
client.base_url. Dev endpoints of the server take weights without asking who sends them: keep it on a private network.

example:
  surogate grpo-infer infer.yaml --host 10.0.0.2 --port 8000

"""

_GRPO_ORCH = """\
usage: surogate grpo-orch ORCH.YAML [--key value ...]

Ask the servers for completions, reward them, and hand the batches of each step to `surogate grpo-train` through
output_dir.

example:
  surogate grpo-orch orch.yaml --client.base_url http://10.0.0.2:8000

"""

_GRPO_TRAIN = """\
usage: surogate grpo-train TRAIN.YAML [--key value ...]

Train on the batches that `surogate grpo-orch` hands out through output_dir, and leave the weights of each step there.

example:
  torchrun --nproc_per_node 4 -m surogate grpo-train train.yaml

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


_SUBMIT = """\
usage: surogate submit [sft|pt|fit|grpo] CFG.YAML [--nodes N] [--gpus-per-node G] [--key value ...] [--dry-run]

Run on a SLURM cluster: check the configuration, write a batch script and a copy of the configuration into
output_dir/slurm, and hand the script to sbatch. Without a verb the configuration says whether it is sft or pt. Options
for SLURM may stand in the YAML under `slurm:`; the command line wins. All other options go to the run. The job saves
and goes back into the queue ahead of its time limit, when it is preempted, and when a node fails.

  --dry-run    print the script, write and submit nothing

examples:
  surogate submit cfg.yaml --nodes 2 --gpus-per-node 8 --partition gpu --time 24:00:00 --dry-run
  surogate submit sft cfg.yaml --nodes 2 --gpus-per-node 8 --account research --learning_rate 1e-4
  surogate submit cfg.yaml --gpus-per-node 8 --container images/surogate.sif
  surogate submit grpo --train train.yaml --infer infer.yaml --orch orch.yaml --nodes 3 --generator-nodes 2
  surogate submit fit --config output/config.yaml --nodes 2 --gpus-per-node 8

"""

_SUBMIT_KEYS = """\
Options, with - or _; all keys of `slurm:` also as --slurm.key:
{options}

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
    if verb in _GRPO_PAGES:
        text, files = _GRPO_PAGES[verb]
        return text + _keys_of_files(files)
    if verb == "submit":
        return _SUBMIT + _keys_of_slurm()
    return {"fit": _FIT, "validate": _VALIDATE}.get(verb)


_TRAINING = {"sft": _SFT, "pt": _PT}
_GRPO_PAGES = {
    "grpo": (_GRPO, ("train", "infer", "orch")),
    "grpo-infer": (_GRPO_INFER, ("infer",)),
    "grpo-orch": (_GRPO_ORCH, ("orch",)),
    "grpo-train": (_GRPO_TRAIN, ("train",)),
}


def _keys(verb: str) -> str:
    from surogate.config.flat import GROUPS, SCHEMAS
    from surogate.config.parts import DatasetSpec

    groups = [_group(title, SCHEMAS[verb], schema) for title, schema in GROUPS.items()]
    return "\n".join([*groups, _group("A dataset", DatasetSpec, DatasetSpec)])


def _keys_of_slurm() -> str:
    from surogate.config.slurm import OPTIONS, SlurmSpec

    width = min(shutil.get_terminal_size().columns, 120)
    names = " ".join(f"--{key.replace('_', '-')}" for key in OPTIONS)
    options = textwrap.fill(names, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return _SUBMIT_KEYS.format(options=options) + _group("slurm:", SlurmSpec, SlurmSpec)


def _keys_of_files(files: tuple[str, ...]) -> str:
    from surogate.config.flat_grpo import ENTRIES_GRPO, GROUPS_GRPO, SCHEMAS_GRPO

    groups = [
        _group(f"{file}.yaml: {title}", SCHEMAS_GRPO[file], schema)
        for file in files
        for title, schema in GROUPS_GRPO[file].items()
    ]
    entries = ENTRIES_GRPO if "orch" in files else {}
    return "\n".join([*groups, *(_group(title, schema, schema) for title, schema in entries.items())])


def _group(title: str, schema: type, group: type) -> str:
    """List the keys of a group, with the defaults that a schema gives them."""
    from surogate.config.keys import expanded, show_default, type_name

    width = min(shutil.get_terminal_size().columns, 120)
    of_schema = expanded(schema)
    lines = [title, ""]
    for key in map(of_schema.__getitem__, expanded(group)):
        lines.append(f"  {key.name}  ({type_name(key.type)}; {show_default(key)})")
        lines += textwrap.wrap(key.summary, width, initial_indent="      ", subsequent_indent="      ")
    return "\n".join([*lines, ""])
