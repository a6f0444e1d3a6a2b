"""What of a measured data set is a problem, what is worth a look, and what is good to know.

What is not here: measuring (measures.py). The one idea: a finding says what was found and what to do. It is a problem
only where no sensible run would have it, so that data which is merely unusual is never refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from surogate.inspection.report import Finding, Level, PackingReport, Report, SourceReport

BOS_SHARE = 0.01
"""Of rows with a second BOS: above it a template does that, below it a stray row."""
UNKNOWN_SHARES = (0.01, 0.5)
"""Of unknown tokens: a warning and a problem. Rare scripts give a few per cent, another tokenizer's text nearly all."""
OPEN_TURN_SHARE = 0.05
DUPLICATE_SHARE = 0.01
TRUNCATION_SHARE = 0.05
LOW_EFFICIENCY = 0.8
MANY_EPOCHS = 4
"""Rounds through a source in one epoch from which on it is likely to be learnt by heart."""


def judge(report: Report, *, ends_turns: bool) -> Iterator[Finding]:
    """Judge everything that a full inspection measured.

    Args:
        report: what was measured.
        ends_turns: whether the chat template ends an answer with a token of its own.
    """
    for source in report.sources:
        yield from judge_tokens(source, ends_turns=ends_turns)
        yield from judge_leak(source)
        yield from _judge_build(source)
        yield from _judge_supervision(source)
        yield from _judge_repeats(source)
        yield from _judge_mixing(source)
    if report.packing:
        yield from _judge_packing(report.packing)


def judge_tokens(source: SourceReport, *, ends_turns: bool) -> Iterator[Finding]:
    """Judge what a scan found, of all rows or of some."""
    name, scan = source.name, source.scan
    if scan.beyond:
        text = f"{scan.beyond:,} token ids belong to no token of the tokenizer{_first(source, 'beyond')}"
        yield Finding("problem", name, f"{text}. Its files changed after the rows were made: remove the cached rows.")
    if scan.double_bos:
        level: Level = "problem" if scan.double_bos > BOS_SHARE * scan.rows else "warning"
        text = f"{_of(scan.double_bos, scan.rows, 'rows')} start with BOS twice{_first(source, 'double_bos')}"
        yield Finding(level, name, f"{text}. Remove it from the rows' own text, or from template:.")
    if scan.bos_inside:
        text = f"{_of(scan.bos_inside, scan.rows, 'rows')} have a BOS inside{_first(source, 'bos_inside')}"
        yield Finding("warning", name, f"{text}. The model takes it for the start of a text; remove it from the rows.")
    yield from _judge_missing_bos(source)
    yield from _judge_unknown(source)
    yield from _judge_text_ends(source) if source.is_text else _judge_turn_ends(source, ends_turns)


def judge_leak(source: SourceReport) -> Iterator[Finding]:
    """Judge what validation and training share."""
    shared = source.repeats.across
    if source.role == "validation" and shared:
        text = f"{_of(shared, source.documents, source.noun)} of the validation are also trained on"
        yield Finding("problem", source.name, f"{text}, so it measures memory. Remove them from one of the two.")


def _judge_missing_bos(source: SourceReport) -> Iterator[Finding]:
    scan = source.scan
    if scan.puts_bos and scan.rows_with_bos == 0 and not source.is_text:
        yield Finding(
            "warning",
            source.name,
            "no row starts with BOS, which the tokenizer puts in front of a text by itself. If the model was trained "
            "with it, start template: with {{ bos_token }}.",
        )


def _judge_unknown(source: SourceReport) -> Iterator[Finding]:
    scan = source.scan
    if not scan.unknown:
        return
    share = scan.unknown / scan.tokens
    level: Level = "note"
    if share > UNKNOWN_SHARES[0]:
        level = "problem" if share > UNKNOWN_SHARES[1] else "warning"
    text = (
        f"{_of(scan.unknown, scan.tokens, 'tokens')} are unknown to the tokenizer, and the model cannot tell them apart"
    )
    yield Finding(level, source.name, f"{text}. Clean the text, or take a model with another tokenizer.")


def _judge_text_ends(source: SourceReport) -> Iterator[Finding]:
    scan = source.scan
    if scan.special_inside:
        text = (
            f"{_of(scan.special_inside, scan.rows, 'rows')} spell out special tokens{_first(source, 'special_inside')}"
        )
        advice = "They are read as the tokens they name: remove them from the text, unless that is meant."
        yield Finding("note", source.name, f"{text}. {advice}")
    is_whole = scan.rows == source.rows and source.documents > 1 and not source.too_long
    if is_whole and not scan.ended_rows:
        text = "no document ends with EOS, so the model does not learn where one ends"
        yield Finding("warning", source.name, f"{text}. Take a tokenizer that has an eos_token if it should.")


def _judge_turn_ends(source: SourceReport, ends_turns: bool) -> Iterator[Finding]:
    scan = source.scan
    open_turns = scan.turns - scan.ended_turns
    if not open_turns:
        return
    if scan.ended_turns:
        level: Level = "warning" if open_turns > OPEN_TURN_SHARE * scan.turns else "note"
        text = (
            f"{_of(open_turns, scan.turns, 'supervised turns')} stop without an end token{_first(source, 'open_turn')}"
        )
        advice = "They were cut at max_length: raise it, or set truncation_strategy: delete."
        yield Finding(level, source.name, f"{text}. {advice if source.too_long else 'Look at the samples.'}")
    elif not ends_turns:
        text = "no supervised turn stops with a token of its own, so the model does not learn to stop"
        yield Finding("warning", source.name, f"{text}. Put eos_token behind the content in template:.")
    elif source.too_long:
        text = "every supervised turn is cut before its end, so the model does not learn to stop"
        yield Finding("warning", source.name, f"{text}. Raise max_length, or set truncation_strategy: delete.")
    else:
        text = f"none of {scan.turns:,} supervised turns holds its end token, so the model never learns to stop"
        yield Finding("problem", source.name, f"{text}. Put eos_token behind the content in template:.")


def _judge_build(source: SourceReport) -> Iterator[Finding]:
    """Judge what was left out or cut; once a source, as the counts are of the whole of it."""
    if source.is_held_out:
        return
    info = source.info
    rendered = int(info["num_rendered"])
    if lost_tokens := int(info["lost_tokens"]):
        level: Level = "warning" if source.too_long > TRUNCATION_SHARE * rendered else "note"
        text = f"{_of(source.too_long, rendered, 'rows')} are longer than max_length (first: {info['first_too_long']})"
        advice = "Raise max_length and sequence_len to keep them."
        yield Finding(level, source.name, f"{text}; {lost_tokens:,} tokens are lost. {advice}")
    if bad := int(info["bad"]):
        text = f"{_of(bad, rendered, 'rows')} supervise no token and are left out (first: {info['first_bad']})"
        needed = (
            "A document needs two tokens" if source.is_text else "A row needs an assistant's answer within max_length"
        )
        yield Finding("warning", source.name, f"{text}. {needed}.")
    if source.split_documents and not source.is_text:
        text = f"{_of(source.split_documents, source.documents, 'conversations')} became several rows, one a turn"
        yield Finding(
            "note",
            source.name,
            f"{text}, because the template renders a turn differently once more follow. loss_scale: last_round trains "
            "on the last one only.",
        )


def _judge_supervision(source: SourceReport) -> Iterator[Finding]:
    if source.full_rows and not source.is_text and source.loss_scale != "all":
        text = f"{_of(source.full_rows, source.rows, 'rows')} are supervised from end to end, the prompt included"
        yield Finding("warning", source.name, f"{text}. Look at the samples, and check the roles and columns.")


def _judge_repeats(source: SourceReport) -> Iterator[Finding]:
    repeats = source.repeats
    if source.role != "train":
        return
    if repeats.within:
        level: Level = "warning" if repeats.within > DUPLICATE_SHARE * source.documents else "note"
        text = f"{_of(repeats.within, source.documents, source.noun)} repeat one of the same source"
        first = f" (first: {repeats.first[1]} repeats {repeats.first[0]})"
        yield Finding(level, source.name, f"{text}{first}. Remove them, unless they are to count more.")
    if repeats.across:
        text = f"{_of(repeats.across, source.documents, source.noun)} also stand in a source before this one"
        yield Finding("note", source.name, f"{text}. They are trained on once for each.")


def _judge_mixing(source: SourceReport) -> Iterator[Finding]:
    if source.role == "train" and source.epochs == 0:
        yield Finding(
            "warning", source.name, "its weight leaves no row of it in an epoch. Raise it or remove the source."
        )
    elif source.epochs > MANY_EPOCHS:
        text = f"its weight draws every row {source.epochs:.1f} times an epoch, which the model may learn by heart"
        yield Finding("warning", source.name, f"{text}. Lower its weight.")


def _judge_packing(packing: PackingReport) -> Iterator[Finding]:
    if packing.packs < packing.packs_per_step:
        text = f"an epoch fills {packing.packs} of the {packing.packs_per_step} packs of one optimizer step"
        yield Finding("note", "", f"{text}. Lower gradient_accumulation_steps for more steps.")
    elif packing.efficiency < LOW_EFFICIENCY:
        advice = "Raise sequence_len." if packing.enabled else "Set sample_packing: true to lay several rows into one."
        level: Level = "warning" if packing.enabled else "note"
        yield Finding(level, "", f"only {packing.efficiency:.0%} of a pack is data, the rest is padding. {advice}")


def _of(count: int, total: int, what: str) -> str:
    """Write `12 of 400 rows (3.0%)`."""
    share = 100 * count / total if total else 0.0
    shown = f"{share:.0f}" if share >= 10 or count == 0 else f"{share:.1f}" if share >= 0.1 else "under 0.1"
    return f"{count:,} of {total:,} {what} ({shown}%)"


def _first(source: SourceReport, what: str) -> str:
    return f" (first: {source.origins[what]})" if what in source.origins else ""
