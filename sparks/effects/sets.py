"""Which heads a study looks at: sets by rule, by hand, and from a control task. No torch.

A set is written as

    emergent, base, top:10 ...     a rule on the run (`choose_heads`)
    L5H1,L7H2                      heads by hand
    control, control:top:10 ...    heads of the control task: all that are active there at the end,
                                   or a rule on its timeline
    NAME=any of these              under a name of its own

The control task is another run folder, or the probes of the group `control` of the same run. A set
in which no head is found is told and left out; the others go on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparks.effects.choose_heads import HeadSet, NoHeads, by_importance, choose_heads
from sparks.ground.errors import SparksError
from sparks.models.heads import Head, is_head_list
from sparks.timeline.timeline import Timeline

CONTROL = "control"
_NAME = re.compile(r"[\w.+ -]{1,40}\Z")


@dataclass(frozen=True, kw_only=True)
class ChosenSet:
    """Heads to switch off together."""

    name: str
    heads: tuple[Head, ...]
    """In order of layer and head."""
    found: int
    """Heads that the rule found; of these `heads` are the most important."""
    origin: str
    """How they were found, in words."""


@dataclass(frozen=True, kw_only=True)
class ChosenSets:
    """The sets of a study, and one line for each that was left out."""

    sets: tuple[ChosenSet, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Where rules read heads from."""

    run: Timeline | None = None
    control: Timeline | None = None
    """Of the control task: another run, or the control probes of the same."""
    others: tuple[Timeline, ...] = ()
    """Runs that `exclusive` looks at."""

    def __post_init__(self) -> None:
        if self.control is None and self.run is not None:
            object.__setattr__(self, "control", self.run.control)
        known = [line for line in (self.run, self.control) if line is not None]
        if len({line.base.shape for line in known}) > 1:
            shapes = " and ".join(f"{line.name or '(no name)'} {line.base.shape}" for line in known)
            raise SparksError(
                f"run and control run are of models of different shapes (layers, heads): {shapes}"
            )

    @property
    def shape(self) -> tuple[int, int] | None:
        """Layers and heads of the model; None without a run."""
        line = self.run or self.control
        return None if line is None else (line.graph.num_layers, line.graph.num_heads)


def choose_sets(texts: Sequence[str], runs: Runs, *, most: Sequence[int] = ()) -> ChosenSets:
    """The heads of every set, and of its most important ones.

    Args:
        texts: sets as written above.
        runs: what rules read.
        most: keep so many heads of each set, those of largest importance at the end of the run;
            with several numbers, each gives sets of its own. None keeps all.

    Raises:
        SparksError: a set is written wrongly, two have one name, a run is missing, or no set has a
            head.
    """
    if bad := [number for number in most if number < 1]:
        raise SparksError(f"--most must be at least 1, got {bad[0]}")
    asked = [_split(text) for text in texts]
    if twice := [name for name, _ in asked if [n for n, _ in asked].count(name) > 1]:
        raise SparksError(f"two sets are called {twice[0]!r}: name one, as in NAME={twice[0]}")
    found: list[ChosenSet] = []
    left_out: list[str] = []
    for name, spec in asked:
        heads = _found(spec, runs)
        if isinstance(heads, str):
            left_out.append(f"{name}: {heads}")
            continue
        line = runs.control if _of_control(spec) else runs.run or runs.control
        found += _cut(name, heads, line, most)
    if not found:
        raise SparksError(f"no set has a head: {'; '.join(left_out) or 'name at least one set'}")
    return ChosenSets(sets=tuple(found), left_out=tuple(left_out))


def _split(text: str) -> tuple[str, str]:
    """Name and what is written behind it."""
    name, mark, spec = text.partition("=")
    if not mark:
        return (text.strip(), text.strip()) if not is_head_list(text) else ("by hand", text)
    if not _NAME.match(name) or not spec.strip():
        raise SparksError(
            f"a set is a rule, heads, or NAME=either, got {text!r}: names are letters, digits, "
            f"blanks and ._+-"
        )
    return name.strip(), spec.strip()


def _of_control(spec: str) -> bool:
    return spec == CONTROL or spec.startswith(f"{CONTROL}:")


def _found(spec: str, runs: Runs) -> HeadSet | str:
    """The heads, or why there is none.

    Raises:
        SparksError: the set is written wrongly, or needs a run that is not there.
    """
    of_control = _of_control(spec)
    if of_control and runs.control is None:
        raise SparksError(
            f"the set {spec!r} needs a control task: --control-run FOLDER, or a run with probes of "
            f"the group {CONTROL!r}"
        )
    try:
        if spec == CONTROL:
            assert runs.control is not None
            return _active(runs.control)
        rule = spec.removeprefix(f"{CONTROL}:") if of_control else spec
        return choose_heads(rule, runs.control if of_control else runs.run, others=runs.others)
    except NoHeads as error:
        return str(error)


def _active(control: Timeline) -> HeadSet:
    """Every head that is active in the control task at the end."""
    heads = tuple((int(layer), int(head)) for layer, head in np.argwhere(control.active[-1]))
    what = f"probes of group {control.group!r}" if control.group else f"run {control.name}"
    where = f"{what}, by the {control.rule} rule, step {control.steps[-1]}"
    if not heads:
        raise NoHeads(f"no head is active in {where}: take the strongest with control:top:10")
    return HeadSet(name=CONTROL, heads=heads, origin=f"active in {where}")


def _cut(
    name: str, heads: HeadSet, timeline: Timeline | None, most: Sequence[int]
) -> list[ChosenSet]:
    """The set, or its most important heads; sizes that it does not reach once."""
    sizes = sorted({min(number, len(heads)) for number in most}) or [len(heads)]
    ranked = heads.heads
    if min(sizes) < len(heads):
        if timeline is None:
            raise SparksError(
                f"--most needs --run, whose importance ranks the heads of set {name!r}"
            )
        ranked = by_importance(timeline, heads.heads)
    return [
        ChosenSet(
            name=name,
            heads=tuple(sorted(ranked[:size])),
            found=len(heads),
            origin=heads.origin,
        )
        for size in sizes
    ]
