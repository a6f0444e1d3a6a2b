"""Numbers of rollouts, for the log: of a batch, and of the time between two batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, pstdev

from surogate.rl.clocks import ActivityClock, SamplingClock
from surogate.rl.types import Group, Rollout

COUNTS = ("rewards/failed", "prompts/unusable", "rollouts/too_old", "groups/without_signal_dropped")
"""What is counted in every step, also where it did not occur: a mean over steps is of all of them."""


class RolloutTally:
    """What is counted and timed between two batches.

    Attributes:
        sampling_clock: runs while anything is sampled, and counts the tokens of each answer.
        scoring_clock: runs while any group is made, its sampling included.
    """

    def __init__(self) -> None:
        self.sampling_clock, self.scoring_clock = SamplingClock(), ActivityClock()
        self._counts: dict[str, float] = {}

    def count(self, name: str, number: float) -> None:
        """Add to a count."""
        self._counts[name] = self._counts.get(name, 0) + number

    def take(self) -> dict[str, float]:
        """Return counts, and seconds by activity, since the last call."""
        counts, self._counts = self._counts, {}
        sampling = self.sampling_clock.take()
        scoring = max(0.0, self.scoring_clock.take() - sampling)
        num_tokens, tokens_per_second = self.sampling_clock.take_tokens()
        return {
            **dict.fromkeys(COUNTS, 0.0),
            **counts,
            "time/generate": sampling,
            "time/score": scoring,
            "tokens/generated": num_tokens,
            "speed/generated_tokens_per_second": tokens_per_second,
        }


def batch_metrics(groups: Sequence[Group], step: int) -> dict[str, float]:
    """Describe the rollouts of an optimizer step.

    Args:
        groups: with advantages.
        step: version of the policy that trains on them.

    Returns:
        Rewards (all, and of each environment), advantages, completion lengths in tokens, shares of truncated and
        filtered rollouts and of groups without signal, and staleness: how many versions older than the policy the
        sampled tokens are. Where it is known, also when the first group was started and the last one ended.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [rollout.reward for rollout in rollouts]
    lengths = [rollout.num_sampled for rollout in rollouts]
    advantages = [rollout.advantage for rollout in rollouts]
    ages = [step - v for r in rollouts for v, is_sampled in zip(r.versions, r.sampled, strict=True) if is_sampled]
    values = {
        "reward/mean": fmean(rewards),
        "reward/std": pstdev(rewards),
        "reward/min": min(rewards),
        "reward/max": max(rewards),
        "advantage/std": pstdev(advantages),
        "advantage/mean_absolute": fmean(map(abs, advantages)),
        "advantage/max": max(advantages),
        "groups/without_signal": fmean(not group.has_signal for group in groups),
        "completion/mean_len": fmean(lengths),
        "completion/max_len": max(lengths),
        "completion/truncated": fmean(rollout.is_truncated for rollout in rollouts),
        "completion/filtered": fmean(not rollout.trains for rollout in rollouts),
        "staleness/mean": fmean(ages) if ages else 0.0,
        "staleness/max": max(ages, default=0),
    }
    if all(group.ended for group in groups):
        values |= {
            "clock/generate_began": min(group.began for group in groups),
            "clock/generate_ended": max(group.ended for group in groups),
        }
    return values | _by_environment(rollouts)


def _by_environment(rollouts: Sequence[Rollout]) -> dict[str, float]:
    rewards: dict[str, list[float]] = defaultdict(list)
    metrics: dict[str, list[float]] = defaultdict(list)
    for rollout in rollouts:
        rewards[rollout.env].append(rollout.reward)
        for name, value in rollout.metrics.items():
            metrics[f"env/{rollout.env}/{name}"].append(value)
    values = {f"reward/{name}/mean": fmean(of_env) for name, of_env in rewards.items()}
    return values | {name: fmean(of_env) for name, of_env in metrics.items()}
