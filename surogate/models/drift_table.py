"""The ways to merge an adapter that trained on a quantised base, side by side: which is best, and which is too bad.

What is not here: measuring (drift.py) and merging (stored_merge.py). The one idea: **a drift is judged beside what the
adapter does.** The base without the adapter stands in every table, since a tenth of a nat is much where the adapter
moved the model by half a nat, and nothing where it moved it by ten.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from surogate.models.drift import Drift

Target = Literal["original", "dequantized", "requantized"]
TARGETS: tuple[Target, ...] = ("original", "dequantized", "requantized")

KL_LIMIT = 0.1
"""Of the KL divergence that the base has without its adapter: past a tenth of the way back another model is served than
the one that was validated. Measured with the quickstart's adapter on SmolLM2-135M in NF4: 0.02 into the original
weights, 0.006 requantised from them, 0.9 requantised from dequantised weights, where the update rounds away; in NVFP4
0.02 and 0.01."""

KL_CEILING = 0.5
"""The same for a target that predicts the rows as well as what trained: past half of the way back it is rather the base
that is served than the adapter. One that predicts them better for sure may be anywhere."""

LOSS_LIMIT = 0.1
"""Of what the adapter takes off the held-out loss: a merge that gives back more has undone training."""

LOSS_FLOOR = 0.01
"""Nats that a merge may lose in any case, 1 % of perplexity: quantising the base costs as much, and nobody sees it."""

LOSS_CEILING = 0.1
"""Nats that no merge may lose, 10 % of perplexity, even where the adapter took off ten by teaching how to answer."""

NUM_ERRORS = 2.0
"""Standard errors that a difference of losses must have to count as one."""

_MEANINGS: dict[str, str] = {
    "original": "into the unquantised weights",
    "dequantized": "into the weights that trained, dequantised",
    "requantized": "and quantised again",
}


@dataclass(frozen=True, kw_only=True)
class DriftTable:
    """How far each target is from what trained: the quantised base with the adapter on top, unmerged.

    Attributes:
        storage: what the base was stored in when the adapter trained.
        dtype: of the merged weights.
        origin: which held-out rows.
        num_rows: of them.
        num_positions: supervised positions in them that were compared.
        loss: of what trained, in nats.
        without_adapter: the base alone, as a yardstick.
        targets: measured ones.
        impossible: why the others could not be made.
    """

    storage: str
    dtype: str
    origin: str
    num_rows: int
    num_positions: int
    loss: float
    without_adapter: Drift
    targets: dict[Target, Drift]
    impossible: dict[Target, str] = field(default_factory=dict)

    def refusal(self, target: Target) -> str | None:
        """Return what is wrong with a target that should not be served, or None.

        A model that predicts the rows no worse than what trained may be further from it: where the base suffers from
        its few bits, the original weights are far away and better.
        """
        drift, base = self.targets[target], self.without_adapter
        if drift.loss_change < -NUM_ERRORS * drift.loss_error:
            return None
        limit = min(max(LOSS_LIMIT * base.loss_change, LOSS_FLOOR), LOSS_CEILING)
        if drift.loss_change > limit and drift.loss_change > NUM_ERRORS * drift.loss_error:
            return (
                f"the loss rises by {drift.loss_change:.3f} nats, of {max(base.loss_change, 0):.3f} that the adapter "
                f"takes off (limit {limit:.3f})"
            )
        kl_limit = KL_LIMIT if drift.loss_change > 0 else KL_CEILING
        if drift.mean_kl > kl_limit * base.mean_kl:
            return (
                f"its KL from what trained is {drift.mean_kl / max(base.mean_kl, 1e-12):.0%} of the base's without the "
                f"adapter (limit {kl_limit:.0%})"
            )
        return None

    @property
    def recommended(self) -> Target:
        """The full-precision target that is nearest to what trained, unless the original weights do better."""
        plain: list[Target] = [target for target in ("dequantized", "original") if target in self.targets]
        if len(plain) == 2 and self._original_is_better():
            return "original"
        return min(plain, key=lambda target: self.targets[target].mean_kl)

    def reason(self) -> str:
        """Say why the recommended target is."""
        chosen = self.recommended
        if chosen == "original":
            gain = self.targets["dequantized"].loss - self.targets["original"].loss if len(self.targets) > 1 else 0.0
            return f"its loss is {gain:.4f} nats lower than that of the dequantised weights"
        text = f"it is what trained, to within {self.targets[chosen].mean_kl:.1e} nats"
        if "original" in self.targets:
            text += ", and on these rows the original weights do no better"
        return text

    def _original_is_better(self) -> bool:
        original, dequantized = self.targets["original"], self.targets["dequantized"]
        error = (original.loss_error**2 + dequantized.loss_error**2) ** 0.5
        return original.loss + NUM_ERRORS * error < dequantized.loss

    def __str__(self) -> str:
        lines = [
            f"Drift from what trained, the base in {self.storage} with the adapter on top, on {self.num_rows} "
            f"{self.origin} ({self.num_positions} supervised tokens):",
            f"  {'':<15}{'mean KL':>9}{'top-1':>8}{'loss':>9}{'change':>9}",
            f"  {'what trained':<15}{'':>9}{'':>8}{self.loss:>9.4f}",
            _line("base alone", self.without_adapter),
        ]
        for target in TARGETS:
            if target in self.targets:
                lines.append(f"{_line(target, self.targets[target])}   {_MEANINGS[target]}")
                if refusal := self.refusal(target):
                    lines.append(f"  {'':<15}too far: {refusal}")
            elif target in self.impossible:
                lines.append(f"  {target:<15}not possible: {self.impossible[target]}")
        lines.append(f"Recommended: {self.recommended}, because {self.reason()}.")
        return "\n".join(lines)


def _line(name: str, drift: Drift) -> str:
    change = f"{drift.loss_change:+.4f} ± {drift.loss_error:.4f}"
    return f"  {name:<15}{drift.mean_kl:>9.2g}{drift.top1_agreement:>8.1%}{drift.loss:>9.4f} {change:>17}"
