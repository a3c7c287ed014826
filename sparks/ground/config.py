"""Settings: fields with bounds, and those of a snapshot, whose every default stands here alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sparks.ground.errors import SparksError

Method = Literal["eap-ig", "secant"]
Quadrature = Literal["midpoint", "left", "right", "pilot"]
Positions = Literal["last", "all"]
ThresholdMode = Literal["absolute", "relative"]
ControlKind = Literal["both", "copying", "recall"]

FIXED_POINTS = 4
"""m where neither points nor a tolerance is given. Time is better spent on probes: what a coarse
integral is wrong by all heads of a probe have in common, and shares cancel it
(`tests/bench/RECORD.md`)."""
FIRST_POINTS = 12
"""m that a tolerance starts from where no points are given: at 8, a gap was sometimes small by
chance (`tests/bench/RECORD.md`)."""

LEAST_LOSS = 0.1
"""L, nats, below which there is nothing to attribute: all of it is less than the |score| that the
paper asks of one edge (tau). Measured: 1 to 13 on trained models, 0.00001 to 0.02 on models as they
are initialised (`tests/bench/RECORD.md`)."""


TRUST_HELP = "run Python code that comes with a model from its folder or the hub"
"""Of `trust_remote_code`, wherever it can be given."""

_EARLIER = {"steps": "points", "max_steps": "max_points", "rule": "quadrature"}
"""Names that stored runs may have -> today's."""


def todays_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings under the names that they have today."""
    return {_EARLIER.get(name, name): value for name, value in dict(values).items()}


# -- fields and their bounds -----------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """What a number must be, in words and as a test, and what to do where it is not."""

    words: str
    hold: Callable[[float], bool]
    way_out: str = ""


ANY = Bounds("", lambda value: True)
SHARE = Bounds("above 0 and at most 1", lambda value: 0 < value <= 1)
FRACTION = Bounds("a number between 0 and 1", lambda value: 0 < value < 1)
ABOVE_0 = Bounds("above 0", lambda value: value > 0, "use greedy for 0")


def at_least(low: float, noun: str = "", way_out: str = "") -> Bounds:
    """Of a number that may be `low` or more; `noun` says what it is: `a number of nats, `."""
    return Bounds(f"{noun}at least {low}", lambda value: value >= low, way_out)


def setting(default: Any, help: str, bounds: Bounds = ANY, *, low: int | None = None) -> Any:
    """A field of a settings class.

    Args:
        default: `dataclasses.MISSING` for what must be given.
        help: what the command line shows.
        bounds: of a number.
        low: in place of `bounds`, the lowest that it may be.
    """
    held = bounds if low is None else at_least(low)
    return field(default=default, metadata={"help": help, "bounds": held})


def check_settings(settings: Any) -> None:
    """Hold every field of a settings class against its type and its bounds.

    Raises:
        SparksError: one does not fit.
    """
    hints = _hints(settings.__class__)
    for item in fields(settings):
        hint, value = hints[item.name], getattr(settings, item.name)
        if get_origin(hint) is Literal:
            check_choice(item.name, value, get_args(hint))
        else:
            check_value(item.name, value, hint, item.metadata["bounds"])


_hints = lru_cache(get_type_hints)


def check_value(name: str, value: Any, hint: Any, bounds: Bounds) -> None:
    """Hold a value against a type, such as `int | None`, and bounds.

    Raises:
        SparksError: it does not fit; a percentage in place of a share is told.
    """
    fits, rule = _judged(value, hint, bounds)
    if not fits:
        way_out = bounds.way_out
        if bounds == SHARE and _is_finite(value) and 1 < value <= 100:
            way_out = f"it is a share, so {value / 100:g} for {value:g} %"
        end = f": {way_out}" if way_out else ""
        raise SparksError(f"{name} must be {rule}, got {value!r}{end}")


def _judged(value: Any, hint: Any, bounds: Bounds) -> tuple[bool, str]:
    """Whether the value fits, and what it must be. Of text, nothing is asked."""
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    if value is None and type(None) in kinds:
        return True, ""
    if bool in kinds:
        rule = "True, False or None" if type(None) in kinds else "True or False"
        return isinstance(value, bool), rule
    if int in kinds:
        rule = ", ".join(filter(None, ("a whole number", bounds.words)))
        return type(value) is int and bounds.hold(value), rule
    if float in kinds:
        return _is_finite(value) and bounds.hold(value), bounds.words or "a finite number"
    return True, ""


def check_choice(name: str, value: Any, known: Collection[str]) -> None:
    """Check that a word is one of those that are known.

    Raises:
        SparksError: it is not.
    """
    if value not in known:
        raise SparksError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def refuse_unknown(kind: Any, values: Mapping[str, Any]) -> None:
    """Check that every name is a field of a settings class.

    Raises:
        SparksError: one is not.
    """
    known = {item.name for item in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise SparksError(f"unknown setting {unknown[0]!r}; known: {', '.join(sorted(known))}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_OF_POINTS = ("points", "tolerance", "max_points", "quadrature")
"""Settings of EAP-IG alone."""


# -- a snapshot ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SnapshotConfig:
    """What is measured at a checkpoint, and how. Frozen; ranges are checked when it is made.

    Raises:
        SparksError: a value is outside its range.
    """

    method: Method = setting(
        "eap-ig",
        "how edges are scored: eap-ig, derivatives along a path (the paper's); or secant, one pass "
        "between its two ends, exact without points (points, tolerance, max_points and quadrature "
        "then serve models that have no secants, for which EAP-IG is taken)",
    )
    points: int | None = setting(
        None,
        f"points m on the path from corrupted to clean ({FIXED_POINTS} where not given; paper A.5: "
        f"100); with a tolerance, the m to start from ({FIRST_POINTS} where not given)",
        low=1,
    )
    tolerance: float | None = setting(
        None,
        "completeness gap aimed at, a share of L such as 0.05: m grows, probe by probe, until the "
        "gap is not above it; without it, every probe has the same m",
        SHARE,
    )
    max_points: int = setting(324, "with a tolerance, m grows while it stays at most this", low=1)
    quadrature: Quadrature = setting(
        "midpoint",
        "where the points lie: midpoint; left (official code); right (paper's Eq. 3); pilot "
        "(closer where six forward passes see L move; pays below about 40 points)",
    )
    positions: Positions = setting(
        "last", "KL divergence at the last position, or its mean over all continuation positions"
    )
    top_n: int = setting(5000, "edges kept a probe, the strongest first (paper: 5000)", low=1)
    top_share: float | None = setting(
        None, "keep this share (0..1] of the model's edges instead of top_n", SHARE
    )
    threshold: float = setting(
        0.1,
        "tau: kept edges have at least this |score| (paper: 0.1)",
        at_least(0, "a finite number, "),
    )
    threshold_mode: ThresholdMode = setting(
        "absolute", "threshold as it is, or relative to the probe's largest |score|"
    )
    max_suffix_tokens: int = setting(16, "continuations are cut to this many tokens", low=1)
    swap_base_roles: bool = setting(
        False, "at step 0 swap clean and corrupted, as the paper does for its base model"
    )
    faithfulness: bool = setting(
        True, "also measure how much of L each circuit carries alone (a little more time)"
    )
    faithfulness_probes: int = setting(
        16, "on how many probes at most that is measured: the same at every checkpoint", low=1
    )
    memory_gib: float = setting(
        4.0,
        "memory for activations, GiB; pairs and points are split to stay under it",
        Bounds("a finite number above 0", lambda value: value > 0),
    )

    def __post_init__(self) -> None:
        self._settle_points()
        check_settings(self)
        assert self.points is not None  # just settled
        if self.tolerance is not None and self.max_points < self.points:
            raise SparksError(
                f"max_points must be at least points ({self.points}), got {self.max_points}: raise "
                f"it, or leave tolerance out to have {self.points} points whatever the gap"
            )
        if self.threshold_mode == "relative" and self.threshold:
            check_value("a relative threshold", self.threshold, float, SHARE)

    def _settle_points(self) -> None:
        if self.points is None:
            first = FIXED_POINTS if self.tolerance is None else FIRST_POINTS
            object.__setattr__(self, "points", first)

    @property
    def first_points(self) -> int:
        """m that every probe is given; of secants, the two ends."""
        if self.method == "secant":
            return 2
        assert self.points is not None  # __post_init__ has settled it
        return self.points

    @property
    def grows(self) -> bool:
        """Whether a probe is given points until its completeness gap is small enough."""
        return self.method == "eap-ig" and self.tolerance is not None

    @property
    def most_points(self) -> int:
        """m that a probe is given at most."""
        return self.max_points if self.grows else self.first_points

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SnapshotConfig:
        """The settings that `as_dict` gave; the names of earlier versions are translated.

        Raises:
            SparksError: a name is unknown or a value is outside its range.
        """
        values = todays_names(values)
        refuse_unknown(cls, values)
        return cls(**values)

    def attribution(self) -> dict[str, Any]:
        """The settings that `edge_attribution` takes."""
        names = ("method", *_OF_POINTS, "positions", "memory_gib")
        return {name: getattr(self, name) for name in names}

    def difference(self, other: SnapshotConfig) -> tuple[str, Any, Any] | None:
        """The first setting by which the scores differ: its name, and its value in each."""
        theirs = other.measurement()
        for name, value in self.measurement().items():
            if value != theirs[name]:
                return name, value, theirs[name]
        return None

    def measurement(self) -> dict[str, Any]:
        """The settings that change the scores: snapshots on one timeline must share them."""
        values = self.as_dict()
        for name in ("memory_gib", "faithfulness", "faithfulness_probes"):
            del values[name]
        silent = _OF_POINTS if self.method == "secant" else () if self.grows else ("max_points",)
        return values | dict.fromkeys(silent)  # what says nothing
