"""A run folder that grows while it is looked at: what is new since the last look, and the pace.

A look lists the folder and reads only files whose time, size or inode have changed, so that looking
every second at a run of a thousand snapshots costs a listing. Nothing is written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

from sparks.attribution.snapshot import Snapshot, SnapshotMeta
from sparks.ground.errors import SparksError, reason
from sparks.runs.evaluations import FOLDER as EVALUATIONS
from sparks.runs.run_folder import FOLDER, RunContents, RunStore
from sparks.runs.trainer_log import last_step
from sparks.timeline.history import Follower, History
from sparks.timeline.timeline import Rule, Timeline

Mark = tuple[int, int, int]
"""Time of change in ns, size in bytes, inode."""

_EVALUATION = re.compile(r"step-\d+\.(?:jsonl|failed)\Z")
_READ = re.compile(r"(?:step-(\d+)\.(?:safetensors|failed)|(?:metrics|null|run)\.json)\Z")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)\Z")
_INTERVALS = 5  # the pace is that of the last ones


def marks(folder: Path) -> dict[str, Mark]:
    """What tells whether a file of the run folder is another: by name, of the files that are read.

    None where there is no folder.

    Raises:
        SparksError: the folder cannot be listed.
    """
    found: dict[str, Mark] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _READ.match(entry.name):
                    with suppress(FileNotFoundError):  # set aside since the listing
                        found[entry.name] = _mark(entry)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SparksError(f"cannot read {folder} ({error.strerror or error})") from error
    with suppress(OSError), os.scandir(folder / EVALUATIONS) as entries:
        for entry in entries:
            if _EVALUATION.match(entry.name):
                with suppress(FileNotFoundError):
                    found[f"{EVALUATIONS}/{entry.name}"] = _mark(entry)
    return found


def _mark(entry: os.DirEntry[str]) -> Mark:
    stat = entry.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What one look found. Steps are in order."""

    landed: tuple[int, ...] = ()
    """Steps that had no readable snapshot."""
    replaced: tuple[int, ...] = ()
    """Steps whose snapshot is another."""
    set_aside: tuple[int, ...] = ()
    """Steps that a resumed training is going to redo."""
    removed: tuple[int, ...] = ()
    """Steps whose file is gone otherwise."""
    problems: tuple[str, ...] = ()
    """One line each, told once."""


class RunFollower:
    """Reads a run folder again and again, each snapshot once: what lands is added to what is known.

    Args:
        path: the run folder, or a trainer's output folder that holds one as `sparks`. Neither has
            to exist yet.
        group: count only the probes of this group.
        rule: how heads are judged.
        followers: what is going to be asked of every snapshot (`run_history`).

    Raises:
        SparksError: `path` is a file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        group: str | None = None,
        rule: Rule = "growth",
        followers: Sequence[Follower] = (),
    ) -> None:
        self.path, self.group, self.rule, self._followers = Path(path), group, rule, followers
        if self.path.is_file():
            raise SparksError(f"{path} is a file: give a run folder, or a trainer's output folder")
        self.folder: Path | None = None
        """Where the snapshots lie; None while there are none."""
        self._marks: dict[str, Mark] = {}
        self._history: History | None = None
        self._damaged: dict[int, str] = {}
        self._run_id = ""
        self._others: dict[int, str] = {}
        """Runs of the snapshots that are not of this one, by step."""
        self._mixed: list[str] = []
        self._log: RunContents | None = None
        self._told: set[str] = set()

    @property
    def left_out(self) -> tuple[str, ...]:
        """A line for each snapshot file that cannot be read, and one for those of another run."""
        return (*self._damaged.values(), *self._mixed)

    @property
    def problems(self) -> tuple[str, ...]:
        """A line for each file that cannot be read, and each step without a snapshot."""
        return (*self.left_out, *(self._log.problems if self._log else ()))

    def poll(self) -> Changes | None:
        """Look once; None where nothing has changed.

        Raises:
            SparksError: the folder cannot be listed.
        """
        folder = self.folder or self._find()
        if folder is None:
            return None
        found = marks(folder)
        if found == self._marks:
            return None
        store = RunStore(folder)
        steps, before = _steps(store, found), _steps(store, self._marks)
        logs = [{n: m for n, m in all_.items() if ".saf" not in n} for all_ in (found, self._marks)]
        if logs[0] != logs[1] or self._log is None:
            self._log = store.read_beside()
        gone = [step for step in before if step not in steps]
        fresh = [step for step in steps if steps[step] != before.get(step)]
        landed, replaced = self._load(store, fresh, gone)
        aside = [s for s in gone if store.file(s).with_suffix(".safetensors.stale").exists()]
        self._marks, self.folder = found, folder if steps else None
        return Changes(
            landed=tuple(landed),
            replaced=tuple(replaced),
            set_aside=tuple(aside),
            removed=tuple(step for step in gone if step not in aside),
            problems=self._untold(),
        )

    def _find(self) -> Path | None:
        folders = (self.path, self.path / FOLDER)
        return next((folder for folder in folders if RunStore(folder).steps()), None)

    def _load(
        self, store: RunStore, fresh: Sequence[int], gone: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Read these steps and forget those; returns the steps that landed and were replaced."""
        history = self._history or History.empty(
            store.load, group=self.group, followers=self._followers, room=len(fresh)
        )
        known = set(history.steps)
        history = history.without({*fresh, *gone})
        for step in (*fresh, *gone):
            self._told.discard(self._damaged.pop(step, ""))
            self._others.pop(step, None)
        history = self._extended(store, history, fresh)
        run_ids = self._others | {one.step: one.meta.run_id for one in history.outlines}
        run_ids = dict(sorted(run_ids.items()))
        self._run_id, others, self._mixed = store.run_of(run_ids)
        back = self._others.keys() - {*others}  # the folder is theirs by now
        self._others = {step: run_ids[step] for step in others}
        history = self._extended(store, history.without(others), sorted(back))
        self._history = history or None
        now = set(history.steps)
        return sorted(now - known), [step for step in fresh if step in now & known]

    def _extended(self, store: RunStore, history: History, steps: Sequence[int]) -> History:
        """With the snapshots of these steps; those known to be of another run are put aside."""
        for step in steps:
            try:
                snapshot = store.load(step)
                if self._run_id and snapshot.meta.run_id not in ("", self._run_id):
                    self._others[step] = snapshot.meta.run_id
                else:
                    history = history.extended(snapshot)
            except SparksError as error:
                self._damaged[step] = str(error)
            except Exception as error:  # whatever a file holds: the others are shown
                self._damaged[step] = f"{store.file(step)}: cannot be read ({reason(error)})"
        return history

    def ends(self) -> list[Snapshot]:
        """The first snapshot and the last two, each once.

        Those that were not among them when they were read are read again.

        Raises:
            SparksError: such a file is gone or damaged by now.
        """
        history = self._history or ()
        last = len(history) - 1
        return [history[index] for index in sorted({0, last - 1, last} & {*range(last + 1)})]

    def _untold(self) -> tuple[str, ...]:
        fresh = tuple(problem for problem in self.problems if problem not in self._told)
        self._told = set(self.problems)
        return fresh

    def timeline(self) -> Timeline | None:
        """The timeline of what was read; None where no snapshot can be.

        Raises:
            SparksError: the snapshots do not fit together, or no probe is in the group.
        """
        if not self._history or self.folder is None:
            return None
        return Timeline(
            self._history,
            metrics=self._log.metrics if self._log else (),
            name=RunStore(self.folder).name,
            problems=self.problems,
            group=self.group,
            rule=self.rule,
            nulls=self._log.nulls if self._log else (),
            evaluations=self._log.evaluations if self._log else (),
            probes=self._log.probes if self._log else None,
        )


def _steps(store: RunStore, found: Mapping[str, Mark]) -> dict[int, Mark]:
    """Marks of the snapshots, by step, in order."""
    steps = {int(match[1]) for name in found if (match := _READ.match(name)) and match[1]}
    files = {step: store.file(step).name for step in sorted(steps)}
    return {step: found[name] for step, name in files.items() if name in found}


# -- pace ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pace:
    """When what comes next is expected, in seconds since 1970, from the times of the snapshots."""

    last_at: float
    """When the last snapshot was taken."""
    next_step: int
    """The next snapshot's, if they go on as the last two did."""
    next_at: float
    end_at: float | None
    """None where the trainer's last step is not known."""


def pace(metas: Sequence[SnapshotMeta], max_steps: int | None = None) -> Pace | None:
    """From the median time a step of the last intervals, which a pause between two hardly moves.

    Args:
        metas: of the snapshots, in order of step.
        max_steps: the trainer's last step.

    Returns:
        None where the times of two snapshots are not known, or the last step is reached.
    """
    known = [(meta.step, at) for meta in metas if (at := taken_at(meta)) is not None]
    known = known[-1 - _INTERVALS :]
    rates = [
        (later - earlier) / (step - before)
        for (before, earlier), (step, later) in pairwise(known)
        if later > earlier
    ]
    if not rates or (max_steps is not None and known[-1][0] >= max_steps):
        return None
    (before, _), (last, last_at) = known[-2:]
    rate, next_step = median(rates), 2 * last - before
    if max_steps is not None:
        next_step = min(next_step, max_steps)
    return Pace(
        last_at=last_at,
        next_step=next_step,
        next_at=last_at + rate * (next_step - last),
        end_at=None if max_steps is None else last_at + rate * (max_steps - last),
    )


def taken_at(meta: SnapshotMeta) -> float | None:
    """Seconds since 1970; None where the file does not say it readably."""
    try:
        at = datetime.fromisoformat(meta.created)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def max_steps_of(folder: Path) -> int | None:
    """The trainer's last step, as the newest `checkpoint-*` beside the run folder tells it."""
    try:
        beside = Path(os.path.abspath(folder)).parent
        found = [(int(m[1]), n) for n in os.listdir(beside) if (m := _CHECKPOINT.match(n))]
        if not found:
            return None
        return last_step(beside / max(found)[1])
    except OSError:
        return None
