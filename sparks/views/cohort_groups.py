"""Cohorts put together for a picture: more of them than colours cannot be told apart."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from sparks.timeline.timeline import Timeline

MOST_COHORT_GROUPS = 6
"""Areas in the picture: the Okabe-Ito colours that are left beside that of base heads and black."""


def cohort_groups(timeline: Timeline, most: int = MOST_COHORT_GROUPS) -> list[list[int]]:
    """Cohorts merged with their neighbours into at most `most` groups of about equal size.

    Returns:
        First and last cohort of each group, as indices of checkpoints.
    """
    cohorts, sizes = np.unique(timeline.cohort[timeline.cohort >= 0], return_counts=True)
    return [[int(cohorts[first]), int(cohorts[last])] for first, last in even_parts(sizes, most)]


def even_parts(sizes: Int[np.ndarray, " items"], most: int) -> list[tuple[int, int]]:
    """Cut a row of sizes into at most `most` runs of neighbours with the least sum of squared sums.

    Returns:
        First and last item of each run.
    """
    count = len(sizes)
    parts = min(most, count)
    before = np.concatenate([[0], np.cumsum(sizes, dtype=np.float64)])
    # cost[k, j]: least cost of the first j items in k runs; cut[k, j]: where its last run starts.
    cost = np.full((parts + 1, count + 1), np.inf)
    cut = np.zeros((parts + 1, count + 1), dtype=np.int64)
    cost[0, 0] = 0
    for run in range(1, parts + 1):
        for stop in range(run, count + 1):
            options = cost[run - 1, :stop] + (before[stop] - before[:stop]) ** 2
            cut[run, stop] = int(options.argmin())
            cost[run, stop] = options[cut[run, stop]]
    runs, stop = [], count
    for run in range(parts, 0, -1):
        start = int(cut[run, stop])
        runs.append((start, stop - 1))
        stop = start
    return runs[::-1]
