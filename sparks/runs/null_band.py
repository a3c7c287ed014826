"""What an unchanged model gives: the record of a null, as the run folder's `null.json` keeps it.

Torch, numpy and timelines are not needed: whoever reads a run folder reads these. How the numbers
come about is told in `timeline.nulls`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

from sparks.ground.config import todays_names
from sparks.ground.errors import SparksError
from sparks.ground.schema import LIMITS, Amount, Count, Versioned, decode

SCHEMA_VERSION = 1
"""Of `null.json`."""

NullMethod = Literal["resampled", "fresh probes", "weight noise", "seeds"]
METHODS: tuple[NullMethod, ...] = get_args(NullMethod)
_COUNTS = ("births", "prunings", "active")


@dataclass(frozen=True, kw_only=True)
class NullBand:
    """How many heads one rule calls born or pruned where nothing was trained in between.

    Numbers of heads: the median of the draws, and the ends of the middle 95 % of them.

    Raises:
        SparksError: its ends are out of order.
    """

    __pydantic_config__ = LIMITS

    rule: str
    """`paper` or `growth`."""
    method: NullMethod
    """What differs between the two measurements. `resampled`: the probes, drawn from those of the
    run; `fresh probes`: the probes, drawn from a larger pool; `weight noise`: tiny random numbers
    added to the weights; `seeds`: the seed of the training."""
    probes: Count
    """In each of the two measurements."""
    draws: Count
    """Pairs of measurements."""
    births_median: Amount
    births_low: Amount
    births_high: Amount
    """Heads active in the second measurement alone."""
    prunings_median: Amount
    prunings_low: Amount
    prunings_high: Amount
    """Heads active in the first measurement alone."""
    active_median: Amount
    active_low: Amount
    active_high: Amount
    """Heads active in one measurement."""
    source: str
    """In words, for a caption: what was measured, and how often."""
    pool: Count = 0
    """Probes that the sets were drawn from; 0 where none were drawn."""
    base_step: Count = 0
    """Step of the snapshot that is compared with."""
    base_hash: str = ""
    """Fingerprint of the weights measured there."""
    probes_hash: str = ""
    """Hash of the run's probes."""
    settings: str = ""
    """Those that change the scores (`SnapshotConfig.measurement`), as JSON."""
    noise: Amount | None = None
    """Of `weight noise`: standard deviation of what was added, of each matrix's own."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            ends = [getattr(self, f"{name}_{end}") for end in ("low", "median", "high")]
            if sorted(ends) != ends:
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
        schema = decode(Versioned, text).schema
        if schema <= SCHEMA_VERSION:
            return tuple(map(_with_todays_names, decode(_Bands, text).bands))
    except SparksError as error:
        raise SparksError(f"damaged ({error}): run `sparks null` again, or delete it") from error
    raise SparksError(
        f"schema {schema} is newer than this sparks reads ({SCHEMA_VERSION}): upgrade with "
        f"`pip install -U thinking-sparks`"
    )


def _with_todays_names(band: NullBand) -> NullBand:
    with suppress(ValueError, TypeError, RecursionError):  # what is no such text belongs to no run
        settings = todays_names(json.loads(band.settings))
        return replace(band, settings=json.dumps(settings, sort_keys=True))
    return band


@dataclass(frozen=True, kw_only=True)
class _Bands:
    """What it holds in this one."""

    __pydantic_config__ = LIMITS

    bands: tuple[NullBand, ...]
