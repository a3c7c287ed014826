"""What each head is at each checkpoint, by the paper's rule or by the calibrated one.

Both give the same record, so that everything that shows a timeline reads either.

Paper ("Thinking Sparks!", https://arxiv.org/abs/2509.25758, "Heads over time"): active = in the
circuit of at least one probe; base = active at the first checkpoint; emergent at t = active at t
and not base; no state is undecided. Calibrated: `sparks.calibration`; emergent = active and born.
A head that is undecided at the first checkpoint and active later, without a rise beyond luck, is
neither base nor born: it is *undated*, and its changes are named like those of base heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from sparks.calibration import Decisions

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
    inclusion: float
    """At `step`."""
    inclusion_low: float
    inclusion_high: float

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
    """Active by now, but undecided at the first checkpoint: neither base nor born."""
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


def paper_states(active: Bool[np.ndarray, "checkpoints layers heads"]) -> States:
    """By the paper's rule, from `active` = in the circuit of at least one probe."""
    turned = np.zeros(active.shape, dtype=np.int8)
    turned[1:] = active[1:].astype(np.int8) - active[:-1]
    base = active[0].copy()
    return States(
        active=active,
        undecided=np.zeros_like(active),
        base=base,
        undated=np.zeros_like(base),
        emergent=active & ~base,
        retained=active & base,
        cohort=_first((turned > 0) & ~base),
        onset=np.broadcast_to(np.arange(len(active))[:, None, None], active.shape).copy(),
        changes=_named(turned, base),
    )


def calibrated_states(decisions: Decisions) -> States:
    """By the calibrated rule."""
    active = decisions.state == 1
    base = active[0].copy()
    changes = _named(decisions.change, decisions.old)
    cohort = _first(changes["born"])
    times = np.arange(len(active))[:, None, None]
    return States(
        active=active,
        undecided=decisions.state == 0,
        base=base,
        undated=decisions.old & ~base,
        emergent=active & (cohort >= 0) & (times >= cohort),
        retained=active & base,
        cohort=cohort,
        onset=decisions.onset,
        changes=changes,
    )


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
    turned: Int[np.ndarray, "checkpoints layers heads"], old: Bool[np.ndarray, "layers heads"]
) -> dict[EventKind, Bool[np.ndarray, "checkpoints layers heads"]]:
    """Changes by kind; `old` heads were active before any change."""
    up, down = turned > 0, turned < 0
    new = up & ~old
    times = np.arange(len(turned))[:, None, None]
    born = new & (times == _first(new))
    return {
        "born": born,
        "revived": new & ~born,
        "pruned": down & ~old,
        "returned": up & old,
        "silenced": down & old,
    }


def _first(
    happens: Bool[np.ndarray, "checkpoints layers heads"],
) -> Int[np.ndarray, "layers heads"]:
    """Index of the first checkpoint at which it happens, -1 where it does not."""
    return np.where(happens.any(axis=0), happens.argmax(axis=0), -1)
