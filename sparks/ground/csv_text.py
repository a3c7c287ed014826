"""Tables as CSV that neither a terminal nor a spreadsheet takes for commands. No torch.

1. What does not print stands as escapes such as `\\x1b`, in cells and in names of columns.
2. Text that a spreadsheet would calculate (it begins with =, +, - or @) gets a `'` in front, which
   a spreadsheet takes for the mark of text. Numbers stay numbers, also where they are text.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from sparks.ground.errors import printable

_CALCULATED = tuple(
    "=+-@\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}"
    "\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)


def csv_text(frame: pd.DataFrame) -> str:
    """The columns of a frame, without its index."""
    shown = frame.copy(deep=False)
    for place, dtype in enumerate(frame.dtypes):
        if not is_numeric_dtype(dtype):
            shown.isetitem(place, frame.iloc[:, place].map(_cell, na_action="ignore").array)
    shown.columns = pd.Index([_cell(name) for name in frame.columns])
    return shown.to_csv(index=False, lineterminator="\n")


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_CALCULATED) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
