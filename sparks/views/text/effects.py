"""Effects as plain text: what `sparks effects` prints. No torch.

Two lines a set in the table, one sentence a set below it: both hold its matched random heads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from sparks.effects.records import EffectTable, Row
from sparks.effects.tables import (
    columns_of,
    ends,
    footnote,
    intact_line,
    lines_of,
    named,
    p_text,
    points,
    points_between,
    share,
)
from sparks.ground.plain_text import count, inert
from sparks.models.heads import names
from sparks.views.text.page import Page

_GIVEN_UP_FIRST = ("verdict", "p", "pass", "success", "95 %")
_STYLES = {
    "beyond matched random heads": "born",
    "no more than matched random heads": "returned",
    "undecided": "warning",
}


def render(table: EffectTable, *, width: int | None = None, color: bool = False) -> str:
    """Title, table, a sentence a set, and what the numbers rest on; ends in a newline.

    Args:
        table: what to show.
        width: characters a line; None takes the terminal's. Columns are left out where it is small.
        color: with ANSI colours. They add nothing that the text does not say.

    Raises:
        SparksError: `width` is under 40.
    """
    page = Page(width, color)
    page.labelled(
        "Effects",
        f"of head sets of {inert(table.model)} on {inert(table.task)}: "
        f"{count(table.problems, 'problem')}, {count(table.samples, 'answer')} each",
    )
    page.heading(f"{table.metric} in percent, and what the heads take of it, in points")
    page.grid(_grid(table, page.width))
    page.heading("In words")
    for row in table.rows:
        page.labelled(named(row), "", style=_STYLES[row.judgement.verdict], indent=2)
        page.labelled(" ", sentence(table, row), style="quiet", indent=1)
    page.heading("Heads")
    sets = (row.planned for row in table.rows)
    for name, heads, origin in dict.fromkeys((s.name, s.heads, s.origin) for s in sets):
        page.labelled(inert(name, 40), f"{names(heads)}: {inert(origin)}", indent=2)
    page.lines.append("")
    for line in (*_shared(table), *_moved(table)):
        page.labelled("Note", line, style="quiet")
    for line in table.left_out:
        page.labelled("Left out", inert(line, 400), style="warning")
    page.labelled("How", footnote(table), style="quiet")
    return "\n".join(page.lines) + "\n"


def sentence(table: EffectTable, row: Row) -> str:
    """What was found about a set beside its matched random heads, in words."""
    contrast = row.contrast.interval
    over = "" if len(table.rows) == 1 else f" by Holm over {len(table.rows)} rows"
    reason = f" ({row.judgement.reason})" if row.judgement.reason else ""
    return (
        f"{table.metric} {share(table.intact.value)} -> {share(row.value)}, "
        f"{_falls(row.effect.value)} ({ends(row.effect)}); matched random heads, "
        f"{row.control.draws} draws: {_falls(row.control.effect.value)} (draws "
        f"{points_between(table, row)}); vs random {points(contrast.value)} ({ends(contrast)}), "
        f"p {p_text(row.p_holm)}{over}: {row.judgement.verdict}{reason}."
    )


def _falls(delta: float) -> str:
    """A positive delta is a fall of the metric."""
    if round(100 * delta, 1) == 0:
        return "unchanged"
    return f"{'falls' if delta > 0 else 'rises'} by {abs(100 * delta):.1f}"


def _shared(table: EffectTable) -> Iterator[str]:
    """Sets that hold the same heads tell one story twice."""
    sets: dict[str, frozenset[tuple[int, int]]] = {}
    for planned in (row.planned for row in table.rows):
        sets[planned.name] = sets.get(planned.name, frozenset()) | frozenset(planned.heads)
    for (one, first), (other, second) in itertools.combinations(sets.items(), 2):
        if both := first & second:
            yield (
                f"{inert(one, 40)} and {inert(other, 40)} share {len(both)} of {len(first)} and "
                f"{len(second)} heads: {names(sorted(both))}"
            )


def _moved(table: EffectTable) -> Iterator[str]:
    for row in table.rows:
        if moved := sum(row.control.moved):
            of = len(row.planned.heads) * row.control.draws
            yield (
                f"{named(row)}: {moved} of {of} random heads lie in the nearest other layers, "
                f"where their own has too few heads left"
            )


# -- the table -------------------------------------------------------------------------------------


def _grid(table: EffectTable, width: int) -> Iterator[str]:
    header = columns_of(table)
    lines = [list(header), intact_line(table)]
    for row in table.rows:
        lines += lines_of(table, row)
    kept = _kept(header, lines, width)
    sizes = [max(len(line[place]) for line in lines) for place in kept]
    if (over := sum(sizes) + 2 * len(sizes) - width) > 0:
        sizes[0] = max(8, sizes[0] - over)
    for line in lines:
        cells = [line[place] for place in kept]
        text = f"  {inert(cells[0], sizes[0]):<{sizes[0]}}"
        for place, cell, size in zip(kept[1:], cells[1:], sizes[1:], strict=True):
            text += f"  {cell:<{size}}" if header[place] == "verdict" else f"  {cell:>{size}}"
        yield text.rstrip()


def _kept(header: Sequence[str], lines: Sequence[Sequence[str]], width: int) -> list[int]:
    """Columns that fit; the least important go first, the first column is cut last."""
    places = list(range(len(header)))
    sizes = [max(len(line[place]) for line in lines) for place in places]
    for start in _GIVEN_UP_FIRST:
        if sum(sizes[place] + 2 for place in places) <= width:
            break
        places = [place for place in places if place < 2 or not header[place].startswith(start)]
    return places
