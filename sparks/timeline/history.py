"""The snapshots of a run in order, and the numbers that were read off each of them, once.

A snapshot is read, its numbers are kept, and it is let go: those that lie in files are read again
only by who asks for one of them, such as for its edges. Nothing at a checkpoint depends on a later
one, so a snapshot that lands adds a row to each table and leaves the others alone:

    measured    numbers of the probes of a group                     (`timeline_numbers.checkpoint`)
    states      of every head under a rule                           (`timeline_states`)
    growth      of every head                                        (`timeline.growth`)
    circuits    heads of a circuit and their growth                  (`timeline_numbers`)
    followed    what a view reads off whole snapshots, edges too                  (`Follower`)

A `History` is a run up to a checkpoint: a longer one shares its tables, a shorter one sees their
beginnings. Where a snapshot in the middle comes or goes, only what follows from rows is done anew.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
from jaxtyping import Int

from sparks.attribution.snapshot import Snapshot
from sparks.probes.probes import CONTROL_GROUP, members
from sparks.runs.run_folder import RunContents, RunStore
from sparks.timeline.growing import Table
from sparks.timeline.growth.rule import Growth, GrowthRule
from sparks.timeline.growth.settings import GrowthConfig, too_little
from sparks.timeline.input import Outline, check_comparable
from sparks.timeline.numbers import CIRCUIT_COLUMNS, checkpoint, circuit_heads
from sparks.timeline.states import GrowthStates, PaperStates, States

Load = Callable[[int], Snapshot]
"""The snapshot of a step, from its file."""


class Follower(ABC):
    """Reads something off every snapshot of a run, one after the other from the first.

    Args:
        group: whose probes count; None for all but those of the group `control`.
    """

    def __init__(self, group: str | None) -> None:
        self.group = group

    def anew(self) -> Follower:
        """One that has read nothing."""
        return type(self)(self.group)

    @property
    def key(self) -> Hashable:
        """Followers of one kind and key read the same: one of them is enough for a run."""
        return self.group

    @abstractmethod
    def read(self, history: History, snapshot: Snapshot) -> Any:
        """What is read off a snapshot.

        Args:
            history: up to the snapshot, which is its last.
            snapshot: whole.
        """


class History(Sequence[Snapshot]):
    """Snapshots in order of step; one that lies in a file is read when it is asked for."""

    def __init__(self, core: _Core, count: int) -> None:
        self._core, self._count = core, count

    @classmethod
    def of(cls, snapshots: Sequence[Snapshot]) -> History:
        """Of snapshots in any order, which are kept as they are."""
        if isinstance(snapshots, History):
            return snapshots
        core = _Core(None, None, len(snapshots))
        for snapshot in sorted(snapshots, key=lambda snapshot: snapshot.step):
            core.add(snapshot)
        return cls(core, len(snapshots))

    @classmethod
    def empty(
        cls,
        load: Load,
        *,
        group: str | None = None,
        followers: Sequence[Follower] = (),
        room: int = 0,
    ) -> History:
        """Of a run whose snapshots lie in files.

        Args:
            load: reads one of them again.
            group: whose numbers are read off every snapshot as it comes; None for all probes but
                those of the group `control`, and for these. Others take another reading.
            followers: what is going to be asked of every snapshot, likewise.
            room: snapshots that are expected.
        """
        return cls(_Core(load, group, room, followers), 0)

    @classmethod
    def read(
        cls,
        store: RunStore,
        *,
        group: str | None = None,
        followers: Sequence[Follower] = (),
        until: int | None = None,
    ) -> tuple[History, RunContents]:
        """Of a run folder, and what else it holds, as `RunStore.read_each`; as for `empty`."""
        room = len(store.steps())
        history = cls.empty(store.load, group=group, followers=followers, room=room)

        def take(snapshot: Snapshot) -> None:
            nonlocal history
            history = history.extended(snapshot)

        contents = store.read_each(take, until=until)
        return history.without(contents.strangers), contents

    # -- snapshots ---------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Snapshot: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Snapshot]: ...

    def __getitem__(self, index: int | slice) -> Snapshot | Sequence[Snapshot]:
        """A snapshot, whole; the first ones of a run are a `History` of their own.

        Raises:
            SparksError: its file is gone or damaged by now.
        """
        if isinstance(index, slice):
            rows = range(self._count)[index]
            if rows == range(len(rows)):
                return History(self._core, len(rows))
            return tuple(self._core.snapshot(row) for row in rows)
        return self._core.snapshot(range(self._count)[index])

    @property
    def outlines(self) -> Sequence[Outline]:
        """Of each snapshot."""
        return self._core.outlines[: self._count]

    @property
    def expected(self) -> int:
        """Snapshots, with those that are still going to be read."""
        return max(self._count, self._core.room)

    @property
    def steps(self) -> list[int]:
        """Of each snapshot."""
        return [outline.step for outline in self.outlines]

    def extended(self, snapshot: Snapshot) -> History:
        """With another snapshot, wherever its step belongs."""
        core, count = self._core, self._count
        if len(core.outlines) != count:  # another history has gone on from here
            core = core.taken(range(count))
        core.add(snapshot)
        if count and snapshot.step < core.outlines[count - 1].step:
            steps = [outline.step for outline in core.outlines]
            core = core.taken(np.argsort(steps, kind="stable").tolist())
        longer = History(core, count + 1)
        if longer.is_comparable:
            for follower in core.followers:
                longer.follow(follower)
        return longer

    def without(self, steps: Collection[int]) -> History:
        """Without the snapshots of these steps."""
        rows = [row for row, step in enumerate(self.steps) if step not in steps]
        if len(rows) == self._count:
            return self
        return History(self._core.taken(rows), len(rows))

    # -- numbers -----------------------------------------------------------------------------

    def check(self) -> None:
        """The snapshots may stand on one timeline.

        Raises:
            SparksError: two are of one step, or they differ in probes, graph or settings.
        """
        if not self.is_comparable:
            check_comparable(self.outlines)

    @property
    def is_comparable(self) -> bool:
        """The snapshots may stand on one timeline, as far as is known without looking at all."""
        return self._core.is_alike and self._core.is_rising

    def chosen(self, group: str | None) -> Int[np.ndarray, " probes"]:
        """Indices of the probes of a group."""
        return self._core.chosen(group)

    def measured(self, group: str | None) -> Callable[[str], np.ndarray]:
        """Columns of `timeline_numbers.checkpoint` of the probes of a group, by name."""
        table = self._core.measured(group, self._count)
        return lambda name: table.column(name, self._count)

    @property
    def settings(self) -> int:
        """Circuit settings of the levels: those of the grid, or 1 where not all have the same."""
        return self._core.settings

    def states(
        self, rule: str, group: str | None, config: GrowthConfig
    ) -> tuple[States, Callable[[str], np.ndarray]]:
        """Of the probes of a group under a rule, and columns of `StateTable` by name.

        `config` is of the rule of growth; the paper's has no settings.
        """
        table = self._core.states(rule, group, config, self._count)
        return table.states(self._count), lambda name: table.column(name, self._count)

    def growth(self, group: str | None, config: GrowthConfig) -> Growth:
        """Of every head, layer by layer, on the probes of a group."""
        return self._core.growth(group, config, self._count).result(self._count)

    def circuits(self, group: str | None, config: GrowthConfig) -> dict[str, np.ndarray]:
        """Columns of `timeline_numbers.circuit_heads` of the probes of a group."""
        table = self._core.circuits(group, config, self._count)
        return {name: table.column(name, self._count) for name in CIRCUIT_COLUMNS}

    def follow(self, follower: Follower) -> list[Any]:
        """What it reads off every snapshot, in order; no snapshot is read for it twice."""
        return self._core.followed(follower, self._count)[: self._count]


class _Core:
    """What the histories of a run share: it only ever grows."""

    def __init__(
        self, load: Load | None, group: str | None, room: int, followers: Sequence[Follower] = ()
    ) -> None:
        self.load, self.group, self.room = load, group, room
        self.followers = [follower.anew() for follower in followers]
        self.outlines: list[Outline] = []
        self.run_id = ""
        """Of the run; empty where no snapshot has one."""
        self.is_alike = self.is_rising = True
        """All may stand on one timeline; once they may not, no numbers are read."""
        self.settings = 1
        self.kept: dict[int, Snapshot] = {}
        self._measured: dict[str | None, Table] = {}
        self._states: dict[Any, GrowthStates | PaperStates] = {}
        self._growth: dict[Any, GrowthRule] = {}
        self._circuits: dict[Any, Table] = {}
        self._followed: dict[Hashable, tuple[Follower, list[Any]]] = {}

    def add(self, snapshot: Snapshot) -> None:
        """The numbers of another snapshot, behind the others."""
        row, first = len(self.outlines), self.outlines[0] if self.outlines else None
        outline = Outline.of(snapshot, first)
        run_id = self.run_id or outline.meta.run_id
        is_alike = self.is_alike and outline.alike == (first or outline).alike
        is_alike &= outline.meta.run_id in ("", run_id)
        settings = self.settings if first else max(1, len(outline.grid))
        if settings > 1 and outline.grid != (first or outline).grid:
            settings = 1
        numbers = {}
        if is_alike and (first is None or settings == self.settings):
            full = [group for group, table in self._measured.items() if len(table) == row]
            numbers = {
                group: checkpoint(snapshot, self._chosen(group, outline), graded=settings > 1)
                for group in (full if first else self._groups(outline))
            }
        # Nothing was changed until here: a snapshot whose numbers cannot be read leaves no trace.
        self.outlines.append(outline)
        self.kept[row] = snapshot
        self._let_go()
        self.run_id, self.is_alike = run_id, is_alike
        self.is_rising &= not row or outline.step > self.outlines[row - 1].step
        if settings != self.settings:  # no longer one grid: all are counted by their one setting
            self.settings = settings
            self._measured, self._states, self._circuits = {}, {}, {}
        for group, values in numbers.items():
            self._measured.setdefault(group, Table(self.room)).add(**values)

    def taken(self, rows: Sequence[int]) -> _Core:
        """A core of its own with these snapshots, in this order; no file is read for it."""
        out = _Core(self.load, self.group, self.room, self.followers)
        out.outlines = [self.outlines[row] for row in rows]
        out.kept = {new: self.kept[old] for new, old in enumerate(rows) if old in self.kept}
        out._let_go()
        if not rows:
            return out
        first, *others = out.outlines
        run_ids = {one.meta.run_id for one in out.outlines} - {""}
        out.run_id = next(iter(run_ids), "")
        out.is_alike = len(run_ids) < 2 and all(one.alike == first.alike for one in others)
        out.is_rising = all(one.step < then.step for one, then in pairwise(out.outlines))
        is_graded = bool(first.grid) and all(one.grid == first.grid for one in others)
        out.settings = len(first.grid) if is_graded else 1
        same = first.probe_groups == self.outlines[0].probe_groups
        if out.is_alike and same and out.settings == self.settings:
            out._measured = {
                group: table.taken(rows)
                for group, table in self._measured.items()
                if max(rows) < len(table)
            }
        return out

    def snapshot(self, row: int) -> Snapshot:
        """Whole: one that is held, or read from its file."""
        if row in self.kept:
            return self.kept[row]
        assert self.load is not None, "snapshots without files are all kept"
        found = self.load(self.outlines[row].step)
        self.kept[row] = found
        self._let_go()
        return found

    def _let_go(self) -> None:
        """Of snapshots in files the first and the last two are held, which views compare."""
        if self.load is not None:
            last = len(self.outlines) - 1
            for row in self.kept.keys() - {0, last - 1, last}:
                del self.kept[row]

    # -- tables ------------------------------------------------------------------------------

    def measured(self, group: str | None, count: int) -> Table:
        """At least `count` rows."""
        table = self._measured.setdefault(group, Table(max(self.room, count)))
        for row in range(len(table), count):
            snapshot = self.snapshot(row)
            table.add(**checkpoint(snapshot, self.chosen(group), graded=self.settings > 1))
        return table

    def states(
        self, rule: str, group: str | None, config: GrowthConfig, count: int
    ) -> GrowthStates | PaperStates:
        """At least `count` rows."""
        room, shape = max(self.room, count), self.outlines[0].graph.head_sources.shape
        if rule == "paper":
            held = self.measured(group, count).column("frequency")
            paper = self._states.setdefault((rule, group), PaperStates(room))
            assert isinstance(paper, PaperStates)
            for row in range(len(paper), count):
                paper.add(held[row] > 0)
            return paper
        growth = self.growth(group, config, count)
        table = self._states.setdefault((rule, group, config), GrowthStates(growth, shape, room))
        assert isinstance(table, GrowthStates)
        for _ in range(len(table), count):
            table.add()
        return table

    def growth(self, group: str | None, config: GrowthConfig, count: int) -> GrowthRule:
        """At least `count` checkpoints."""
        measured, key = self.measured(group, count), (group, config)
        totals, losses = measured.column("head_totals"), measured.column("losses")
        if key not in self._growth:
            room = max(self.room, count)
            self._growth[key] = GrowthRule(totals[0], losses[0], config, room=room)
        rule = self._growth[key]
        for row in range(len(rule), count):
            rule.add(totals[row], losses[row])
        return rule

    def circuits(self, group: str | None, config: GrowthConfig, count: int) -> Table:
        """At least `count` rows."""
        measured, key = self.measured(group, count), (group, config.least_loss)
        table = self._circuits.setdefault(key, Table(max(self.room, count)))
        sizes, little = measured.column("sizes"), too_little(measured.column("loss"), config)
        for row in range(len(table), count):
            no = bool(little[row] or little[0])
            table.add(**circuit_heads(sizes[row], sizes[0], self.settings, little=no))
        return table

    def followed(self, follower: Follower, count: int) -> list[Any]:
        """At least `count` rows."""
        key = (type(follower), follower.key)
        if key not in self._followed:
            self._followed[key] = (follower.anew(), [])
        first, rows = self._followed[key]
        for row in range(len(rows), count):
            rows.append(first.read(History(self, row + 1), self.snapshot(row)))
        return rows

    def chosen(self, group: str | None) -> Int[np.ndarray, " probes"]:
        """Indices of the probes of a group."""
        return self._chosen(group, self.outlines[0])

    def _groups(self, outline: Outline) -> list[str | None]:
        """Of which every snapshot's numbers are read as it comes."""
        if self.load is None:
            return []
        names = set(outline.probe_groups)
        if self.group is None:
            beside = CONTROL_GROUP in names and len(names) > 1
            return [None, CONTROL_GROUP] if beside else [None] if names else []
        return [self.group] if self.group in names else []

    def _chosen(self, group: str | None, outline: Outline) -> np.ndarray:
        return np.array(members(outline.probe_groups, group), dtype=np.int64)
