"""Effects as tables: csv, json, Markdown, LaTeX. No torch.

In csv and json a set and its matched random heads are one row. Where they are two lines, as in the
paper's tables, both come from `lines_of`, which knows no set without its control.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from sparks.effects.records import EffectTable, Row
from sparks.ground.csv_text import csv_text
from sparks.ground.plain_text import inert
from sparks.models.heads import names
from sparks.stats.intervals import Interval

INTACT = "no ablation"
_MINUS = "−"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "–": "--", _MINUS: "$-$",
}  # fmt: skip


def frame(table: EffectTable) -> pd.DataFrame:
    """A row a set, with its matched random heads in it.

    Columns: set, done, scale, heads (`L5H1,L7H2`), count, found (heads that the rule found),
    origin, metric, problems, samples, intact, ablated; delta (intact - ablated), random_draws,
    random (metric, mean over draws), random_lowest, random_highest (of a draw), random_delta,
    contrast (delta - random_delta), each of the three with _low and _high; p, p_holm, verdict,
    reason, random_heads (draws apart by `;`), random_moved (heads that lie in another layer than
    those they match); other metrics as intact_pass@4, ablated_pass@4, random_pass@4.
    """
    return pd.DataFrame([_record(table, row) for row in table.rows])


def to_csv(table: EffectTable) -> str:
    """`frame` as csv."""
    return csv_text(frame(table))


def to_json(table: EffectTable) -> str:
    """One object: what was measured, and `rows` with the columns of `frame`."""
    rows = [
        {name: _plain(value) for name, value in _record(table, row).items()} for row in table.rows
    ]
    values = {
        "model": table.model,
        "task": table.task,
        "metric": table.metric,
        "problems": table.problems,
        "samples": table.samples,
        "intact": vars(table.intact),
        "intact_beside": dict(table.intact_beside),
        "alpha": table.alpha,
        "margin": table.margin,
        "rows": rows,
        "left_out": list(table.left_out),
    }
    return json.dumps(values, indent=1) + "\n"


def to_markdown(table: EffectTable) -> str:
    """A table as in the paper, two lines a set; then what it rests on."""
    header, *body = _written(table)
    lines = [_bars(header), _bars(["---", *["---:"] * (len(header) - 2), "---"])]
    lines += [_bars(cells) for cells in body]
    return "\n".join([*lines, "", f"{footnote(table)}", ""])


def to_latex(table: EffectTable) -> str:
    """A `tabular` for booktabs, two lines a set; then what it rests on."""
    header, *body = ([_latex(cell) for cell in cells] for cells in _written(table))
    rows = [" & ".join(cells) + r" \\" for cells in body]
    for index in range(len(rows) - 1, 0, -2):
        rows[index - 1 : index - 1] = [r"\midrule"]
    return "\n".join(
        [
            r"\begin{tabular}{l" + "r" * (len(header) - 2) + "l}",
            r"\toprule",
            " & ".join(header) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\par\footnotesize {_latex(footnote(table))}",
            "",
        ]
    )


def columns_of(table: EffectTable) -> tuple[str, ...]:
    """Names of the columns that `lines_of` fills."""
    return (
        "heads", f"{table.metric} %", *(f"{name} %" for name in extra(table)), "delta", "95 %",
        "vs random", "95 %", "p", "verdict",
    )  # fmt: skip


def lines_of(table: EffectTable, row: Row) -> tuple[list[str], list[str]]:
    """The two lines of a set: its own, and that of its matched random heads."""
    control, more = row.control, extra(table)
    own = [
        named(row), share(row.value), *(share(row.beside[name][0]) for name in more),
        points(row.effect.value), ends(row.effect), points(row.contrast.interval.value),
        ends(row.contrast.interval), p_text(row.p_holm), row.judgement.verdict,
    ]  # fmt: skip
    random = [
        f"  random, same layers, {control.draws} draws", share(control.value),
        *(share(row.beside[name][1]) for name in more), points(control.effect.value),
        ends(control.effect), "", "", "", f"draws {points_between(table, row)}",
    ]  # fmt: skip
    return own, random


def intact_line(table: EffectTable) -> list[str]:
    """The line of the model without ablation."""
    more = [share(table.intact_beside[name]) for name in extra(table)]
    return [INTACT, share(table.intact.value), *more, *[""] * 6]


def extra(table: EffectTable) -> tuple[str, ...]:
    """Metrics that stand beside the chosen one in narrow tables: pass@1 and pass@n."""
    wanted = ("pass@1", f"pass@{table.samples}")
    return tuple(dict.fromkeys(name for name in wanted if name in table.intact_beside))


def footnote(table: EffectTable) -> str:
    """What the table rests on, in sentences."""
    answers = "1 answer" if table.samples == 1 else f"{table.samples} answers"
    return (
        f"{inert(table.task)}, {table.problems} problems, {answers} each, {inert(table.model)}. "
        f"delta: {table.metric} without ablation less that with it, in points, paired over "
        f"problems; vs random: delta less the mean delta of matched random heads (as many in the "
        f"same layers), its interval over problems and draws; p that the set is one more draw, "
        f"two-sided, by Holm over {len(table.rows)} {'row' if len(table.rows) == 1 else 'rows'}. "
        f"Intervals are not corrected. No more: differences of "
        f"{share(table.margin * table.intact.value)} points ({table.margin:.0%} of "
        f"{share(table.intact.value)}) are excluded."
    )


# -- cells -----------------------------------------------------------------------------------------


def named(row: Row) -> str:
    """`emergent, 10 of 23 set to 0`."""
    planned, size = row.planned, len(row.planned.heads)
    count = f"{size}" if size == planned.found else f"{size} of {planned.found}"
    return f"{inert(planned.name, 40)}, {count} {inert(planned.done, 60)}"


def share(value: float) -> str:
    """In percent, one decimal."""
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """In points of percent, signed."""
    rounded = round(100 * value, 1)
    if rounded == 0:
        return "0.0"
    return f"{'+' if rounded > 0 else _MINUS}{abs(rounded):.1f}"


def ends(interval: Interval) -> str:
    """`−2.1 to +8.3`."""
    return f"{points(interval.low)} to {points(interval.high)}"


def points_between(table: EffectTable, row: Row) -> str:
    """Smallest and largest delta of a draw."""
    deltas = [table.intact.value - value for value in row.control.values]
    return f"{points(min(deltas))} to {points(max(deltas))}"


def p_text(value: float) -> str:
    """Two digits; very small ones as a bound."""
    return "<0.001" if value < 0.001 else f"{value:.2g}"


def _record(table: EffectTable, row: Row) -> dict[str, Any]:
    planned, control, judgement = row.planned, row.control, row.judgement
    record: dict[str, Any] = {
        "set": planned.name, "done": planned.done, "scale": planned.scale,
        "heads": names(planned.heads), "count": len(planned.heads), "found": planned.found,
        "origin": planned.origin, "metric": table.metric,
        "problems": table.problems, "samples": table.samples, "intact": table.intact.value,
        "ablated": row.value, **row.effect.cells("delta"), "random_draws": control.draws,
        "random": control.value, "random_lowest": min(control.values),
        "random_highest": max(control.values), **control.effect.cells("random_delta"),
        **row.contrast.interval.cells("contrast"), "p": row.contrast.p_value,
        "p_holm": row.p_holm, "verdict": judgement.verdict, "reason": judgement.reason,
        "random_heads": ";".join(map(names, control.heads)), "random_moved": sum(control.moved),
    }  # fmt: skip
    for name, (ablated, random) in row.beside.items():
        record |= {
            f"intact_{name}": table.intact_beside[name],
            f"ablated_{name}": ablated,
            f"random_{name}": random,
        }
    return record


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _written(table: EffectTable) -> list[list[str]]:
    """Header, the line of the intact model, and two lines a set."""
    lines = [list(columns_of(table)), intact_line(table)]
    for row in table.rows:
        lines += lines_of(table, row)
    return lines


def _bars(cells: list[str]) -> str:
    escaped = (cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(cell.strip() or ' ' for cell in escaped)} |"


def _latex(text: str) -> str:
    indent = r"\quad " if text.startswith("  ") else ""
    return indent + "".join(_LATEX.get(letter, letter) for letter in text.strip())


WRITERS: dict[str, Callable[[EffectTable], str]] = {
    "csv": to_csv,
    "json": to_json,
    "markdown": to_markdown,
    "latex": to_latex,
}
"""All formats but text."""
