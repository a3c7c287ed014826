"""Evaluations of checkpoints with planted verdicts, as files of samples. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparks.evaluation.checks import Verdict
from sparks.evaluation.records import Task, TaskProblem
from sparks.evaluation.samples_file import Header, SampleLine
from sparks.evaluation.settings import EvaluationConfig
from sparks.runs.evaluations import EvaluationFolder, StepEvaluation

Verdicts = Mapping[str, str]
"""Problem -> a letter a sample: `+` right, `-` wrong."""

HOSTILE = "</script><img src=x onerror=\"document.title='pwned'\"><b>{{script}}</b>\u202e"


def make_samples(
    step: int, verdicts: Verdicts, *, text: str = "answer", task: str = "sums", **settings: Any
) -> tuple[Header, list[SampleLine]]:
    """Header and samples; `text` opens every sample of the step."""
    samples = len(next(iter(verdicts.values())))
    header = Header(
        task=task,
        task_hash=f"{task}-{','.join(sorted(verdicts))}",
        check="math",
        num_problems=len(verdicts),
        settings=EvaluationConfig(samples=samples, **settings).settled({}).as_dict(),
        backend="transformers",
        model="tiny",
        fingerprint=f"weights-{step}",
    )
    lines = [
        SampleLine(
            id=name,
            sample=number,
            problem=f"What is {name}?",
            answer=f"{name}!",
            text=f"{text} {number} of {name} at {step}",
            found=None,
            correct=letter == "+",
            tokens=3,
            truncated=False,
            seconds=0.25,
        )
        for name, letters in verdicts.items()
        for number, letter in enumerate(letters)
    ]
    return header, lines


def make_evaluations(story: Mapping[int, Verdicts], **keywords: Any) -> list[StepEvaluation]:
    """One a step; keywords go to `make_samples`."""
    return [
        StepEvaluation.of(step, *make_samples(step, verdicts, **keywords))
        for step, verdicts in story.items()
    ]


def write_evaluations(
    run: Path, story: Mapping[int, Verdicts], **keywords: Any
) -> EvaluationFolder:
    """Into the folder of a run."""
    folder = EvaluationFolder(run)
    for step, verdicts in story.items():
        folder.write(step, *make_samples(step, verdicts, **keywords))
    return folder


def problems(*names: str, of: Sequence[str]) -> Verdicts:
    """Names to verdicts."""
    return dict(zip(names, of, strict=True))


SOLVING: dict[int, Verdicts] = {
    0: problems("a", "b", "c", "d", of=["----", "++--", "++++", "----"]),
    20: problems("d", "c", "b", "a", of=["----", "++++", "----", "+---"]),
    40: problems("a", "b", "c", "d", of=["++++", "----", "++++", "-+--"]),
}
"""At 20 a is newly solved and b newly missed (the file in another order); at 40 d is solved too."""


def even_length(problem: TaskProblem, text: str) -> Verdict:
    """A check that a random model passes now and then."""
    return Verdict(text, len(text) % 2 == 0)


LENGTHS = Task(
    "length",
    tuple(TaskProblem(f"p{n}", [{"role": "user", "content": f"{n}?"}], "even") for n in range(5)),
    "even length",
    even_length,
)
SAMPLED = EvaluationConfig(samples=2, max_new_tokens=6, batch_size=4)
"""Three batches."""
