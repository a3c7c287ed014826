"""Arrays that grow by a row at a time. What was handed out stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Table:
    """Columns of rows that are added together, each a number or an array of one shape.

    Args:
        room: rows that are expected; more may come.
    """

    def __init__(self, room: int = 0) -> None:
        self._columns: dict[str, np.ndarray] = {}
        self._count, self._room = 0, room

    def __len__(self) -> int:
        return self._count

    def add(self, **row: Any) -> None:
        """Another row; the first one sets the shapes and types."""
        for name, value in row.items():
            column = self._columns.get(name)
            if column is None or len(column) == self._count:
                column = self._columns[name] = self._roomier(column, np.asarray(value))
            column[self._count] = value
        self._count += 1

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns."""
        return tuple(self._columns)

    def column(self, name: str, count: int | None = None) -> np.ndarray:
        """The first `count` rows of a column, read-only; None for all of them."""
        view = self._columns[name][: self._count if count is None else count]
        view.flags.writeable = False
        return view

    def taken(self, rows: Sequence[int]) -> Table:
        """A table of its own with these rows, in this order."""
        out = Table()
        out._columns = {name: values[list(rows)] for name, values in self._columns.items()}
        out._count = len(rows)
        return out

    def _roomier(self, column: np.ndarray | None, row: np.ndarray) -> np.ndarray:
        rows = max(self._room, 2 * self._count, 8)
        out = np.empty((rows, *row.shape), row.dtype)  # what is not written takes no memory
        if column is not None:
            out[: self._count] = column[: self._count]
        return out
