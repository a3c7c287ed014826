"""Kaplan-Meier: cases worked by hand, a published example, exact intervals, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparks.ground.errors import SparksError
from sparks.stats.survival import Survival, fewest_subjects

SIX_MP = "6 6 6 6+ 7 9+ 10 10+ 11+ 13 16 17+ 19+ 20+ 22 23 25+ 32+ 32+ 34+ 35+"
"""Weeks of remission under 6-MP, + = still in remission (Freireich et al. 1963, Blood 21:699)."""
PUBLISHED = {6: (0.857, 0.0764), 7: (0.807, 0.0869), 10: (0.753, 0.0963), 13: (0.690, 0.1068),
             16: (0.627, 0.1141), 22: (0.538, 0.1282), 23: (0.448, 0.1346)}  # fmt: skip
"""Survival and Greenwood's standard error, as textbooks print them."""
LOG_LOG = {6: (0.620, 0.952), 10: (0.503, 0.889), 16: (0.368, 0.805), 23: (0.188, 0.680)}
"""Their usual approximate 95 % interval."""


def curve(text: str, **keywords: float) -> Survival:
    """`6 6+`: a subject that ended at 6, one last seen then."""
    words = text.split()
    return Survival(
        durations=np.array([int(word.rstrip("+")) for word in words]),
        ended=np.array([not word.endswith("+") for word in words]),
        **keywords,
    )


def bisected(chance, wanted: float) -> float:
    """Where the falling function `chance` of a share passes `wanted`."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle) > wanted else (low, middle)
    return low


def clopper_pearson(alive: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """From the definition, by sums of binomial probabilities."""

    def at_most(count: int, share: float) -> float:
        return sum(
            math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(count + 1)
        )

    tail = (1 - level) / 2
    low = bisected(lambda p: at_most(alive - 1, p), 1 - tail) if alive else 0.0
    high = bisected(lambda p: at_most(alive, p), tail) if alive < total else 1.0
    return low, high


def test_by_hand():
    found = curve("1 2+ 3 3 4+")
    frame = found.frame()
    assert frame["time"].tolist() == [1, 2, 3, 4]
    assert frame["at_risk"].tolist() == [5, 4, 3, 1]
    assert frame["ended"].tolist() == [1, 0, 2, 0]
    s = [4 / 5, 4 / 5, 4 / 5 * 1 / 3, 4 / 5 * 1 / 3]
    assert frame["survival"].tolist() == pytest.approx(s)
    error = 4 / 15 * math.sqrt(1 / (5 * 4) + 2 / (3 * 1))
    assert frame["standard_error"].tolist()[2] == pytest.approx(error)
    assert found.median.value == 3
    assert found.at(0).value == 1
    assert found.at(2.5).value == pytest.approx(4 / 5)
    assert math.isnan(found.at(5).value)
    assert found.at(5).low == 0
    assert found.at(5).high == pytest.approx(found.at(4).high)


def test_a_published_example():
    found = curve(SIX_MP)
    frame = found.frame().set_index("time")
    for time, (survival, error) in PUBLISHED.items():
        assert frame["survival"][time] == pytest.approx(survival, abs=5e-4)
        assert frame["standard_error"][time] == pytest.approx(error, abs=6e-5)
    assert frame["at_risk"].to_dict().items() >= {6: 21, 7: 17, 10: 15, 13: 12, 23: 6}.items()
    assert found.median.value == 23
    assert found.median.high == math.inf
    for time, ends in LOG_LOG.items():
        interval = found.at(time)
        assert (interval.low, interval.high) == pytest.approx(ends, abs=0.05)


@pytest.mark.parametrize(("alive", "total"), [(0, 6), (1, 4), (8, 10), (5, 20), (19, 20)])
def test_without_censoring_the_interval_is_that_of_clopper_and_pearson(alive, total):
    text = " ".join(["3"] * (total - alive) + ["9+"] * alive)
    for found in (curve(text).at(3), curve(text).at(9)):
        assert found.value == pytest.approx(alive / total)
        assert (found.low, found.high) == pytest.approx(clopper_pearson(alive, total), abs=0.01)


def test_one_at_a_time_is_the_same_as_together():
    spread = curve("1 2 3 4 9+ 9+ 9+ 9+ 9+ 9+").at(9)
    assert (spread.low, spread.high) == pytest.approx(clopper_pearson(6, 10), abs=0.01)


def test_where_nothing_ended_the_interval_still_says_something():
    found = curve("9+ 9+ 9+ 9+ 9+ 9+ 2+").at(9)
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(0.025 ** (1 / 6))
    wide = curve("9+ 9+ 9+ 9+ 9+ 9+", level=0.8).at(9)
    assert wide.low == pytest.approx(0.1 ** (1 / 6))


def test_the_half_life_and_its_interval():
    frame = curve(SIX_MP).frame()
    median = curve(SIX_MP).median
    assert median.low == frame["time"][frame["low"] <= 0.5].min()
    assert curve("9+ 9+").median.value == math.inf
    fast = curve(" ".join(["1"] * 20 + ["2"] * 20)).median
    assert (fast.value, fast.low, fast.high) == (1, 1, 2)


def test_no_subjects():
    empty = Survival(durations=np.zeros(0, int), ended=np.zeros(0, bool))
    assert empty.frame().empty
    assert math.isnan(empty.median.value)
    assert math.isnan(empty.at(3).value)
    assert (empty.at(3).low, empty.at(3).high) == (0, 1)


def test_the_interval_covers_the_truth():
    """15 subjects, half of them censored: 95 % intervals hold S in 95 % of 200 cases or more."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        ends, seen = rng.exponential(1, 15), rng.uniform(0, 2, 15)
        found = Survival(durations=np.minimum(ends, seen), ended=ends <= seen).at(0.7)
        held += found.low <= math.exp(-0.7) <= found.high
    assert 190 <= held < 200  # neither too narrow nor all of the line


@pytest.mark.parametrize(("level", "share"), [(0.95, 0.5), (0.9, 0.5), (0.95, 0.7)])
def test_the_fewest_subjects_that_can_decide(level, share):
    fewest = fewest_subjects(level, share)

    def decides(count: int) -> bool:
        kept = Survival(durations=np.full(count, 9), ended=np.zeros(count, bool), level=level).at(9)
        gone = (1 - level) / 2
        return kept.low > share or 1 - gone ** (1 / count) < share

    if share == 0.5:
        assert decides(fewest)
        assert not decides(fewest - 1)
    assert fewest >= fewest_subjects(level, 0.5)


def test_mistakes_are_told():
    with pytest.raises(SparksError, match="must be as long as each other, got 2 and 1"):
        Survival(durations=np.zeros(2), ended=np.zeros(1, bool))
    with pytest.raises(SparksError, match="durations must be numbers, at least 0"):
        Survival(durations=np.array([-1.0]), ended=np.ones(1, bool))
