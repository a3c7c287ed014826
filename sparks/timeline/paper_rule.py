"""What the paper's rule counts, whatever the rule of the timeline."""

from __future__ import annotations

import pandas as pd

from sparks.timeline.timeline import Timeline


def paper_counts(timeline: Timeline) -> pd.DataFrame:
    """Numbers of heads by the paper's rule, whatever the timeline's. Index: step.

    Columns: active (in the circuit of any probe), emergent, born, pruned.
    """
    names = ("active", "emergent", "born", "pruned")
    return pd.DataFrame(
        {name: timeline.heads_counted(name, "paper") for name in names},
        index=pd.Index(timeline.steps, name="step"),
    )
