"""Rows of trackio's store, read back; `conftest` gives the tests a store of their own."""

from __future__ import annotations

from typing import Any

CLOCK = ("timestamp", "runtime", "per_second", "total_flos")


def rows_of(project: str) -> list[dict[str, Any]]:
    """Rows of the one run of a project, in the order they were logged, without clocks."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs(project)
    return [
        {key: value for key, value in row.items() if not any(part in key for part in CLOCK)}
        for row in SQLiteStorage.get_logs(project, run.name, run_id=run.id)
    ]


def is_ours(row: dict[str, Any]) -> bool:
    return any(key.startswith("sparks/") for key in row)
