"""The door: types, ranges and sizes of all that is read from a disk. No code behind it asks again.

A file is refused by kind and size before it is opened (`files.read_file`). JSON is then read into
the record that is to hold it (`decode`): its annotations are the schema, and its limits are named
here. Arrays pass a table of type, shape and range (`Spec`). These are the tables:

    step-*.safetensors       `snapshot.SnapshotMeta`, `_Header`, `ARRAYS`, and a checksum
    metrics.json             `store._LOG`
    null.json                `null_bands.NullBand`
    evaluation/*.jsonl, a study's answers     `evaluation.samples_file.Header`, `SampleLine`
    study.json               `effects.plan.Plan`
    think.json               `think.record.ThinkRecord`
    curves of faithfulness   `faithfulness.results.FaithfulnessCurves`; scores for MIB `mib._File`
    trainer_state.json       `trainer_log._State`
    *.failed                 `files.read_failures`

A field that a record has and this file does not name is bounded too: text by `LIMITS`, and no
number is nan or infinite. Fields that a record does not have are left out, so that a later sparks
may add some. JSON nests 200 deep at most (pydantic's reader).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from sparks.ground.errors import SparksError

MOST_NUMBER = 3.4e38
"""What 32 bits hold: sums and squares of it fit in 64."""
MOST_VALUE = 1e15
"""In an array: sums of squares of it fit in 32 bits."""
MOST_COUNT = 2**53
"""Beyond it, whole numbers are no longer exact in frames and pages."""
MOST_TEXT = 10_000
"""Characters of a name, a path, a setting."""

LIMITS = ConfigDict(strict=True, allow_inf_nan=False, str_max_length=MOST_TEXT)
"""`__pydantic_config__` of a record that is read."""

T = TypeVar("T")


def is_number(value: Any) -> bool:
    """A whole or broken number within `MOST_NUMBER`; nan and truth values are none."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and -MOST_NUMBER <= value <= MOST_NUMBER


def _plain(value: Any) -> Any:
    """JSON whose numbers and texts are bounded."""
    if isinstance(value, dict):
        for name, item in value.items():
            _plain(name)
            _plain(item)
    elif isinstance(value, list):
        for item in value:
            _plain(item)
    elif isinstance(value, str):
        if len(value) > MOST_TEXT:
            raise ValueError(f"text must have at most {MOST_TEXT} characters")
    elif not (value is None or isinstance(value, bool) or is_number(value)):
        raise ValueError(f"numbers must be finite and within {MOST_NUMBER:g}")
    return value


def _scalar(value: Any) -> Any:
    if isinstance(value, dict | list):
        raise ValueError("must be text, a number, true, false or null")
    return _plain(value)


Step = Annotated[int, Field(ge=0, lt=MOST_COUNT)]
Count = Annotated[int, Field(ge=0, lt=MOST_COUNT)]
Positive = Annotated[int, Field(ge=1, lt=MOST_COUNT)]
Size = Annotated[int, Field(ge=1, le=100_000)]
"""Of a model: layers, or heads a layer."""
Number = Annotated[float, Field(ge=-MOST_NUMBER, le=MOST_NUMBER)]
Amount = Annotated[float, Field(ge=0, le=MOST_NUMBER)]
Share = Annotated[float, Field(ge=0, le=1)]
LongText = Annotated[str, Field(max_length=2**24)]
"""A problem, or what a model wrote."""
Scalar = Annotated[Any, AfterValidator(_scalar)]
"""A setting."""
Plain = Annotated[Any, AfterValidator(_plain)]
"""Any JSON."""


def decode(kind: type[T], content: str | bytes) -> T:
    """The record that a JSON text holds.

    Args:
        kind: a dataclass with `LIMITS`, or another type of annotations.
        content: the text, or its UTF-8.

    Raises:
        SparksError: it is not JSON, or breaks a rule of `kind`: the first fault, on one line.
    """
    try:
        return _adapter(kind).validate_json(content)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SparksError(_told(error)) from None


@dataclass(frozen=True, kw_only=True)
class Versioned:
    """What a JSON file says of itself, whatever its version."""

    __pydantic_config__ = LIMITS

    schema: Positive
    kind: str = ""


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def _told(error: ValidationError) -> str:
    """`meta.seconds must be a valid number, got 'x'`."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part)[:40] for part in first["loc"]) or "it"
    if first["type"] == "json_invalid":
        return f"not JSON ({first['ctx']['error']})"
    if first["type"] == "missing":
        return f"lacks {place!r}"
    said = " ".join(first["msg"].removeprefix("Value error, ").split())
    said = said.replace("Input should", "must")
    if first["type"] == "value_error" and isinstance(first["input"], dict):  # says what it got
        return f"{place}: {said}"
    return f"{place} {said}, got {_short(first['input'])}"


def _short(value: Any) -> str:
    """The value, or its start."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- arrays --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """What an array must be."""

    dtype: Any
    shape: str
    """Names of its axes: `probes layers heads`."""
    low: float | None = -MOST_VALUE
    """Least value; None where any will do, infinite ones too."""
    high: float = MOST_VALUE
    may_lack: bool = False
    """nan stands where nothing was measured."""

    def check_shape(self, name: str, array: Any, sizes: Mapping[str, int]) -> None:
        """Check the lengths of the axes.

        Raises:
            SparksError: one differs.
        """
        wanted, found = tuple(sizes[axis] for axis in self.shape.split()), np.shape(array)
        if found != wanted:
            raise SparksError(f"{name} must have shape {wanted}, found {found}")

    def check_type(self, name: str, array: np.ndarray) -> None:
        """Check the type of the elements.

        Raises:
            SparksError: it is another.
        """
        if array.dtype != self.dtype:
            raise SparksError(f"{name} must be {np.dtype(self.dtype)}, found {array.dtype}")

    def check_range(self, name: str, array: np.ndarray) -> None:
        """Check all values, in one pass for each end.

        Raises:
            SparksError: one lies outside.
        """
        if self.low is None or not array.size:
            return
        if array.dtype == np.bool_:  # any byte may stand in a file
            array = array.view(np.uint8)
        ends = (np.fmin, np.fmax) if self.may_lack else (np.minimum, np.maximum)
        least, most = (float(end.reduce(array, axis=None)) for end in ends)
        if self.may_lack and np.isnan(least):
            return
        if not (self.low <= least and most <= self.high):
            raise SparksError(
                f"{name} must lie from {self.low:g} to {self.high:g}, found {least:g} to {most:g}"
            )
