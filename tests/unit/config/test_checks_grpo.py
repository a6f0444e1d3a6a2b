"""What cannot run within one of the three files: each a sentence at the line of a key that is in it."""

from __future__ import annotations

import pytest

TRAIN = [
    ("lora: false", "lora: false is refused: reinforcement learning trains an adapter on a frozen base"),
    ("from_scratch: true", "from_scratch is refused: a reward can only improve a model that writes already"),
    ("freeze_modules: [lm_head]", "freeze_modules is refused: under the adapter the whole base is frozen anyway"),
    ("master_dtype: fp32", "master_dtype is refused: an adapter trains in lora_dtype"),
    ("lora_dropout: 0.1", "lora_dropout must be 0 in reinforcement learning"),
    ("qlora_bnb: true\nqlora_fp8: true", "qlora_bnb and qlora_fp8 exclude each other"),
    ("fp8_margin: 1", "fp8_margin needs recipe: fp8_hybrid"),
    ("tokenizer: ./gone", "tokenizer: './gone' does not exist"),
    ("max_model_len: 512", "max_model_len 512 is less than sequence_len 1024"),
    ("warmup_steps: 10", "warmup_steps 10 and cooldown_steps 0 do not fit into max_steps 9"),
    ("loss: {type: dapo, token_mask_low: 0.5}", "loss.token_mask_low belongs to type aipo, and this run has loss.type"),
    ("loss: {type: cispo, ratio_type: sequence}", "loss.ratio_type belongs to type aipo, and this run has loss.type"),
    ("loss: {clip_low: 0.2}", "loss.clip_low belongs to the types other than aipo, and this run has loss.type: aipo"),
    ("loss: {token_mask_low: 9}", "loss.token_mask_low 9.0 is not below loss.token_mask_high 8.0, so nothing would"),
    ("loss: {geo_mask_high: 0.5}", "leave out the ratio 1, that of a policy that has not moved"),
    ("loss: {sequence_mask_low: 2}", "leave out the ratio 1, that of a policy that has not moved"),
    ("loss: {type: grpo, clip_low: 1.5}", "loss.clip_low 1.5 is more than 1, and no ratio is below 0."),
    ("noise_scheduler: {sigma_end: 0.1}", "noise_scheduler.sigma_end needs noise_scheduler.enabled: true."),
    ("noise_scheduler: {enabled: true, sigma_end: 0.1}", "is more than sigma_start 0.05, and the noise decays"),
    ("noise_scheduler: {enabled: true, num_stages: 1}", "num_stages must be 2 or more: the first has no noise."),
]

INFER = [
    (
        "max_lora_rank: 24",
        "max_lora_rank must be one of 1, 8, 16, 32, 64, 128, 256, 320, 512, as vLLM wants it, got 24",
    ),
    ("vllm: {max_num_seqs: 8}", "vllm.max_num_seqs is set by max_num_seqs. Use that."),
    ("vllm: {tensor_parallel_size: 8}", "vllm.tensor_parallel_size is set by tp. Use that."),
    ("vllm: {logprobs_mode: raw_logprobs}", "vllm.logprobs_mode cannot be chosen: probabilities must be"),
    ("vllm: {async_scheduling: true}", "vllm.async_scheduling cannot be chosen: tokens would be labelled"),
    ("vllm: {speculative_config: {method: ngram}}", "vllm.speculative_config cannot be chosen: a draft would keep"),
    ("vllm: {quantization: fp8}", "vllm.quantization cannot be chosen: the engine would sample from rounded"),
    ("vllm: {logits_processors: [a.b]}", "vllm.logits_processors cannot be chosen: tokens would come from another"),
    ("vllm: {load_format: dummy}", "vllm.load_format: dummy is refused: the engine would make its weights up"),
    (
        "vllm: {block-size: 16}",
        "vllm.block-size is no argument of the engine of the vLLM that is installed. Did you mean block_size?",
    ),
    ("vllm: {zzz: 1}", "vllm.zzz is no argument of the engine of the vLLM that is installed. Remove it."),
]

ORCH = [
    ("env: []", "env is empty. List at least one environment."),
    ("env: [{name: sums}]", "env[0].id is empty. Give the id of an environment."),
    (
        "env: [{id: aritmetic}]",
        "env[0].id 'aritmetic' is not an environment. Did you mean arithmetic? Known are reverse-text, arithmetic, "
        "math, code, guess-number, reasoning-gym/<task>, verifiers:<taskset>, <file>.py:<name>.",
    ),
    ("env: [{id: 'gone.py:score'}]", "env[0].id 'gone.py:score' names the file gone.py, which does not exist."),
    ("env: [{id: 'rewards.py:'}]", "env[0].id 'rewards.py:' names no function: '' is not a name."),
    ("env: [{id: reasoning-gym/}]", "env[0].id 'reasoning-gym/' is not an environment."),
    ("env: [{id: math}, {id: math}]", "env[1] is called math, as env[0] is. Give each its own name"),
    ("rollouts_per_example: 1", "rollouts_per_example must be 2 or more: an advantage compares the rollouts"),
    ("batch_size: 100", "batch_size 100 is not a multiple of rollouts_per_example 16, and a step has whole groups."),
    ("batch_size: 8", "a step has whole groups. Use 16."),
    ("max_async_level: 9", "max_off_policy_steps 8 is less than max_async_level 9"),
    (
        "advantage: {type: custom, import_path: 'gone.py:ranks'}",
        "advantage.import_path 'gone.py:ranks': there is no file 'gone.py'",
    ),
    (
        "advantage: {type: custom, import_path: 'no_such_package.module:ranks'}",
        "advantage.import_path 'no_such_package.module:ranks': there is no package no_such_package; install it",
    ),
    ("sampling: {top_p: 0.9}", "sampling.top_p leaves out unlikely tokens, so rollouts would come from another"),
    ("sampling: {top_k: 50}", "sampling.top_k leaves out unlikely tokens"),
    ("sampling: {repetition_penalty: 1.1}", "sampling.repetition_penalty changes probabilities by what was said"),
    ("sampling: {min_tokens: 4}", "sampling.min_tokens forbids the end of text for a while"),
    ("sampling: {temperature: 0}", "sampling.temperature must be a number above 0, got 0."),
    (
        "sampling: {chat_template_kwargs: {add_generation_prompt: false}}",
        "sampling.chat_template_kwargs has add_generation_prompt, which the run sets itself.",
    ),
    (
        "eval: {env: [{id: math}], rollouts_per_example: 4, temperature: 0}",
        "eval.rollouts_per_example 4 needs eval.temperature above 0: at 0 all completions of a prompt are the same",
    ),
    (
        "sampling: {temperature: 1, temp_scheduler: {start: 1, end: 0.7, steps: 9}}",
        "sampling.temperature and sampling.temp_scheduler are both set. Keep one of them.",
    ),
    ("sampling: {temp_scheduler: {start: 1, stop: 1}}", "sampling.temp_scheduler.stop is not a key."),
    ("sampling: {temp_scheduler: {start: 1}}", "sampling.temp_scheduler lacks end and steps."),
    ("sampling: {temp_scheduler: {start: 0, end: 1, steps: 1}}", "temp_scheduler.start must be a number above 0, got"),
    ("sampling: {temp_scheduler: {start: 1, end: 1, steps: 0}}", "temp_scheduler.steps must be a whole number above 0"),
    ("sampling: {temp_scheduler: {type: exp, start: 1, end: 1, steps: 1}}", "type must be linear or cosine, got"),
    ("buffer: {easy_threshold: 0.2, hard_threshold: 0.3}", "buffer.hard_threshold 0.3 is not below"),
    ("buffer: {easy_fraction: 0.2}", "buffer.easy_fraction needs buffer.easy_threshold."),
    ("buffer: {hard_fraction: 2}", "buffer.hard_fraction must be a number from 0 to 1, got 2."),
    ("advantage: {type: custom}", "advantage.type: custom needs advantage.import_path, the function to call."),
    ("advantage: {type: custom, import_path: mine.py}", "must be package.module:function or file.py:function"),
    ("advantage: {type: custom, import_path: 'm:f', length_weighted_mean: true}", "length_weighted_mean has no"),
    ("advantage: {import_path: 'm:f'}", "advantage.import_path needs advantage.type: custom; this run has default."),
    ("advantage: {kwargs: {a: 1}}", "advantage.kwargs needs advantage.type: custom"),
    ("filters: [{span: 4}]", "filters[0].span belongs to type: gibberish, but this entry has type: repetition."),
    ("filters: [{type: gibberish, window: 4}]", "filters[0].window belongs to type: repetition"),
    ("filters: [{type: gibberish, logprob_threshold: 1}]", "logprob_threshold must be below 0, as log-probabilities"),
    ("filters: [{min_repeats: 1}]", "filters[0].min_repeats must be 2 or more"),
    ("filters: [{}, {}]", "filters[1] repeats the type of filters[0]. Keep one of them."),
    ("eval: {interval: 5}", "eval.interval needs eval.env, the environments to evaluate on."),
    ("eval: {env: [{id: nonsense}]}", "eval.env[0].id 'nonsense' is not an environment."),
    ("eval: {env: [{id: math, weight: 2}]}", "eval.env[0].weight has no meaning"),
    ("client: {base_url: 'localhost:8000'}", "client.base_url[0] must start with http:// or https://"),
    ("client: {timeout: 5}", "client.timeout needs client.base_url, the server to ask."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "lines", "sentence"),
    [(file, *case) for file, cases in {"train": TRAIN, "infer": INFER, "orch": ORCH}.items() for case in cases],
)
def test_a_contradiction_is_told_at_the_line_of_a_key_that_is_in_it(problems_of, file, lines, sentence):
    whole = {"orch": lines + "\nmax_steps: 9\n"} if lines.startswith("env:") else None
    found = problems_of(whole=whole) if whole else problems_of(**{file: lines})
    matching = [problem for problem in found if sentence in problem]
    assert len(matching) == 1, found
    assert matching[0].startswith(tuple(f"{file}.yaml:{line}: " for line in range(1, 5)))


ACCEPTED = {
    "train": [
        "loss: {type: gspo, clip_low: 3e-4, clip_high: 4e-4}",
        "loss: {type: cispo, clip_low: 1.0, kl_tau: 0.01}",
        "loss: {type: dapo, token_mask_low: 0.125}",
        "loss: {ratio_type: sequence, token_mask_low: 0.5}",
        "noise_scheduler: {enabled: true, sigma_start: 0.1}",
        "noise_scheduler: {num_stages: 10}",
        "lora_dropout: 0",
        "qlora_bnb: true",
        "use_dora: true",
        "warmup_steps: 9",
        "max_async_level: 2",
    ],
    "infer": ["max_lora_rank: 32", "vllm: {block_size: 16, load_format: runai_streamer}", "dtype: bf16", "tp: 2"],
    "orch": [
        "batch_size: 32",
        "max_off_policy_steps: 0",
        "sampling: {top_p: 1.0, top_k: 0, temperature: 0.6}",
        "sampling: {temp_scheduler: {type: cosine, start: 1.0, end: 0.7, steps: 100}}",
        "buffer: {easy_threshold: 0.9, hard_threshold: 0.1, easy_fraction: 0.5}",
        "advantage: {type: custom, import_path: 'rewards.py:advantage', kwargs: {a: 1}}",
        "advantage: {type: std, length_weighted_mean: true}",
        "filters: [{type: gibberish, span: 4}, {type: repetition, enforce: true}]",
        "eval: {env: [{id: math}, {id: math, name: hard}], interval: 5, rollouts_per_example: 1}",
        "client: {base_url: https://host/v1, timeout: 5, api_key_var: KEY}",
        "model: {lora_adapter: default}",
    ],
}


@pytest.mark.parametrize(("file", "lines"), [(file, lines) for file, cases in ACCEPTED.items() for lines in cases])
def test_what_can_run_is_accepted(read_files, tmp_path, monkeypatch, file, lines):
    (tmp_path / "rewards.py").write_text("def advantage(rewards_NG, lengths_NG): ...\n")
    monkeypatch.chdir(tmp_path)
    assert read_files(**{file: lines})


@pytest.mark.parametrize(
    "env_id",
    ["reverse-text", "arithmetic", "math", "code", "guess-number", "reasoning-gym/chain_sum", "rewards.py:score"],
)  # fmt: skip
def test_every_form_of_an_environments_id_is_known(read_files, tmp_path, env_id):
    (tmp_path / "rewards.py").touch()
    assert read_files(whole={"orch": f"env: {{id: '{env_id}'}}\nmax_steps: 1\n"})


def test_nothing_is_said_twice_about_a_key_that_is_wrong_already(problems_of):
    assert problems_of(train="loss: {token_mask_low: many, token_mask_high: 0.1}") == [
        "train.yaml:2: loss.token_mask_low must be a number of 0 or more, got 'many'."
    ]
