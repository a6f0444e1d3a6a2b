"""The metrics that only GRPO runs have; see table.py. `rl/` stands in front of what its rollouts say."""

from __future__ import annotations

from surogate.metrics.table import Metric, MetricGroup

REWARD = MetricGroup(
    "rl-reward",
    "Rewards and groups",
    (
        Metric(
            "rl/reward/mean", "", "mean reward of the batch",
            "it does not rise in 50 steps; it jumps: read the rollouts",
        ),
        Metric("rl/reward/std", "", "of all rewards of the batch", "near 0: nothing to learn from"),
        Metric("rl/reward/min", "", "the smallest"),
        Metric("rl/reward/max", "", "the largest"),
        Metric("rl/reward/<env>/mean", "", "of one environment", "one rises, another falls: change `weight`"),
        Metric("rl/env/<env>/<name>", "", "further numbers of an environment, such as `num_turns`"),
        Metric(
            "rl/eval/<env>/reward", "", "held-out reward, mean over examples, under the step whose weights it measured",
            "it falls while the training reward rises: the reward is being gamed or learnt by heart",
        ),
        Metric(
            "rl/eval/<env>/standard_error", "", "of that mean, over examples; twice it is a 95 % interval",
            "wider than the gain: more `num_examples`",
        ),
        Metric("rl/eval/<env>/mean_len", "tokens", "sampled in an answer"),
        Metric("rl/eval/<env>/truncated", "share", "cut off at the longest length", "above 0.1"),
        Metric("rl/eval/<env>/failed", "examples", "left out since they could not be answered or scored", "above 0"),
        Metric("rl/advantage/std", "", "of the advantages", "near 0: the gradient vanishes"),
        Metric("rl/advantage/mean_absolute", "", "mean of their absolute values", "near 0"),
        Metric("rl/advantage/max", "", "the largest"),
        Metric(
            "rl/groups/without_signal", "share", "groups whose rewards are all the same",
            "above 0.5: most of the work teaches nothing; see `surogate env-check`",
        ),
        Metric(
            "rl/groups/without_signal_dropped", "groups", "such groups, dropped (`online_difficulty_filtering`)",
            "many times the groups of a step",
        ),
        Metric("rl/rewards/failed", "groups", "left out since a reward failed", "above 0: the log says why"),
        Metric(
            "rl/prompts/unusable", "prompts", "that leave no room for an answer",
            "above 0: shorter prompts, or a larger `seq_len`",
        ),
    ),
)  # fmt: skip

COMPLETIONS = MetricGroup(
    "rl-completions",
    "Completions and staleness",
    (
        Metric(
            "rl/completion/mean_len", "tokens", "sampled in a completion",
            "length rises without reward; it falls to a few tokens",
        ),
        Metric("rl/completion/max_len", "tokens", "sampled in the longest one"),
        Metric(
            "rl/completion/truncated", "share", "cut off at the longest length",
            "above 0.1: raise `max_tokens`, or the reward favours endless text",
        ),
        Metric("rl/completion/filtered", "share", "that a filter keeps out of the loss", "it rises"),
        Metric("rl/filters/repetition", "completions", "found to repeat themselves, kept or not", "it rises"),
        Metric(
            "rl/filters/gibberish", "completions", "found to be gibberish, kept or not",
            "it rises: the policy falls apart",
        ),
        Metric(
            "rl/tokens/generated", "tokens", "sampled since the last batch, also those that never train",
            "far above `rl/sampled_tokens`: dropped groups",
        ),
        Metric("rl/sampled_tokens", "tokens", "in the loss; those of rollouts without a gradient are not among them"),
        Metric(
            "rl/staleness/mean", "versions", "between the policy that sampled and the one that trains",
            "above `max_async_level`",
        ),
        Metric("rl/staleness/max", "versions", "the largest"),
        Metric(
            "rl/rollouts/too_old", "rollouts", "thrown away as older than `max_off_policy_steps`",
            "above 0 step after step: lower the level",
        ),
    ),
)  # fmt: skip

UPDATE = MetricGroup(
    "rl-update",
    "The update",
    (
        Metric("rl/importance_ratio/mean", "", "mean of r", "off 1 by more than 0.01 on-policy, 0.1 ahead"),
        Metric("rl/importance_ratio/p01", "", "1 % of the tokens have a smaller r"),
        Metric("rl/importance_ratio/p50", "", "half of them"),
        Metric(
            "rl/importance_ratio/p99", "", "99 % of them",
            "above 2: the learning rate is too high for `max_async_level`",
        ),
        Metric("rl/importance_ratio/max", "", "the largest r"),
        Metric(
            "rl/logprob_difference/mean", "nats", "mean of \\|trainer - generator\\|",
            "on-policy: above the limits of the parity probe",
        ),
        Metric("rl/logprob_difference/max", "nats", "the largest", "as the mean"),
        Metric(
            "rl/generator_kl", "nats", "between generator and trainer, mean of `r - log r - 1`",
            "it grows from step to step; above 0.1",
        ),
        Metric("rl/generator_kl_masked", "nats", "the same over masked tokens"),
        Metric(
            "rl/entropy", "nats", "of the distributions at sampled tokens",
            "it falls to 0: no exploration is left. It rises without end: the policy falls apart",
        ),
        Metric(
            "rl/masked_fraction/any", "share", "of tokens that `aipo` left out", "above 0 on-policy; above 0.1 ahead",
        ),
        *(
            Metric(f"rl/masked_fraction/{mask}", "share", f"by the mask {mask}; several may hold at once", worry)
            for mask, worry in (
                ("token_low", "which one says what has drifted: tokens or whole rollouts"), ("token_high", ""),
                ("geo_low", ""), ("geo_high", ""), ("sequence_low", ""), ("sequence_high", ""),
            )
        ),
        Metric("rl/clipped_fraction/low", "share", "of tokens whose ratio was clipped below", "above 0 on-policy"),
        Metric(
            "rl/clipped_fraction/high", "share", "clipped above; `aipo` has only this one",
            "above 0 on-policy; above 0.2 ahead (`gspo` clips more by design)",
        ),
        Metric(
            "rl/parity/mean_difference", "nats", "engine against trainer on one sequence after the step",
            "near the limits; with noise it is large on purpose",
        ),
        Metric("rl/parity/max_difference", "nats", "the largest of its tokens", "as the mean"),
        Metric("rl/parity/kl", "nats", "between them", "as the mean"),
        Metric(
            "rl/parity/sampled_difference", "nats",
            "mean \\|trainer - generator\\| of the sampled tokens that came from the policy that trains",
            "near the limits",
        ),
    ),
)  # fmt: skip

TIMES = MetricGroup(
    "rl-time",
    "Where the time goes",
    (
        Metric(
            "speed/generate_seconds", "seconds", "in which something was sampled",
            "ahead of training it overlaps with the others",
        ),
        Metric(
            "speed/score_seconds", "seconds", "in which groups were under way and nothing was sampled: rewards",
            "above a tenth of `speed/generate_seconds`: a slow reward",
        ),
        Metric(
            "speed/wait_for_rollouts_seconds", "seconds", "that training waited for the batch",
            "on-policy it is generation; ahead, it should be near 0",
        ),
        Metric("speed/train_seconds", "seconds", "of the update"),
        Metric(
            "speed/sync_seconds", "seconds", "of handing over weights, with the parity check",
            "above a tenth of `speed/step_seconds`",
        ),
        Metric("speed/evaluate_seconds", "seconds", "of evaluation"),
        Metric("speed/generated_tokens_per_second", "tokens/s", "while anything is sampled"),
        Metric("speed/trained_tokens_per_second", "tokens/s", "of the updates, prompts included"),
        Metric(
            "rl/clock/generate_began", "Unix time", "when the first group of the batch was started",
            "ahead, it should lie before `rl/clock/train_ended` of the step before",
        ),
        Metric("rl/clock/generate_ended", "Unix time", "when its last group ended"),
        Metric("rl/clock/train_began", "Unix time", "when the update began"),
        Metric("rl/clock/train_ended", "Unix time", "when it ended"),
    ),
)  # fmt: skip
