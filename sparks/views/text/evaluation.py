"""An evaluation as a short page of text. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from sparks.evaluation.results import Evaluation, default_ks
from sparks.ground.plain_text import count, inert, percent
from sparks.stats.intervals import Interval
from sparks.views.text.page import Page

_NO_CONTROL = "none: random heads may do as much; sparks effects measures both"


def render(
    evaluation: Evaluation,
    ks: Sequence[int] | None = None,
    *,
    width: int | None = None,
    color: bool = False,
) -> str:
    """pass@k and success@k with intervals, what was sampled, and what could not be read.

    Args:
        evaluation: finished.
        ks: which k; 1, powers of two and the number of samples where not given.
        width: characters a line; None takes the terminal's.
        color: with ANSI colours.

    Raises:
        SparksError: a k is not from 1 to the number of samples.
    """
    page = Page(width, color)
    problems = count(len(evaluation.problems), "problem")
    page.heading(
        f"{inert(evaluation.task)}: {problems}, {count(evaluation.samples, 'sample')} each"
    )
    page.labelled("model", inert(evaluation.model))
    if evaluation.intervention:
        page.labelled("intervention", inert(evaluation.intervention), style="warning")
        page.labelled("control", _NO_CONTROL, style="warning")
    page.labelled("sampling", sampling_in_words(evaluation))
    page.lines.append("")
    page.grid(_table(evaluation, ks))
    page.lines.append("")
    page.labelled("intervals", "95 %, over problems that these stand for (Wilson)", style="quiet")
    page.labelled("answers", _answers(evaluation), style="quiet")
    page.labelled("cost", _cost(evaluation), style="quiet")
    return "\n".join(page.lines[1:])


def sampling_in_words(evaluation: Evaluation) -> str:
    """The settings that were used."""
    settings = evaluation.config
    if settings.get("greedy"):
        parts = ["greedy"]
    else:
        names = {"temperature": "temperature", "top_p": "top-p", "top_k": "top-k"}
        parts = [
            f"{words} {settings[name]}"
            for name, words in names.items()
            if settings.get(name) is not None
        ]
    if settings.get("thinking") is not None:
        parts.append(f"thinking {'on' if settings['thinking'] else 'off'}")
    parts += [f"{words} {settings[name]}" for name, words in _OTHERS.items() if name in settings]
    return ", ".join([*parts, evaluation.backend])


_OTHERS = {"max_new_tokens": "max tokens", "seed": "seed"}


def _table(evaluation: Evaluation, ks: Sequence[int] | None) -> list[str]:
    rows = [("k", "pass@k", "success@k")]
    for k in default_ks(evaluation.samples) if ks is None else ks:
        found = _estimate(evaluation.pass_at(k)), _estimate(evaluation.success_at(k))
        rows.append((str(k), *found))
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(size) if index == 0 else cell.ljust(size)
            for index, (cell, size) in enumerate(zip(row, sizes, strict=True))
        ).rstrip()
        for row in rows
    ]


def _estimate(estimate: Interval) -> str:
    return f"{percent(estimate.value)} ({percent(estimate.low)} to {percent(estimate.high)})"


def _answers(evaluation: Evaluation) -> str:
    total = len(evaluation.problems) * evaluation.samples
    parts = [f"{int(evaluation.correct_samples.sum())} of {total} right"]
    limit = evaluation.config.get("max_new_tokens")
    for number, words in (
        (evaluation.truncated, f"cut at {limit} tokens"),
        (evaluation.unparsed, "without a final answer that could be read"),
    ):
        parts.append(f"{number} {words} ({percent(number / total)})" if number else f"0 {words}")
    return ", ".join(parts)


def _cost(evaluation: Evaluation) -> str:
    tokens, seconds = evaluation.tokens, evaluation.seconds
    total = len(evaluation.problems) * evaluation.samples
    rate = f", {tokens / seconds:,.0f} tokens/s" if seconds > 0 else ""
    return f"{seconds:,.1f} s, {tokens:,} tokens ({tokens / total:,.0f} an answer){rate}"
