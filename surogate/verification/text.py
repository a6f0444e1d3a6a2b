"""The reports of verifications as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from surogate.verification.invariance import TOLERANCES, LossReport
from surogate.verification.resume import ResumeReport, Steps


def resume_text(report: ResumeReport) -> str:
    """Write what came out of `surogate verify resume`."""
    return "\n".join(_resume_lines(report)) + "\n"


def _resume_lines(report: ResumeReport) -> Iterator[str]:
    yield f"{'step':>6}  {'loss in one go':>16}  {'with a stop':>16}  {'difference':>10}  {'gradient norm':>13}"
    for step in sorted(report.whole.values.keys() | report.resumed.values.keys()):
        yield _step(report.whole, report.resumed, step)
        if step == report.stopped_after:
            yield f"{'':>6}  {'':>16}  {'-- new process --':>16}"
    yield ""
    state = report.comparison.state
    if state.is_none:
        yield f"Weights, optimizer and data position: {state.num_tensors} tensors, equal bit for bit."
    if state.differing:
        yield (
            f"Weights and optimizer: {len(state.differing)} of {state.num_tensors} tensors differ, by "
            f"{state.largest:.1e} at most ({state.where})."
        )
    if state.values:
        yield f"Other values that differ: {', '.join(state.values[:5])}{' ...' if len(state.values) > 5 else ''}."
    yield f"Losses differ by {report.comparison.steps:.1e} at most, relative."
    if report.control is not None:
        exact = "equal bit for bit" if report.control.is_exact else f"their losses differ by {report.control.steps:.1e}"
        yield f"Two runs in one go: {exact}."
    yield f"VERDICT: {_RESUME_VERDICTS[report.verdict]}"


_RESUME_VERDICTS = {
    "exact": "exact. A stopped run goes on bit for bit as if it had not been stopped.",
    "as close as the run is to itself": (
        "as close as the run is to itself. This machine does not repeat a run bit for bit, and the stop adds nothing."
    ),
    "broken": "NOT EXACT. A stopped run goes on otherwise than one that was not stopped.",
}


def _step(whole: Steps, resumed: Steps, step: int) -> str:
    one, other = whole.values.get(step), resumed.values.get(step)
    losses = [f"{values[0]:.7f}" if values and values[0] is not None else "-" for values in (one, other)]
    if one is None or other is None or one[0] is None or other[0] is None:
        return f"{step:>6}  {losses[0]:>16}  {losses[1]:>16}  {'?':>10}"
    difference = "0" if one[0] == other[0] else f"{abs(one[0] - other[0]):.1e}"
    norms = "equal" if one[1] == other[1] else "differs"
    return f"{step:>6}  {losses[0]:>16}  {losses[1]:>16}  {difference:>10}  {norms:>13}"


def loss_text(report: LossReport) -> str:
    """Write what came out of `surogate verify loss`."""
    return "\n".join(_loss_lines(report)) + "\n"


def _loss_lines(report: LossReport) -> Iterator[str]:
    own, tolerances = report.outcomes[0], TOLERANCES[report.numbers]
    yield f"One batch of {report.documents} documents and {report.tokens:,} supervised tokens, in {report.numbers}"
    yield ""
    width = max(len(outcome.way) for outcome in report.outcomes)
    yield f"{'':<{width}}  {'loss':>12}  {'difference':>10}  {'gradient norm':>13}  {'difference':>10}"
    for outcome in report.outcomes:
        if outcome.problem is not None:
            yield f"{outcome.way:<{width}}  {outcome.problem}"
            continue
        loss, norm = ("" if outcome is own else f"{value:.1e}" for value in report.differences(outcome))
        sign = "" if report.is_within(outcome) else "  <- beyond the tolerance"
        yield f"{outcome.way:<{width}}  {outcome.loss:>12.7f}  {loss:>10}  {outcome.grad_norm:>13.6f}  {norm:>10}{sign}"
    yield f"{'tolerance, relative':<{width}}  {'':>12}  {tolerances[0]:>10.1e}  {'':>13}  {tolerances[1]:>10.1e}"
    yield ""
    if report.is_invariant:
        yield "VERDICT: invariant. How a batch is cut and computed does not change what is learnt from it."
    else:
        yield "VERDICT: NOT INVARIANT. What is learnt depends on how the batch is cut or computed."
