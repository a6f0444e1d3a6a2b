"""The noise of QeRL (arXiv:2510.11696): the generator explores with perturbed norm weights."""

from __future__ import annotations

from surogate.config.parts_grpo import NoiseSpec


def noise_sigma(spec: NoiseSpec, step: int, max_steps: int) -> float:
    """Return the standard deviation of the noise on the generator's norm weights.

    The run is cut into num_stages stages of equal length; the first has no noise, then it falls exponentially from
    sigma_start to sigma_end (equation 8 of the paper, whose K stages are the noisy ones).

    Args:
        spec: of the noise.
        step: optimizer steps behind the policy.
        max_steps: of the run.
    """
    stage = min(step * spec.num_stages // max(1, max_steps), spec.num_stages - 1)
    if not spec.enabled or stage == 0:
        return 0.0
    if spec.num_stages == 2:
        return spec.sigma_start
    done = (stage - 1) / (spec.num_stages - 2)
    return float(spec.sigma_start * (spec.sigma_end / spec.sigma_start) ** done)
