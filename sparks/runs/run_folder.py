"""The run folder: one safetensors file a snapshot, the trainer's log, the probes. No torch.

    RUN/                            `OUTPUT_DIR/sparks` beside a trainer
      step-00000010.safetensors     one snapshot
      metrics.json                  the trainer's log so far: [{"step": 1, "loss": 2.3, ...}, ...]
      probes.jsonl                  the probes that were measured
      step-00000020.failed          why a step has no snapshot
      evaluation/                   sampled answers of the checkpoints (`runs.evaluations`)
      run.json, attempt-1/          the run's id, and an earlier run (`run_identity`)
      .lock                         while it is written (`run_lock`)

Files are written under a temporary name, flushed to the disk and renamed, so that no reader ever
meets half a file. Saving a step again replaces it.
"""

from __future__ import annotations

import json
import math
import operator
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from sparks.attribution.snapshot import DamagedError, Snapshot
from sparks.ground.errors import SparksError, reason
from sparks.ground.files import (
    RefusedError,
    encoded,
    read_failures,
    read_file,
    read_text,
    remove_leftovers,
    set_aside,
    why,
    write_atomically,
)
from sparks.ground.schema import MOST_NUMBER, decode, is_number
from sparks.probes.probes import ProbeSet
from sparks.runs.evaluations import EvaluationFolder, StepEvaluation
from sparks.runs.identity import (
    MEASURED,
    attempts,
    move_earlier,
    new_id,
    read_id,
    strangers,
    undo_unfinished,
    write_id,
)
from sparks.runs.null_band import NullBand, from_json, to_json

FOLDER = "sparks"
"""Where a run folder lies in a trainer's output folder."""

_STEP_FILE = re.compile(r"step-(\d+)\.safetensors\Z")

_DEPTH, _MOST_FOLDERS, _MOST_LISTED = 4, 2000, 8

_MOST_LOG, _MOST_NULLS, _MOST_PROBES = 2**28, 2**24, 2**26
"""Bytes."""


@dataclass(frozen=True, kw_only=True)
class RunContents:
    """Everything in a run folder."""

    path: Path
    snapshots: tuple[Snapshot, ...]
    """In order of step."""
    metrics: tuple[dict[str, Any], ...]
    """Rows of the trainer's log, each with a `step`."""
    problems: tuple[str, ...]
    """One line for each file that could not be read and was skipped."""
    nulls: tuple[NullBand, ...] = ()
    """What `sparks null` found."""
    probes: ProbeSet | None = None
    """Texts of what was measured, where the folder keeps them."""
    evaluations: tuple[StepEvaluation, ...] = ()
    """Of the checkpoints that were evaluated, in order of step; all of one task."""
    run_id: str = ""
    """Of the run; empty where neither the folder nor a snapshot has one."""
    strangers: tuple[int, ...] = ()
    """Steps whose snapshots are of another run, and left out."""


class RunStore:
    """A run folder. Opening one writes nothing; the folder is made by the first write."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.run_id = ""
        """Written into every snapshot that is saved; `begin` and `go_on` set it."""

    @classmethod
    def find(cls, path: str | os.PathLike[str]) -> RunStore:
        """The store at `path`, or at `path/sparks` where `path` is a trainer's output folder.

        Raises:
            SparksError: neither holds a snapshot.
        """
        folders = (Path(path), Path(path) / FOLDER)
        for folder in folders:
            if (store := cls(folder)).steps():
                return store
        earlier = [str(attempt) for folder in folders for attempt in attempts(folder)]
        if below := runs_below(path):
            raise SparksError(f"{path} is no run, it holds {listed_runs(below)}; give one")
        raise SparksError(
            f"no snapshots in {path} or {Path(path) / FOLDER}: give a folder that "
            f"SparksCallback or `sparks replay` wrote (it holds files named step-*.safetensors)"
            + (f"; earlier runs are in {', '.join(earlier)}" if earlier else "")
        )

    @property
    def name(self) -> str:
        """Of the run: the last name of the trainer's output folder, else of this folder."""
        folder = Path(os.path.abspath(self.path))
        name = folder.parent.name if folder.name == FOLDER else folder.name
        return encoded(name).decode()

    @property
    def evaluations(self) -> EvaluationFolder:
        """Where the evaluations of the checkpoints lie."""
        return EvaluationFolder(self.path)

    def steps(self) -> list[int]:
        """Steps that have a snapshot file, in order; none where there is no folder.

        Raises:
            SparksError: the folder cannot be listed.
        """
        try:
            names = [item.name for item in self.path.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise SparksError(f"cannot read {self.path} ({error.strerror or error})") from error
        steps = {int(match[1]) for name in names if (match := _STEP_FILE.match(name))}
        return sorted(step for step in steps if self.file(step).name in names)

    def file(self, step: int) -> Path:
        """Where the snapshot of `step` lies."""
        return self.path / f"step-{step:08d}.safetensors"

    def kept_files(self, steps: Iterable[int]) -> list[Path]:
        """Files of these steps that are there: snapshots, then evaluations."""
        found = [self.file(step) for step in steps]
        found += [self.evaluations.file(step) for step in self.evaluations.steps()]
        return [path for path in found if path.is_file()]

    # -- writing -----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the folder and prove that it can be written.

        Raises:
            SparksError: it cannot.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()  # no name that a kill could leave
        except OSError as error:
            raise SparksError(
                f"cannot write to {self.path} ({error.strerror or error}): give a folder you own"
            ) from error

    def save(self, snapshot: Snapshot) -> Path:
        """Write a snapshot, replacing the one of the same step; returns its file.

        Trainer's numbers that are not finite are left out, as JSON has none.

        Raises:
            SparksError: the file cannot be written.
        """
        metrics, run_id = _finite_numbers(snapshot.meta.metrics), self.run_id
        meta = replace(snapshot.meta, metrics=metrics, run_id=run_id or snapshot.meta.run_id)
        snapshot = replace(snapshot, meta=meta)
        arrays, metadata = snapshot.to_arrays()
        target = self.file(snapshot.step)
        self._write(target, save(arrays, metadata))
        target.with_suffix(".failed").unlink(missing_ok=True)
        return target

    def note_failure(self, step: int, reason: str) -> bool:
        """Remember that `step` has no snapshot and why; a later snapshot of the step forgets it.

        Nothing is raised, as a full disk may be the reason: False where it cannot be written.
        """
        with suppress(SparksError):
            self._write(self.file(step).with_suffix(".failed"), f"{reason}\n".encode())
            return True
        return False

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the trainer's log.

        Rows without a step, and values that are no finite number, are left out.

        Raises:
            SparksError: the file cannot be written.
        """
        numbers = (_finite_numbers(row) for row in rows)
        clean = [row | {"step": int(row["step"])} for row in numbers if "step" in row]
        self._write(self.path / "metrics.json", json.dumps(clean, allow_nan=False).encode())

    def write_nulls(self, bands: Sequence[NullBand]) -> Path:
        """Replace what `sparks null` found before; returns the file.

        Raises:
            SparksError: the file cannot be written.
        """
        target = self.path / "null.json"
        self._write(target, to_json(bands).encode())
        return target

    def write_probes(self, text: str) -> None:
        """Keep the probes beside what they measured.

        Raises:
            SparksError: the file cannot be written.
        """
        self._write(self.path / "probes.jsonl", text.encode())

    def read_probes(self) -> ProbeSet | None:
        """The probes that are kept; None where there are none, or none that can be read.

        They are shown beside the numbers, and no number depends on them.
        """
        path = self.path / "probes.jsonl"
        try:
            text = read_text(path, within=self.path, most=_MOST_PROBES)
            lines = (line for line in text.split("\n") if line.strip())
            return ProbeSet.from_records(json.loads(line) for line in lines)
        except (OSError, ValueError, RecursionError, SparksError):
            return None

    def undo_unfinished(self) -> None:
        """Bring back what a killed `begin` had moved away; nobody else may be writing.

        Raises:
            SparksError: a file cannot be moved.
        """
        undo_unfinished(self.path)

    def begin(self, probes: str) -> Path | None:
        """Begin a new run with these probes (`ProbeSet.to_jsonl`) and an id of its own.

        Files of an earlier run are moved to a folder `attempt-N` in this one, a run folder itself.

        Returns that folder; None where there was no earlier run.

        Raises:
            SparksError: a file cannot be moved or written.
        """
        remove_leftovers(self.path)
        remove_leftovers(self.evaluations.path)
        earlier = move_earlier(self.path, probes)
        self._write_identity(new_id(), probes)
        return earlier

    def go_on(self, run_id: str, probes: str) -> None:
        """Go on with the run of this id; one without an id gets one.

        Raises:
            SparksError: a file cannot be written.
        """
        self._write_identity(run_id or new_id(), probes)

    def _write_identity(self, run_id: str, probes: str) -> None:
        self.prepare()
        write_id(self.path, run_id)
        self.run_id = run_id
        self.write_probes(probes)

    def set_aside_after(self, step: int, also: Sequence[int] = ()) -> list[int]:
        """Rename snapshots later than `step` to `*.stale`: a resumed run is going to redo them.

        So are evaluations. Half-written files that a killed run left are removed too.

        Args:
            step: of the checkpoint.
            also: other steps that are not of the run.

        Returns the steps set aside. `read` and `steps` no longer see them.

        Raises:
            SparksError: a file cannot be renamed.
        """
        remove_leftovers(self.path)
        self.evaluations.set_aside_after(step)
        for failed, _ in read_failures(self.path):
            if failed >= step:  # of `step` itself too: it is tried again
                self.file(failed).with_suffix(".failed").unlink(missing_ok=True)
        later = [found for found in self.steps() if found > step or found in also]
        set_aside(map(self.file, later))
        return later

    def _write(self, target: Path, payload: bytes) -> None:
        self.prepare()
        write_atomically(target, payload, way_out="free the place or give another folder")

    # -- reading -----------------------------------------------------------------------------

    def load(self, step: int) -> Snapshot:
        """The snapshot of one step.

        Raises:
            SparksError: there is none, or its file is damaged or of a newer schema.
        """
        path = self.file(step)
        try:
            snapshot = _snapshot(read_file(path, within=self.path))
        except FileNotFoundError as error:
            known = ", ".join(map(str, self.steps())) or "none"
            raise SparksError(
                f"{self.path} has no snapshot of step {step}; it has: {known}"
            ) from error
        except OSError as error:
            raise SparksError(f"cannot read {path} ({why(error)})") from error
        except (DamagedError, RefusedError) as error:
            raise SparksError(
                f"{path}: damaged or not a snapshot ({error}); delete it, or take it again with "
                f"`sparks replay`"
            ) from error
        except SparksError as error:
            raise SparksError(f"{path}: {error}") from error
        if snapshot.step != step:
            raise SparksError(
                f"{path}: holds step {snapshot.step}, not {step}: give it its own name"
            )
        return snapshot

    def read(self, *, until: int | None = None) -> RunContents:
        """Everything in the folder; what cannot be read is skipped and named in `problems`.

        Args:
            until: read no more than what `set_aside_after` this step leaves.
        """
        snapshots = list[Snapshot]()
        contents = self.read_each(snapshots.append, until=until)
        own = (found for found in snapshots if found.step not in contents.strangers)
        return replace(contents, snapshots=tuple(own))

    def read_each(
        self, take: Callable[[Snapshot], None], *, until: int | None = None
    ) -> RunContents:
        """As `read`, but snapshots are handed to `take` one by one, and none is in it.

        Those of another run too: `strangers` names them. One that `take` refuses with a SparksError
        is a problem.
        """
        run_ids, problems = dict[int, str](), list[str]()
        for step in self.steps():
            if until is not None and step > until:
                break
            try:
                snapshot = self.load(step)
                take(snapshot)
                run_ids[step] = snapshot.meta.run_id
            except SparksError as error:
                problems.append(str(error))
        run_id, others, mixed = self.run_of(run_ids)
        beside = self.read_beside(until=until)
        return replace(
            beside,
            problems=(*problems, *mixed, *beside.problems),
            run_id=run_id,
            strangers=tuple(others),
        )

    def read_beside(self, *, until: int | None = None) -> RunContents:
        """As `read`, but for the snapshots, of which there are none in it, and what they tell."""
        problems = [
            f"step {step}: no snapshot ({why})"
            for step, why in read_failures(self.path)
            if until is None or step < until
        ]
        metrics, faults = self._read_log()
        problems += faults
        nulls: tuple[NullBand, ...] = ()
        try:
            nulls = self.read_nulls()
        except SparksError as error:
            problems.append(str(error))
        evaluations, unread = self.evaluations.read(until=until)
        return RunContents(
            path=self.path,
            snapshots=(),
            metrics=metrics,
            problems=(*problems, *unread),
            nulls=nulls,
            probes=self.read_probes(),
            evaluations=evaluations,
        )

    def run_of(self, run_ids: Mapping[int, str]) -> tuple[str, list[int], list[str]]:
        """The id of the run, steps whose snapshots are of another, and a line for what is wrong.

        Args:
            run_ids: of the snapshots, by step, in order.
        """
        named, problems = "", list[str]()
        try:
            named = read_id(self.path)
        except SparksError as error:
            problems.append(str(error))
        run_id, others = strangers(run_ids, named)
        if others:
            shown = ", ".join(map(str, others[:6])) + (", ..." if len(others) > 6 else "")
            problems.append(
                f"{self.path}: left out {len(others)} snapshots of another run than {run_id} "
                f"(steps {shown}): keep each run in a folder of its own"
            )
        return run_id, others, problems

    def _read_log(self) -> tuple[tuple[dict[str, Any], ...], list[str]]:
        """Rows of the trainer's log, and a line for what is wrong with it."""
        path = self.path / "metrics.json"
        lost = "the trainer's curves are missing"
        try:
            content = decode(_LOG, read_file(path, within=self.path, most=_MOST_LOG))
        except FileNotFoundError:
            return (), []  # a run without a log, such as a replay
        except OSError as error:
            return (), [f"cannot read {path} ({why(error)}); {lost}"]
        except SparksError as error:
            return (), [f"{path}: damaged ({error}); {lost}"]
        rows = [row for row in map(_finite_numbers, content) if "step" in row]
        return tuple(rows), _too_large(path, content)

    def read_nulls(self) -> tuple[NullBand, ...]:
        """What `sparks null` found; none where it was not asked.

        Raises:
            SparksError: the file cannot be read, is damaged or of a newer schema.
        """
        path = self.path / "null.json"
        try:
            return from_json(read_text(path, within=self.path, most=_MOST_NULLS))
        except FileNotFoundError:
            return ()
        except (OSError, SparksError) as error:
            raise SparksError(
                f"{path}: {why(error)}; until then the null is that of the run's own probes"
            ) from error


def runs_below(path: str | os.PathLike[str]) -> list[Path]:
    """Folders below `path` that hold runs, as `RunStore.find` takes them, in order of name.

    Hidden folders and earlier attempts are left out, and all beyond `_DEPTH` folders down or
    `_MOST_FOLDERS` folders.
    """
    found, left = list[Path](), [(Path(path), 0)]
    for _ in range(_MOST_FOLDERS):
        if not left:
            break
        folder, depth = left.pop()
        with suppress(OSError, SparksError):
            if depth and RunStore(folder).steps():
                found.append(folder.parent if folder.name == FOLDER else folder)
            elif depth < _DEPTH:
                inside = (item for item in folder.iterdir() if not item.is_symlink())
                left += [
                    (item, depth + 1)
                    for item in inside
                    if item.is_dir() and not item.name.startswith((".", "checkpoint-", "attempt"))
                ]
    return sorted(found)


def listed_runs(runs: Sequence[Path]) -> str:
    """Runs by name, the first `_MOST_LISTED` of them."""
    more = f" and {len(runs) - _MOST_LISTED} more" if len(runs) > _MOST_LISTED else ""
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    return f"{count}: {', '.join(map(str, runs[:_MOST_LISTED]))}{more}"


def refuse_file_of_run(path: str | os.PathLike[str]) -> None:
    """Check that writing `path` would not replace what a run measured, or what it is.

    Raises:
        SparksError: it has the name of such a file, and its folder holds a run.
    """
    target = Path(os.path.abspath(path))
    for pattern in MEASURED:
        above = pattern.count("/")
        if target.match(pattern) and len(target.parents) > above:
            store = RunStore(target.parents[above])
            if store.steps():
                raise SparksError(
                    f"cannot write {path}: it belongs to the run in {store.path}; give another file"
                )


_LOG = list[dict[str, Any]]
"""`metrics.json`; what is no number in it is left out."""


_DTYPES = {
    "BOOL": "?",
    **{f"F{size}": f"<f{size // 8}" for size in (16, 32, 64)},
    **{f"I{size}": f"<i{size // 8}" for size in (8, 16, 32, 64)},
    **{f"U{size}": f"<u{size // 8}" for size in (8, 16, 32, 64)},
}
"""Names of types in a safetensors file; a later schema may use those that this one does not."""


def _snapshot(content: bytes) -> Snapshot:
    """The snapshot in the bytes of a safetensors file.

    Eight bytes, the length of the header; the header, JSON: `{"__metadata__": {...}, NAME:
    {"dtype", "shape", "data_offsets"}, ...}`; the arrays without a gap
    (https://github.com/huggingface/safetensors). Its library copies every array. Here edges, nearly
    all of a file, stay where they were read: a large run opens in a third of the time.

    Raises:
        SparksError: as `Snapshot.from_arrays`.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    try:
        header = decode(dict[str, Any], content[8:start])
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata is no text")
        arrays: dict[str, np.ndarray] = {}
        end = start
        for name, value in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            shape = [operator.index(size) for size in value["shape"]]
            kind: np.dtype = np.dtype(_DTYPES[value["dtype"]])
            array = np.frombuffer(content, kind, math.prod(shape), end).reshape(shape)
            if value["data_offsets"] != [end - start, (end := end + array.nbytes) - start]:
                raise ValueError(f"{name} lies elsewhere")
            arrays[name] = array if name.startswith("edge_") else array.copy()
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise DamagedError(reason(error)) from error
    if end != len(content):
        raise DamagedError(f"{len(content)} bytes, its header tells of {end}")
    return Snapshot.from_arrays(arrays, metadata)


def _too_large(path: Path, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line where a number in a log is finite, and yet none that a trainer can have had."""
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float) and MOST_NUMBER < abs(value) < math.inf:
                step = str(row.get("step"))[:20] if name != "step" else "(itself)"
                return [f"{path}: {name[:40]!r} beyond {MOST_NUMBER:g} at step {step}; left out"]
    return []


def _finite_numbers(row: Mapping[str, Any]) -> dict[str, int | float]:
    """Plain numbers that `is_number` takes; numpy's scalars become Python's."""
    out: dict[str, int | float] = {}
    for name, value in row.items():
        if isinstance(value, Integral | Real) and not isinstance(value, bool):
            number = int(value) if isinstance(value, Integral) else float(value)
            if is_number(number):
                out[name] = number
    return out
