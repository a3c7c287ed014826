"""What an unchanged model gives: the record of a null, as the run folder's `null.json` keeps it.

Torch, numpy and timelines are not needed: whoever reads a run folder reads these. How the numbers
come about is told in `nulls`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from sparks.errors import SparksError, reason

SCHEMA_VERSION = 1
"""Of `null.json`."""

NullMethod = Literal["resampled", "fresh probes", "weight noise", "seeds"]
METHODS: tuple[NullMethod, ...] = get_args(NullMethod)
_COUNTS = ("births", "prunings", "active")
_WHOLE = ("probes", "draws", "pool", "base_step")


@dataclass(frozen=True, kw_only=True)
class NullBand:
    """How many heads one rule calls born or pruned where nothing was trained in between.

    Numbers of heads: the median of the draws, and the ends of the middle 95 % of them.

    Raises:
        SparksError: a value is of a wrong type, or its ends are out of order.
    """

    rule: str
    """`paper` or `calibrated`."""
    method: NullMethod
    """What differs between the two measurements. `resampled`: the probes, drawn from those of the
    run; `fresh probes`: the probes, drawn from a larger pool; `weight noise`: tiny random numbers
    added to the weights; `seeds`: the seed of the training."""
    probes: int
    """In each of the two measurements."""
    draws: int
    """Pairs of measurements."""
    births_median: float
    births_low: float
    births_high: float
    """Heads active in the second measurement alone."""
    prunings_median: float
    prunings_low: float
    prunings_high: float
    """Heads active in the first measurement alone."""
    active_median: float
    active_low: float
    active_high: float
    """Heads active in one measurement."""
    source: str
    """In words, for a caption: what was measured, and how often."""
    pool: int = 0
    """Probes that the sets were drawn from; 0 where none were drawn."""
    base_step: int = 0
    """Step of the snapshot that is compared with."""
    base_hash: str = ""
    """Fingerprint of the weights measured there."""
    probes_hash: str = ""
    """Hash of the run's probes."""
    settings: str = ""
    """Those that change the scores (`SnapshotConfig.measurement`), as JSON."""
    noise: float | None = None
    """Of `weight noise`: standard deviation of what was added, of each matrix's own."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SparksError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        for name in ("rule", "source", "base_hash", "probes_hash", "settings"):
            if not isinstance(value := getattr(self, name), str):
                raise SparksError(f"{name} must be text, got {value!r}")
        for name in _WHOLE:
            if type(value := getattr(self, name)) is not int or value < 0:
                raise SparksError(f"{name} must be a whole number, at least 0, got {value!r}")
        if self.noise is not None and not _is_count(self.noise):
            raise SparksError(f"noise must be a number, at least 0, got {self.noise!r}")
        for name in _COUNTS:
            ends = [getattr(self, f"{name}_{end}") for end in ("low", "median", "high")]
            if not all(_is_count(end) for end in ends) or sorted(ends) != ends:
                raise SparksError(
                    f"{name}_low, _median and _high must be numbers in this order, got {ends}"
                )


def to_json(bands: Sequence[NullBand]) -> str:
    """The text of `null.json`."""
    content = {"schema": SCHEMA_VERSION, "bands": [asdict(band) for band in bands]}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> tuple[NullBand, ...]:
    """What `to_json` wrote; fields that are not known are left out.

    Raises:
        SparksError: it is damaged or of a newer schema.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SparksError(_damaged(reason(error))) from error
    if not isinstance(content, dict) or not isinstance(schema := content.get("schema"), int):
        raise SparksError(_damaged("it must be an object with a schema and bands"))
    if schema > SCHEMA_VERSION:
        raise SparksError(
            f"schema {schema} is newer than this sparks reads ({SCHEMA_VERSION}): upgrade with "
            f"`pip install -U thinking-sparks`"
        )
    rows = content.get("bands")
    if not isinstance(rows, list):
        raise SparksError(_damaged("bands must be a list"))
    return tuple(_band(row) for row in rows)


def _band(row: Any) -> NullBand:
    if not isinstance(row, Mapping):
        raise SparksError(_damaged(f"a band must be an object, got {type(row).__name__}"))
    known = {item.name for item in fields(NullBand)}
    try:
        return NullBand(**{name: value for name, value in row.items() if name in known})
    except (TypeError, SparksError) as error:
        raise SparksError(_damaged(reason(error))) from error


def _damaged(why: str) -> str:
    return f"damaged ({why}): run `sparks null` again, or delete it"


def _is_count(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0
