"""Several processes that train one model together: who does what, and one outcome for all.

Work that may fail is never left between two collectives: every process reports a value or an error,
and all of them go on or all of them raise. So none waits for one that has given up. One process
alone, or none started by `torch.distributed`, is the case of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from sparks.ground.errors import SparksError, reason

T = TypeVar("T")


def count() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def index() -> int:
    """This process among them; 0 keeps the run folder."""
    return dist.get_rank() if count() > 1 else 0


@dataclass(frozen=True)
class _Outcome:
    """What a process has to tell the others."""

    value: Any = None
    error: str | None = None


def together(work: Callable[[], T]) -> list[T]:
    """Do `work` in every process; each gets the values of all, in order of process.

    Values travel pickled. Collective: every process must call it.

    Raises:
        SparksError: another process failed; says which one, and its error.
        Exception: what `work` raised here.
    """
    if count() == 1:
        return [work()]
    mine, failure = _Outcome(), None
    try:
        mine = _Outcome(work())
    except Exception as error:  # told to the others first, and raised below
        failure = error
        mine = _Outcome(error=reason(error))
    outcomes: list[Any] = [None] * count()
    dist.all_gather_object(outcomes, mine)
    if failure is not None:
        raise failure
    for process, outcome in enumerate(outcomes):
        if outcome.error is not None:
            raise SparksError(f"process {process} of {count()}: {outcome.error}")
    return [outcome.value for outcome in outcomes]


def first_does(work: Callable[[], T]) -> T:
    """Do `work` in process 0 alone; every process gets its value.

    Collective, and raises, as `together`.
    """
    return together(lambda: work() if index() == 0 else None)[0]  # type: ignore[return-value]
