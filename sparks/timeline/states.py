"""What each head is at each checkpoint, by the rule of growth or by the paper's.

Both give the same record, so that everything that shows a timeline reads either.

Growth (`timeline.growth.rule`): active = in, as its births and prunings say; undecided = not active
as far as is settled, but the interval of its share does not say out; base = active at the first
checkpoint; emergent = active and born. Where L is too little every head is undecided. Where the
first checkpoint has too little, heads that are in at the first with enough are neither base nor
born: they are *undated*, and their changes are named like those of base heads.
Paper ("Thinking Sparks!", https://arxiv.org/abs/2509.25758, "Heads over time"): active = in the
circuit of at least one probe; base = active at the first checkpoint; emergent at t = active at t
and not base; no state is undecided.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from sparks.timeline.growing import Table
from sparks.timeline.growth.rule import GrowthRule

EventKind = Literal["born", "revived", "pruned", "returned", "silenced"]
EVENT_KINDS: tuple[EventKind, ...] = ("born", "revived", "pruned", "returned", "silenced")


@dataclass(frozen=True, kw_only=True)
class Event:
    """A change of one head between a checkpoint and the one before."""

    step: int
    """Checkpoint at which the change is settled."""
    onset: int
    """Checkpoint since which it shows; before `step` where it was settled later."""
    layer: int
    head: int
    kind: EventKind
    cohort: int | None
    """Step of the head's first emergence; None for base heads."""
    frequency: float
    """At `step`."""
    importance: float
    """At `step`: 0 where the head fell silent."""
    share: float
    """Of all score mass at `step`, in even shares."""
    share_low: float
    share_high: float

    @property
    def name(self) -> str:
        """Such as `L5H1`."""
        return f"L{self.layer}H{self.head}"


@dataclass(frozen=True, kw_only=True, eq=False)
class States:
    """Read-only arrays; checkpoints come first."""

    active: Bool[np.ndarray, "checkpoints layers heads"]
    undecided: Bool[np.ndarray, "checkpoints layers heads"]
    base: Bool[np.ndarray, "layers heads"]
    undated: Bool[np.ndarray, "layers heads"]
    """Active as soon as one could tell, at a later checkpoint than the first: neither base nor
    born."""
    emergent: Bool[np.ndarray, "checkpoints layers heads"]
    retained: Bool[np.ndarray, "checkpoints layers heads"]
    cohort: Int[np.ndarray, "layers heads"]
    """Index of the checkpoint of birth; -1 for heads that were not born."""
    onset: Int[np.ndarray, "checkpoints layers heads"]
    """Where a change is settled: index of the checkpoint since which it shows."""
    changes: Mapping[EventKind, Bool[np.ndarray, "checkpoints layers heads"]]

    def __post_init__(self) -> None:
        for values in (*vars(self).values(), *self.changes.values()):
            if isinstance(values, np.ndarray):
                values.setflags(write=False)


class StateTable(ABC):
    """States of every head under one rule, a checkpoint after the other; none is ever changed.

    Args:
        room: checkpoints that are expected; more may come.
    """

    def __init__(self, room: int = 0) -> None:
        self._rows = Table(room)
        self._base: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str, count: int) -> np.ndarray:
        """Of the first `count` checkpoints.

        Names: those of arrays of `States`, kinds of changes, and `num_` before any of these for
        the number of heads.
        """
        return self._rows.column(name, count)

    def states(self, count: int) -> States:
        """As known at the last of the first `count` checkpoints."""
        cohort = np.where(self._cohort < count, self._cohort, -1)
        placed = (self._placed >= 0) & (self._placed < count)
        base = self._placed == 0
        return States(
            **{name: self.column(name, count) for name in ("active", "emergent", "retained")},
            undecided=self._undecided(count),
            onset=self._onset(count),
            base=base,
            undated=placed & ~base & (cohort < 0),
            cohort=cohort,
            changes={kind: self.column(kind, count) for kind in EVENT_KINDS},
        )

    @abstractmethod
    def _undecided(self, count: int) -> Bool[np.ndarray, "count layers heads"]: ...

    @abstractmethod
    def _onset(self, count: int) -> Int[np.ndarray, "count layers heads"]: ...

    def _keep(
        self,
        active: Bool[np.ndarray, "layers heads"],
        turned: Int[np.ndarray, "layers heads"],
        old: Bool[np.ndarray, "layers heads"],
        **more: np.ndarray,
    ) -> None:
        """A row: who is active, who changed and which way; `old` were active before any change."""
        time = len(self._rows)
        if self._base is None:
            self._base = active.copy()
            self._cohort, self._placed = (np.full(active.shape, -1) for _ in range(2))
            """Checkpoint of birth, and at which an old head was first active."""
        changes = _named(turned, old, self._cohort)
        self._cohort[changes["born"]] = time
        self._placed[old & (self._placed < 0)] = time
        heads: dict[str, np.ndarray] = {
            "active": active,
            "emergent": active & (self._cohort >= 0),
            "retained": active & self._base,
            **{str(kind): values for kind, values in changes.items()},
        }
        counts = {f"num_{name}": int(values.sum()) for name, values in heads.items()}
        counts["num_undecided"] = int(more["undecided"].sum()) if more else 0
        self._rows.add(**heads, **more, **counts)


class PaperStates(StateTable):
    """By the paper's rule."""

    _before: Bool[np.ndarray, "layers heads"]

    def add(self, held: Bool[np.ndarray, "layers heads"]) -> None:
        """The next checkpoint, however little L is.

        Args:
            held: the head is in the circuit of at least one probe.
        """
        base, before = (held, held) if self._base is None else (self._base, self._before)
        self._before = held
        self._keep(held, held.astype(np.int8) - before, base)

    def _undecided(self, count: int) -> Bool[np.ndarray, "count layers heads"]:
        return np.broadcast_to(False, (count, *self._cohort.shape))

    def _onset(self, count: int) -> Int[np.ndarray, "count layers heads"]:
        return np.broadcast_to(np.arange(count)[:, None, None], (count, *self._cohort.shape))


class GrowthStates(StateTable):
    """By the rule of growth.

    Args:
        rule: of the run, as far as it has come; it is read, not changed.
        shape: layers and heads of a layer.
        room: checkpoints that are expected.
    """

    def __init__(self, rule: GrowthRule, shape: tuple[int, int], room: int = 0) -> None:
        super().__init__(room)
        self._rule, self._shape = rule, shape
        self._old = np.zeros(shape, dtype=bool)

    def add(self) -> None:
        """The next checkpoint of the rule."""
        at = len(self)
        said = self._rule.row(at)
        inside, change, high, onset = (
            said[name].reshape(self._shape) for name in ("inside", "change", "share_high", "onset")
        )
        if at == self._rule.base:
            self._old = inside
        active = inside & said["enough_loss"]
        undecided = ~active & ((high > 1) | ~said["enough_loss"])
        self._keep(active, change, self._old, undecided=undecided, onset=onset)

    def _undecided(self, count: int) -> Bool[np.ndarray, "count layers heads"]:
        return self.column("undecided", count)

    def _onset(self, count: int) -> Int[np.ndarray, "count layers heads"]:
        return self.column("onset", count)


def specificity(states: States, control: States | None) -> np.ndarray:
    """Whether each born head is specific to the behaviour, as known at the last checkpoint.

    Args:
        states: of the probes of the behaviour.
        control: of the control probes; None where there are none.

    Returns:
        [layers, heads] of strings: `specific` (on the control it was not born and is inactive),
        `shared` (born or active there too), `undecided` (the control cannot tell), or `""` (not
        born, or no control).
    """
    found = np.full(states.base.shape, "", dtype=object)
    if control is not None:
        born = states.cohort >= 0
        shared = (control.cohort >= 0) | control.active[-1]
        silent = ~shared & ~control.undecided[-1]
        found[born] = np.select([shared, silent], ["shared", "specific"], "undecided")[born]
    return found


def _named(
    turned: Int[np.ndarray, "layers heads"],
    old: Bool[np.ndarray, "layers heads"],
    cohort: Int[np.ndarray, "layers heads"],
) -> dict[EventKind, Bool[np.ndarray, "layers heads"]]:
    """Changes by kind; `old` heads were active before any change, `cohort` is -1 of the unborn."""
    up, down, unborn = turned > 0, turned < 0, cohort < 0
    return {
        "born": up & ~old & unborn,
        "revived": up & ~old & ~unborn,
        "pruned": down & ~old,
        "returned": up & old,
        "silenced": down & old,
    }
