"""Text for people: harmless names, numbers in words. No layout.

Every name that a file may hold passes `inert` first, so that nothing in a run folder can move the
cursor, recolour the terminal or pretend to be another line.
"""

from __future__ import annotations

import math

from sparks.ground.errors import printable

_NONE = "–"


def inert(text: object, limit: int = 300) -> str:
    r"""One line of printable characters: all others as escapes such as `\x1b`, cut at `limit`."""
    plain = printable(str(text)[: limit + 1])
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def count(number: int, what: str) -> str:
    """Such as "1 run" and "2 runs"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def number(value: float) -> str:
    """Four digits, or a dash where there is none."""
    return _NONE if math.isnan(value) else f"{value:.4g}"


def decimals(value: float) -> str:
    """Two digits behind the point, or a dash where there is none."""
    return _NONE if math.isnan(value) else f"{value:.2f}"


def percent(share: float) -> str:
    """Three digits, or a dash where there is none."""
    return _NONE if math.isnan(share) else f"{100 * share:.3g}%"
