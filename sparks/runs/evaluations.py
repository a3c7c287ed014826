"""The evaluations of a run's checkpoints, a file of samples a step, beside the snapshots. No torch.

    RUN/evaluation/
      step-00000010.jsonl            a finished evaluation (`samples_file.py`), written whole
      step-00000020.part             one that a replay is sampling; the next one goes on with it
      step-00000020.failed           why a step has none

A finished file is written under a temporary name and renamed, so that no reader meets half of one.
What reading keeps of it, `StepEvaluation`, is every verdict and two texts a problem.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from sparks.evaluation.pass_at_k import pass_at
from sparks.evaluation.samples_file import KIND, SCHEMA, Header, SampleLine, read_samples
from sparks.evaluation.settings import EvaluationConfig
from sparks.ground.errors import SparksError
from sparks.ground.files import read_failures, remove_leftovers, set_aside, why, write_atomically
from sparks.stats.intervals import Interval

FOLDER = "evaluation"
"""Name of the folder in a run folder."""
MOST_TEXT = 6000
"""Characters kept of a sampled text: of a longer one the two ends."""

_FILE = re.compile(r"step-(\d+)\.jsonl\Z")
_NOT_COMPARED = ("limit", "backend", "batch_size", "seed")
"""Settings in which two evaluations may differ: the task's hash holds what they chose."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StepEvaluation:
    """The evaluation of one checkpoint. All tuples have an entry a problem, in order."""

    step: int
    task: str
    task_hash: str
    settings: dict[str, Any]
    ids: tuple[str, ...]
    problems: tuple[str, ...]
    """Texts of the problems."""
    answers: tuple[str, ...]
    """Right answers."""
    correct: Bool[np.ndarray, "problems samples"]
    right: tuple[str | None, ...]
    """The first right sample, cut to `MOST_TEXT`; None where there is none."""
    wrong: tuple[str | None, ...]
    """The first wrong one."""
    seconds: float
    """Time spent on sampling and checking, of all processes together."""

    @property
    def samples(self) -> int:
        """Answers sampled a problem."""
        return int(self.correct.shape[1])

    def pass_at_1(self) -> Interval:
        """Mean share of right samples, with its interval over problems."""
        return pass_at(self.correct.sum(axis=1), self.samples, 1)

    @classmethod
    def of(cls, step: int, header: Header, lines: Sequence[SampleLine]) -> StepEvaluation:
        """What is kept of the samples of a step.

        Raises:
            SparksError: samples are missing.
        """
        wanted = header.num_samples
        rows: dict[str, list[SampleLine]] = {}
        for line in sorted(lines, key=lambda line: line.sample):
            rows.setdefault(line.id, []).append(line)
        counts = {len({line.sample for line in found}) for found in rows.values()}
        each = {wanted // header.num_problems}
        if len(lines) != wanted or len(rows) != header.num_problems or counts != each:
            raise SparksError(f"unfinished, {len(lines)} of {wanted} samples: sample it again")
        order = dict.fromkeys(line.id for line in lines)
        found = [rows[name] for name in order]
        return cls(
            step=step,
            task=header.task,
            task_hash=header.task_hash,
            settings=dict(header.settings),
            ids=tuple(order),
            problems=tuple(row[0].problem for row in found),
            answers=tuple(row[0].answer for row in found),
            correct=np.array([[line.correct for line in row] for row in found], dtype=bool),
            right=tuple(_first(row, correct=True) for row in found),
            wrong=tuple(_first(row, correct=False) for row in found),
            seconds=round(sum(line.seconds for line in lines), 3),
        )

    def differs_from(self, other: StepEvaluation) -> str:
        """What keeps two evaluations from being compared, in words; empty where nothing does."""
        if self.task_hash != other.task_hash:
            return f"task {self.task} ({self.task_hash[:12]}), not {other.task} " + (
                f"({other.task_hash[:12]})"
            )
        if sorted(self.ids) != sorted(other.ids):
            return f"{len(self.ids)} problems, not the {len(other.ids)} of before"
        for name in sorted({*self.settings, *other.settings} - {*_NOT_COMPARED}):
            one, two = self.settings.get(name), other.settings.get(name)
            if one != two:
                return f"{name} {one!r}, not {two!r}"
        return ""

    def differs_from_settings(self, task_hash: str, config: EvaluationConfig) -> str:
        """As `differs_from`, of an evaluation that is still to be made."""
        if self.task_hash != task_hash:
            return f"task {self.task} ({self.task_hash[:12]}), not {task_hash[:12]}"
        # With thinking on, the model fills in what is not given.
        wanted = config.as_dict() if config.thinking else config.settled({}).as_dict()
        for name, value in wanted.items():
            is_open = value is None and config.thinking
            if name in _NOT_COMPARED or is_open or name not in self.settings:
                continue
            if self.settings[name] != value:
                return f"{name} {self.settings[name]!r}, not {value!r}"
        return ""


class EvaluationFolder:
    """The evaluations of a run folder. Opening it writes nothing.

    Args:
        run: the run folder.
    """

    def __init__(self, run: str | os.PathLike[str]) -> None:
        self.path = Path(run) / FOLDER

    def file(self, step: int) -> Path:
        """Where the evaluation of `step` lies."""
        return self.path / f"step-{step:08d}.jsonl"

    def part(self, step: int) -> Path:
        """Where a replay samples that of `step`."""
        return self.file(step).with_suffix(".part")

    def steps(self) -> list[int]:
        """Steps that have a finished evaluation, in order; none where there is no folder.

        Raises:
            SparksError: the folder cannot be listed.
        """
        try:
            names = os.listdir(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise SparksError(f"cannot read {self.path} ({why(error)})") from error
        return sorted({int(match[1]) for name in names if (match := _FILE.match(name))})

    def load(self, step: int) -> StepEvaluation:
        """The evaluation of a step.

        Raises:
            SparksError: there is none, or its file is damaged.
        """
        path = self.file(step)
        try:
            stat = path.stat()
        except OSError as error:
            raise SparksError(f"cannot read {path}: {why(error)}") from error
        return _load(path, step, stat.st_mtime_ns, stat.st_size)

    def read(
        self, *, until: int | None = None
    ) -> tuple[tuple[StepEvaluation, ...], tuple[str, ...]]:
        """The evaluations that fit together, in order of step; a line for each other file.

        They must have the task and the settings of the first.

        Args:
            until: read no more than what `set_aside_after` this step leaves.
        """
        found: list[StepEvaluation] = []
        problems = []
        try:
            steps = self.steps()
        except SparksError as error:
            return (), (str(error),)
        for step in steps:
            if until is not None and step > until:
                break
            try:
                evaluation = self.load(step)
            except SparksError as error:
                problems.append(str(error))
                continue
            if found and (difference := evaluation.differs_from(found[0])):
                problems.append(
                    f"{self.file(step)}: of other settings than at step {found[0].step} "
                    f"({difference}); left out"
                )
                continue
            found.append(evaluation)
        problems += [
            f"step {step}: no evaluation ({why})"
            for step, why in read_failures(self.path)
            if until is None or step < until
        ]
        return tuple(found), tuple(problems)

    # -- writing -----------------------------------------------------------------------------

    def write(self, step: int, header: Header, lines: Sequence[SampleLine]) -> Path:
        """Write a finished evaluation, replacing that of the same step; returns its file.

        Raises:
            SparksError: it cannot be written.
        """
        records = [{"kind": KIND, "schema": SCHEMA, **asdict(header)}, *map(asdict, lines)]
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        # A model may write half of a character.
        target = write_atomically(self.file(step), text.encode("utf-8", "backslashreplace"))
        self._failed(step).unlink(missing_ok=True)
        return target

    def note_failure(self, step: int, reason: str) -> bool:
        """Remember that `step` has no evaluation and why.

        Nothing is raised, as a full disk may be the reason: False where it cannot be written.
        """
        with suppress(SparksError):
            write_atomically(self._failed(step), f"{reason}\n")
            return True
        return False

    def set_aside_after(self, step: int) -> list[int]:
        """Rename evaluations later than `step` to `*.stale`; unfinished ones are removed.

        Returns the steps set aside.

        Raises:
            SparksError: a file cannot be renamed.
        """
        remove_leftovers(self.path)
        for path in self.path.glob("step-*.part"):
            with suppress(OSError):
                path.unlink()
        for failed, _ in read_failures(self.path):
            if failed >= step:
                self._failed(failed).unlink(missing_ok=True)
        later = [found for found in self.steps() if found > step]
        set_aside(map(self.file, later))
        return later

    def refuse_other_settings(
        self, task_hash: str, config: EvaluationConfig, *, except_steps: Sequence[int] = ()
    ) -> None:
        """Check that a new evaluation fits those that are there.

        Raises:
            SparksError: one is of another task or other settings.
        """
        for evaluation in self.read()[0]:
            if evaluation.step in except_steps:
                continue
            if difference := evaluation.differs_from_settings(task_hash, config):
                raise SparksError(
                    f"{self.path} holds an evaluation of step {evaluation.step} of {difference}: "
                    f"evaluate with the same task and settings, or give another output folder"
                )

    def _failed(self, step: int) -> Path:
        return self.file(step).with_suffix(".failed")


@lru_cache(maxsize=512)
def _load(path: Path, step: int, changed_ns: int, size: int) -> StepEvaluation:
    """Read once: a run is read again at every look, and its texts are long."""
    header, lines = read_samples(path, within=path.parent.parent)
    try:
        return StepEvaluation.of(step, header, lines)
    except SparksError as error:
        raise SparksError(f"{path}: {error}") from error


def _first(row: Sequence[SampleLine], *, correct: bool) -> str | None:
    text = next((line.text for line in row if line.correct is correct), None)
    return None if text is None else ends_of(text, MOST_TEXT)


def ends_of(text: str, most: int) -> str:
    """A text of at most `most` characters: a third from its start, the rest from its end.

    The answer stands at the end.
    """
    if len(text) <= most:
        return text
    start = most // 3
    return f"{text[:start]} \u2026 {text[len(text) - (most - start - 3) :]}"
