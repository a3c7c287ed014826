"""Whether there are probes enough, in a line."""

from __future__ import annotations

import pytest

from sparks.probes.probes import CONTROL_GROUP
from sparks.timeline.growth.settings import GrowthConfig
from sparks.training.probe_count import FEW_PROBES, few_probes

FEWEST = GrowthConfig().fewest_probes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, f"only 1 probe: no change of a head can be called, at least {FEWEST} are needed"),
        (FEWEST - 1, f"only {FEWEST - 1} probes: no change of a head can be called"),
        (FEWEST, f"only {FEWEST} probes: hardly any change of a head will be found"),
        (FEW_PROBES - 1, "hardly any change of a head will be found, which takes 32 or more"),
    ],
)
def test_few_probes_are_told_with_the_way_out(count, text):
    found = few_probes([""] * count)
    assert text in found
    assert found.endswith("and 64 are good (`sparks probes` builds them)")
    assert "\n" not in found


def test_control_probes_do_not_count_and_enough_are_enough():
    assert few_probes(["math"] * FEW_PROBES) is None
    assert few_probes(["math"] * (FEW_PROBES - 1) + [CONTROL_GROUP] * 40) is not None
    assert few_probes([CONTROL_GROUP] * FEW_PROBES) is None
