"""The typechecker of the test suite: shapes and types of arrays, nothing else.

Wrong arguments of other kinds must reach sparks' own error messages, which the tests read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_ARRAYS = ("Float[", "Float32[", "Int[", "Bool[")
_CONF = BeartypeConf(is_pep484_tower=True)


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with those of its annotations that give an array's shape checked at each call."""
    annotations = getattr(function, "__annotations__", {})
    arrays = {name: kind for name, kind in annotations.items() if _is_array(kind)}
    if not arrays:
        return function
    function.__annotations__ = arrays
    return beartype(function, conf=_CONF)


def _is_array(annotation: Any) -> bool:
    text = annotation if isinstance(annotation, str) else repr(annotation)
    return any(name in text for name in _ARRAYS)
