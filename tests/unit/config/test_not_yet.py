"""The public contract: every key is honoured or rejected by name, and what asks for nothing is accepted."""

from __future__ import annotations

import pytest

from surogate.config.flat import SftConfig
from surogate.config.flat_grpo import SCHEMAS_GRPO
from surogate.config.keys import expanded, keys_of
from surogate.config.not_yet import ALIASES, NOT_YET, NOT_YET_PATTERNS, ROWS, SYNONYMS, VALUES_NOT_YET
from surogate.config.not_yet_grpo import CONTRACTS_GRPO, NOT_YET_GRPO, VALUES_NOT_YET_GRPO

CONTRACT = """
run_name output_dir checkpoint_dir resume_from_checkpoint save_steps save_total_limit num_epochs max_steps eval_steps
logging_steps train_seed eval_seed hub_token model model_type from_scratch sequence_len max_model_len rope_scaling
torch_dtype model_dtype master_dtype matmul_dtype gradient_dtype attn_implementation lora freeze_modules lora_rank
lora_alpha lora_dropout lora_target_modules lora_dtype use_rslora use_dora init_lora_weights modules_to_save
adapter_path adapter_init_mode merge_adapter train_router qlora_bnb qlora_fp8 qlora_fp4 qlora_bnb_block_size
qlora_bnb_double_quant qlora_block_size qlora_four_over_six skip_quant_first_layers skip_quant_last_layers recipe
fp8_amax_history fp8_amax_compute_algo fp8_margin fp4_backend no_fp4_stochastic_rounding learning_rate optimizer
lr_scheduler_type warmup_ratio warmup_steps cooldown_steps final_lr_fraction min_lr_ratio weight_decay max_grad_norm
adamw_beta1 adamw_beta2 adamw_epsilon normuon_momentum normuon_beta2 normuon_cautious_wd per_device_train_batch_size
gradient_accumulation_steps recompute lmhead_chunks long_context sequence_chunks attn_bwd_chunks auto_lr_reduction
early_stop epoch_adjustment datasets validation_datasets validation_split_ratio sample_packing dataloader_num_workers
max_bad_row_fraction truncation_strategy max_length use_chat_template template system response_prefix loss_scale
padding_free padding_side gpus zero_level distributed.num_nodes distributed.gpus_per_node use_cuda_graphs
torch_compile report_to wandb_project wandb_name wandb_group wandb_tags wandb_mode log_file log_gpu_util
debug_time_breakdown debug_memory_breakdown cpu_training offload_optimizer persistent_quants use_zero_copy
shard_weights memcpy_all_gather parallelism ep_size distillation.teacher train_vision aim_repo loss.ratio_type
noise_scheduler.enabled max_async_level weight_sync transport_type weight_broadcast_type
"""
"""Every key of the contract that a configuration for sft may hold; one example of each family."""

CONTRACT_GRPO = {
    "train": """
loss.ratio_type loss.adv_tau loss.kl_tau loss.teacher_tau loss.token_mask_low loss.token_mask_high loss.geo_mask_low
loss.geo_mask_high loss.sequence_mask_low loss.sequence_mask_high loss.ratio_clip loss.type noise_scheduler.enabled
noise_scheduler.sigma_start noise_scheduler.sigma_end noise_scheduler.num_stages max_async_level weight_sync
transport_type weight_broadcast_type
""",
    "infer": """
model host port dtype max_model_len max_num_seqs kv_cache_dtype enforce_eager trust_remote_code tp dp enable_lora
max_lora_rank max_loras gpu_memory_utilization enable_prefix_caching seed vllm
""",
    "orch": """
model.name model.lora_adapter env batch_size rollouts_per_example seq_len max_steps max_async_level max_off_policy_steps
oversampling_factor seed output_dir sampling.max_tokens sampling.temperature sampling.temp_scheduler sampling.min_tokens
sampling.repetition_penalty sampling.seed sampling.top_p sampling.top_k buffer.online_difficulty_filtering
buffer.easy_threshold buffer.hard_threshold advantage.type advantage.import_path advantage.kwargs
advantage.length_weighted_mean filters eval.env eval.interval eval.num_examples eval.rollouts_per_example
eval.eval_base_model ckpt.interval ckpt.keep_last report_to client.base_url client.timeout client.api_key_var
teacher_model ruler.enabled
""",
}
"""Every key of the contract that the three files of grpo add."""

ACTIVE = {
    "use_cuda_graphs: true": "set it to false",
    "torch_compile: true": "set it to false",
    "padding_side: left": "Remove the key",
    "long_context: true": "later release",
    "offload_optimizer: true": "later release",
    "distillation: {teacher: big}": "later release",
    "loss: {type: grpo}": "surogate grpo",
    "weight_sync: auto": "surogate grpo",
}

INACTIVE = [
    "qlora_bnb: false",
    "qlora_bnb_block_size: 64",
    "qlora_four_over_six: true",
    "recipe: bf16",
    "lora: true",
    "zero_level: 1",
    "gpus: 1",
    "distributed: {num_nodes: 1, gpus_per_node: 0}",
    "use_cuda_graphs: false",
    "freeze_modules: []",
    "merge_adapter: false",
    "from_scratch: false",
    "fp8_amax_history: 16",
    "no_fp4_stochastic_rounding: false",
    "log_file: null",
    "padding_side: right",
    "sequence_chunks: 1",
    "offload_optimizer: false",
    "ep_size: 1",
]


def test_every_key_of_the_contract_is_honoured_or_rejected_by_name():
    honoured = {*expanded(SftConfig), *SYNONYMS}
    assert [key for key in CONTRACT.split() if key not in honoured and not ROWS.not_yet(key, "set")] == []


@pytest.mark.parametrize("file", SCHEMAS_GRPO)
def test_every_key_of_the_contract_for_grpo_is_honoured_or_rejected_by_name(file):
    honoured = expanded(SCHEMAS_GRPO[file])
    contract = CONTRACTS_GRPO[file]
    assert [key for key in CONTRACT_GRPO[file].split() if key not in honoured and not contract.not_yet(key, 9)] == []


def test_every_key_of_the_contract_for_training_is_honoured_or_rejected_in_train_yaml():
    contract = CONTRACTS_GRPO["train"]
    honoured = {*expanded(SCHEMAS_GRPO["train"]), *contract.synonyms}
    assert [key for key in CONTRACT.split() if key not in honoured and not contract.not_yet(key, "set")] == []


@pytest.mark.parametrize("file", SCHEMAS_GRPO)
def test_no_key_of_grpo_is_both_honoured_and_rejected_and_hints_lead_to_keys(file):
    honoured, contract = expanded(SCHEMAS_GRPO[file]), CONTRACTS_GRPO[file]
    assert not honoured.keys() & {*contract.later, *contract.aliases, *contract.elsewhere}
    targets = [target.split(":")[0] for text in contract.aliases.values() for target in text.split(" and ")]
    assert [target for target in targets if target not in honoured] == []


def test_no_key_is_both_honoured_and_rejected():
    assert not {*keys_of(SftConfig), *SYNONYMS} & {*NOT_YET, *ALIASES}


def test_second_names_and_hints_lead_to_keys_that_exist():
    known = {*keys_of(SftConfig), *NOT_YET}
    assert set(SYNONYMS.values()) <= known
    assert {target.split(":")[0] for target in ALIASES.values()} <= known


@pytest.mark.parametrize(("line", "instead"), ACTIVE.items())
def test_a_key_that_has_not_landed_is_rejected_with_what_to_use_instead(problems, line, instead):
    key = line.split(":")[0]
    first = problems(line + "\n")[0]
    assert first.startswith(f"cfg.yaml:4: {key}")
    assert "is refused: " in first
    assert instead in first


@pytest.mark.parametrize("line", INACTIVE)
def test_the_value_that_asks_for_nothing_is_accepted(read, line):
    assert read(line + "\n")


def test_the_value_that_asks_for_nothing_is_accepted_on_the_command_line_too(read, problems):
    assert read("", "--long_context", "false", "--sequence_chunks", "1")
    assert "long_context is refused" in problems("", "--long_context", "true")[0]


def test_a_value_that_has_not_landed_is_rejected(problems):
    assert problems("init_lora_weights: eva\n")[0].startswith("cfg.yaml:4: init_lora_weights: eva is refused: ")
    assert "Use true, gaussian" in problems("init_lora_weights: eva\n")[0]


def test_a_dataset_type_of_another_verb_is_rejected(problems):
    found = problems(whole="model: m\ndatasets:\n  - path: rows.jsonl\n    type: preference\n")
    assert found[0].startswith("cfg.yaml:4: datasets[0].type: preference is refused: ")


def test_every_rejection_says_what_to_do():
    rules = [*NOT_YET.values(), *NOT_YET_PATTERNS.values()]
    rules += [rule for of_file in NOT_YET_GRPO.values() for rule in of_file.values()]
    sentences = {rule.sentence for rule in rules} | {
        text for values in [*VALUES_NOT_YET.values(), *VALUES_NOT_YET_GRPO.values()] for text in values.values()
    }
    verbs = ("Remove", "Use", "Set", "Train", "Start", "Redirect", "already", "loads with")
    assert [text for text in sentences if not any(verb in text for verb in verbs)] == []


def test_true_is_not_mistaken_for_one():
    assert ROWS.not_yet("sequence_chunks", True)
