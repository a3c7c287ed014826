"""The run folder: one safetensors file a snapshot, the trainer's log, the probes. No torch.

    RUN/                            `OUTPUT_DIR/sparks` beside a trainer
      step-00000010.safetensors     one snapshot
      metrics.json                  the trainer's log so far: [{"step": 1, "loss": 2.3, ...}, ...]
      probes.jsonl                  the probes that were measured
      step-00000020.failed          why a step has no snapshot
      evaluation/                   sampled answers of the checkpoints (`evaluation.folder`)

Files are written under a temporary name, flushed to the disk and renamed, so that no reader ever
meets half a file. Saving a step again replaces it.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sparks.errors import SparksError
from sparks.evaluation.folder import EvaluationFolder, StepEvaluation
from sparks.files import read_failures, remove_leftovers, set_aside, write_atomically
from sparks.null_bands import NullBand, from_json, to_json
from sparks.snapshot import Snapshot

FOLDER = "sparks"
"""Where a run folder lies in a trainer's output folder."""

_STEP_FILE = re.compile(r"step-(\d+)\.safetensors\Z")

_UNREADABLE = (SafetensorError, OSError, AttributeError, LookupError, TypeError, ValueError)


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
    evaluations: tuple[StepEvaluation, ...] = ()
    """Of the checkpoints that were evaluated, in order of step; all of one task."""


class RunStore:
    """A run folder. Opening one writes nothing; the folder is made by the first write."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def find(cls, path: str | os.PathLike[str]) -> RunStore:
        """The store at `path`, or at `path/sparks` where `path` is a trainer's output folder.

        Raises:
            SparksError: neither holds a snapshot.
        """
        for folder in (Path(path), Path(path) / FOLDER):
            if (store := cls(folder)).steps():
                return store
        raise SparksError(
            f"no snapshots in {path} or {Path(path) / FOLDER}: give a folder that "
            f"SparksCallback or `sparks replay` wrote (it holds files named step-*.safetensors)"
        )

    @property
    def name(self) -> str:
        """Of the run: the last name of the trainer's output folder, else of this folder."""
        folder = Path(os.path.abspath(self.path))
        return folder.parent.name if folder.name == FOLDER else folder.name

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
        metrics = _finite_numbers(snapshot.meta.metrics)
        snapshot = replace(snapshot, meta=replace(snapshot.meta, metrics=metrics))
        arrays, metadata = snapshot.to_arrays()
        target = self.file(snapshot.step)
        self._write(target, save(arrays, metadata))
        target.with_suffix(".failed").unlink(missing_ok=True)
        return target

    def note_failure(self, step: int, reason: str) -> None:
        """Remember that `step` has no snapshot and why; a later snapshot of the step forgets it.

        Nothing is raised: a full disk may be the reason.
        """
        with suppress(SparksError):
            self._write(self.file(step).with_suffix(".failed"), f"{reason}\n".encode())

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

    def set_aside_after(self, step: int) -> list[int]:
        """Rename snapshots later than `step` to `*.stale`: a resumed run is going to redo them.

        So are evaluations. Half-written files that a killed run left are removed too.

        Returns the steps set aside. `read` and `steps` no longer see them.

        Raises:
            SparksError: a file cannot be renamed.
        """
        remove_leftovers(self.path)
        self.evaluations.set_aside_after(step)
        for failed, _ in read_failures(self.path):
            if failed >= step:  # of `step` itself too: it is tried again
                self.file(failed).with_suffix(".failed").unlink(missing_ok=True)
        later = [found for found in self.steps() if found > step]
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
        if not path.exists():
            known = ", ".join(map(str, self.steps())) or "none"
            raise SparksError(f"{self.path} has no snapshot of step {step}; it has: {known}")
        try:
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                snapshot = Snapshot.from_arrays(arrays, file.metadata())
            if snapshot.step != step:
                raise SparksError(f"holds step {snapshot.step}, not {step}: give it its own name")
            return snapshot
        except SparksError as error:
            raise SparksError(f"{path}: {error}") from error
        except _UNREADABLE as error:
            reason = " ".join(str(error).split())
            raise SparksError(
                f"{path}: damaged or not a snapshot ({reason}); delete it, or take it again with "
                f"`sparks replay`"
            ) from error

    def read(self) -> RunContents:
        """Everything in the folder; what cannot be read is skipped and named in `problems`."""
        snapshots, problems = [], []
        for step in self.steps():
            try:
                snapshots.append(self.load(step))
            except SparksError as error:
                problems.append(str(error))
        beside = self.read_beside()
        return replace(beside, snapshots=tuple(snapshots), problems=(*problems, *beside.problems))

    def read_beside(self) -> RunContents:
        """As `read`, but for the snapshots, of which there are none in it."""
        problems = [f"step {step}: no snapshot ({why})" for step, why in read_failures(self.path)]
        metrics: tuple[dict[str, Any], ...] = ()
        path = self.path / "metrics.json"
        try:
            metrics = _log_rows(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            pass  # a run without a log, such as a replay
        except (OSError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            problems.append(f"{path}: damaged ({reason}); the trainer's curves are missing")
        nulls: tuple[NullBand, ...] = ()
        try:
            nulls = self.read_nulls()
        except SparksError as error:
            problems.append(str(error))
        evaluations, unread = self.evaluations.read()
        return RunContents(
            path=self.path,
            snapshots=(),
            metrics=metrics,
            problems=(*problems, *unread),
            nulls=nulls,
            evaluations=evaluations,
        )

    def read_nulls(self) -> tuple[NullBand, ...]:
        """What `sparks null` found; none where it was not asked.

        Raises:
            SparksError: the file is damaged or of a newer schema.
        """
        path = self.path / "null.json"
        try:
            return from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ()
        except (OSError, UnicodeDecodeError, SparksError) as error:
            reason = " ".join(str(error).split())
            raise SparksError(
                f"{path}: {reason}; until then the null is that of the run's own probes"
            ) from error


def _log_rows(content: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError("it must be a list of objects, each with a step")
    rows = (_finite_numbers(row) for row in content)
    return tuple(row for row in rows if "step" in row)


def _finite_numbers(row: Mapping[str, Any]) -> dict[str, int | float]:
    """Plain numbers that JSON can hold; numpy's scalars become Python's."""
    out: dict[str, int | float] = {}
    for name, value in row.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, Integral):
            out[name] = int(value)
        elif isinstance(value, Real) and math.isfinite(number := float(value)):
            out[name] = number
    return out
