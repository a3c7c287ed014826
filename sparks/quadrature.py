"""Where the m points lie on the path `z' + alpha (z - z')`: alpha = 0 is corrupted, 1 is clean.

Every rule weighs its points equally (1/m). `left` is the official EAP-IG edge code (k/m, k =
0..m-1), `right` is the paper's Eq. 3 and the official node code (k = 1..m), `midpoint` (k - 1/2)/m
has 50-80 times less error than `left` at m = 100 for the same cost.
"""

from __future__ import annotations

from sparks.config import Rule
from sparks.errors import SparksError

_OFFSETS: dict[str, float] = {"left": 0.0, "midpoint": 0.5, "right": 1.0}


def points(rule: Rule, steps: int) -> list[float]:
    """The `steps` values of alpha, increasing.

    Raises:
        SparksError: the rule is unknown or `steps` is below 1.
    """
    if rule not in _OFFSETS:
        raise SparksError(f"rule must be one of {', '.join(_OFFSETS)}, got {rule!r}")
    if not isinstance(steps, int) or steps < 1:
        raise SparksError(f"steps must be a whole number, at least 1, got {steps!r}")
    return [(k + _OFFSETS[rule]) / steps for k in range(steps)]
