"""Whether there are probes enough to find a change of a head. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from sparks.probes.probes import members
from sparks.probes.settings import NUM_PROBES
from sparks.timeline.growth.settings import GrowthConfig

FEW_PROBES = 32
"""With 16 probes the rule of growth finds one in eleven of the heads that moved by 1.2, with 32 two
in five, with 64 three in four (`tests/bench/RECORD.md`)."""


def few_probes(groups: Sequence[str]) -> str | None:
    """In a line: there are too few probes that count, what that means, the way out. Else None.

    Args:
        groups: of the probes; control probes do not count, unless there are no others.
    """
    found, fewest = len(members(groups, None)), GrowthConfig().fewest_probes
    if found >= FEW_PROBES:
        return None
    meaning = (
        f"no change of a head can be called, at least {fewest} are needed"
        if found < fewest
        else f"hardly any change of a head will be found, which takes {FEW_PROBES} or more"
    )
    return (
        f"only {found} probe{'s' * (found != 1)}: {meaning}, and {NUM_PROBES} are good (`sparks "
        f"probes` builds them)"
    )
