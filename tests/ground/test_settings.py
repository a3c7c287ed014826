"""Settings: what a field must be stands in the field, and one check holds every class to it."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields

import pytest

from sparks.attribution.faithfulness.settings import CurveConfig
from sparks.effects.settings import EffectConfig
from sparks.evaluation.settings import EvaluationConfig
from sparks.ground.config import (
    ANY,
    FRACTION,
    SHARE,
    SnapshotConfig,
    at_least,
    check_settings,
    setting,
)
from sparks.ground.errors import SparksError
from sparks.probes.settings import ProbeBuildingConfig
from sparks.thinking.settings import ThinkConfig
from sparks.timeline.growth.settings import GrowthConfig
from sparks.timeline.regimes.regime import RegimeSettings

GIVEN = {ProbeBuildingConfig: {"data": "d", "model": "m", "output": "o"}}
KINDS = (
    CurveConfig, EffectConfig, EvaluationConfig, GrowthConfig, ProbeBuildingConfig, RegimeSettings,
    SnapshotConfig, ThinkConfig,
)  # fmt: skip
NUMBERS = [
    pytest.param(kind, item.name, id=f"{kind.__name__}.{item.name}")
    for kind in KINDS
    for item in fields(kind)
    if item.type.split(" | ")[0] in ("int", "float", "bool")
]


@dataclass(frozen=True, kw_only=True)
class Settings:
    share: float | None = setting(None, "", SHARE)
    level: float = setting(0.95, "", FRACTION)
    count: int = setting(4, "", low=2)
    nats: float = setting(0.0, "", at_least(0, "a number of nats, ", "measure L"))
    any_number: int = setting(-3, "")
    wanted: bool | None = setting(None, "")
    name: str = setting("", "")

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 0}, "share must be above 0 and at most 1, got 0"),
        (
            {"share": 5},
            "share must be above 0 and at most 1, got 5: it is a share, so 0.05 for 5 %",
        ),
        ({"share": True}, "share must be above 0 and at most 1, got True"),
        ({"level": 1.0}, "level must be a number between 0 and 1, got 1.0"),
        ({"level": None}, "level must be a number between 0 and 1, got None"),
        ({"level": float("nan")}, "level must be a number between 0 and 1, got nan"),
        ({"count": 1}, "count must be a whole number, at least 2, got 1"),
        ({"count": 2.0}, "count must be a whole number, at least 2, got 2.0"),
        ({"count": "2"}, "count must be a whole number, at least 2, got '2'"),
        ({"nats": -1}, "nats must be a number of nats, at least 0, got -1: measure L"),
        ({"nats": float("inf")}, "nats must be a number of nats, at least 0, got inf: measure L"),
        ({"any_number": 0.5}, "any_number must be a whole number, got 0.5"),
        ({"wanted": 1}, "wanted must be True, False or None, got 1"),
    ],
)
def test_what_does_not_fit_is_told_with_rule_value_and_way_out(values, message):
    with pytest.raises(SparksError) as caught:
        Settings(**values)
    assert str(caught.value) == message


def test_what_fits_is_taken_at_the_very_ends():
    found = Settings(share=1, level=1e-9, count=2, nats=0, any_number=-9, wanted=False, name="x")
    assert (found.share, found.count, found.wanted) == (1, 2, False)


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_no_settings_class_takes_text_for_a_number_or_a_switch(kind, name):
    """Some did, or died with a TypeError: `temperature`, `greedy`, `trust_remote_code`."""
    with pytest.raises(SparksError, match=f"{name} must be .*, got 'warm'"):
        kind(**{**GIVEN.get(kind, {}), name: "warm"})


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_a_measurement_has_bounds(kind):
    """But seeds, and what the class that builds probes holds for that of thinking."""
    free = [
        item.name
        for item in fields(kind)
        if item.type.split(" | ")[0] in ("int", "float") and item.metadata["bounds"] is ANY
    ]
    assert free == [] or kind is ThinkConfig or free == ["seed"]
    assert all(item.default is not MISSING or item.name in GIVEN[kind] for item in fields(kind))
