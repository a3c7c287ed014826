"""What a study measures: the intact model, and each set with its random heads. No torch.

1. Each set has a number of random draws that match it, no two alike, the same under every factor.
2. A condition is one file of answers. Its name ends in a digest of what is done to which heads, so
   that a set whose heads have changed is never gone on with under its old name.
3. The plan stands in the study's folder as JSON: who reads it needs neither runs nor model.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparks.effects.choose_heads import HeadSet, matched_random
from sparks.effects.sets import ChosenSet, ChosenSets
from sparks.effects.settings import FEWEST_DRAWS
from sparks.ground.errors import SparksError
from sparks.ground.files import read_file, why, write_atomically
from sparks.ground.schema import LIMITS, Count, LongText, Number, Scalar, Versioned, decode
from sparks.models.heads import Head, check_heads, names, parse_heads

KIND, SCHEMA = "sparks effects", 1
FILE = "study.json"
_TRIES = 20
"""Draws that are looked through for each that is wanted."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One evaluation."""

    label: str
    """For progress: `emergent 10 x0, random draw 2`."""
    kind: str
    """For the file's name: draws that come out alike share a file, also those of two sets."""
    heads: tuple[Head, ...]
    """None for the intact model."""
    scale: float
    intervention: str
    """What is done, in words; empty for the intact model."""

    @property
    def file(self) -> str:
        """Below the study's folder."""
        slug = re.sub(r"[^A-Za-z0-9]+", "-", self.kind).strip("-").lower()
        if self.intervention:
            slug += f"-{hashlib.sha256(self.intervention.encode()).hexdigest()[:8]}"
        return f"answers/{slug}.jsonl"


INTACT = Condition(label="no ablation", kind="intact", heads=(), scale=1.0, intervention="")


@dataclass(frozen=True, kw_only=True)
class PlannedSet(ChosenSet):
    """A set under one factor, with its random draws."""

    done: str
    """What is done to the heads, in words: `set to 0`."""
    scale: float
    random: tuple[tuple[Head, ...], ...]
    """A draw each."""
    moved: tuple[int, ...]
    """Of each draw, heads in another layer than those they match."""

    def conditions(self) -> tuple[Condition, ...]:
        """The set itself, then its draws."""
        what = f"{self.name} {len(self.heads)} x{self.scale:g}"
        draws = range(1, len(self.random) + 1)
        labels = [what, *(f"{what}, random draw {draw}" for draw in draws)]
        return tuple(
            Condition(
                label=label,
                kind=f"random {len(heads)}" if heads is not self.heads else what,
                heads=heads,
                scale=self.scale,
                intervention=f"{names(heads)} {self.done}",
            )
            for label, heads in zip(labels, (self.heads, *self.random), strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study."""

    model: str
    task: str
    metric: str
    margin: float
    settings: Mapping[str, Any]
    """How answers are sampled, as it was asked for."""
    sets: tuple[PlannedSet, ...]
    left_out: tuple[str, ...] = ()
    stamp: str = ""
    """Of the model's files, where they are a folder."""

    def conditions(self) -> Iterator[Condition]:
        """The intact model first, then each set with its draws; each file once."""
        found = {INTACT.file: INTACT}
        for planned in self.sets:
            for condition in planned.conditions():
                found.setdefault(condition.file, condition)
        yield from found.values()

    def save(self, folder: Path) -> Path:
        """Write it into the study's folder.

        Raises:
            SparksError: it cannot be written.
        """
        return write_atomically(
            folder / FILE,
            json.dumps(self.as_dict(), indent=1) + "\n",
            way_out="give another --output",
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = [
            {
                **vars(planned),
                "heads": names(planned.heads),
                "random": [names(heads) for heads in planned.random],
                "moved": list(planned.moved),
            }
            for planned in self.sets
        ]
        values = {"settings": dict(self.settings), "left_out": list(self.left_out), "sets": rows}
        return {"kind": KIND, "schema": SCHEMA, **vars(self), **values}

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """The plan in a study's folder.

        Raises:
            SparksError: there is none, or it is damaged.
        """
        path = folder / FILE
        try:
            content = read_file(path, within=folder, most=_MOST_BYTES)
            told = decode(Versioned, content)
            if (told.kind, told.schema) == (KIND, SCHEMA):
                return decode(_File, content).plan()
        except FileNotFoundError as error:
            raise SparksError(
                f"no study of effects in {folder}: give the folder that --output wrote, or MODEL "
                f"with --task and --output"
            ) from error
        except OSError as error:
            raise SparksError(f"cannot read {path}: {why(error)}") from error
        except ValueError as error:
            raise SparksError(f"{path}: damaged ({error}): run the study again") from error
        raise SparksError(f"{path}: schema {told.schema}, this sparks reads {SCHEMA}: upgrade")


_MOST_BYTES = 2**26


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A `PlannedSet` as the file has it: heads are text."""

    __pydantic_config__ = LIMITS

    name: str
    heads: LongText
    found: Count
    origin: str
    done: str
    scale: Number
    random: tuple[LongText, ...]
    moved: tuple[Count, ...]

    def planned(self) -> PlannedSet:
        if len(self.random) != len(self.moved):
            raise SparksError(f"{len(self.random)} draws, {len(self.moved)} numbers of moved heads")
        random = tuple(map(parse_heads, self.random))
        return PlannedSet(**vars(self) | {"heads": parse_heads(self.heads), "random": random})


@dataclass(frozen=True, kw_only=True)
class _File:
    """A `Plan` as the file has it."""

    __pydantic_config__ = LIMITS

    model: str
    task: str
    metric: str
    margin: Number
    settings: dict[str, Scalar]
    sets: tuple[_Row, ...]
    left_out: tuple[LongText, ...]
    stamp: str = ""

    def plan(self) -> Plan:
        return Plan(**vars(self) | {"sets": tuple(row.planned() for row in self.sets)})


def make_plan(
    chosen: ChosenSets,
    *,
    shape: tuple[int, int],
    scales: Sequence[float],
    in_words: Callable[[float], str],
    draws: int,
    seed: int,
    **study: Any,
) -> Plan:
    """Draw the random heads of every set.

    Args:
        chosen: the sets.
        shape: layers and heads of the model.
        scales: factors; 1 changes nothing, and is passed over.
        in_words: what a factor does to heads: `set to 0`.
        draws: random sets a set.
        seed: of the draws.
        **study: the other fields of `Plan`.

    Raises:
        SparksError: a factor that is not finite, none but 1, a head that the model does not have,
            or no set that random heads can match.
    """
    if odd := [scale for scale in scales if not math.isfinite(scale)]:
        raise SparksError(f"scale must be a finite number, got {odd[0]}: 0 turns heads off")
    factors = [scale for scale in dict.fromkeys(scales) if scale != 1]
    if not factors:
        raise SparksError("scale 1 changes nothing: give another factor, 0 turns heads off")
    layers, heads = shape
    planned: list[PlannedSet] = []
    left_out = list(chosen.left_out)
    for item in chosen.sets:
        check_heads(item.heads, num_layers=layers, num_heads=heads)
        try:
            drawn = _different(item.heads, shape, draws, seed)
        except SparksError as error:
            left_out.append(f"{item.name}: {error}, as with --most 10")
            continue
        if len(drawn) < FEWEST_DRAWS:
            left_out.append(
                f"{item.name}: only {len(drawn)} set of random heads matches its "
                f"{len(item.heads)}, {FEWEST_DRAWS} are needed; take a smaller set, as with --most"
            )
            continue
        random = tuple(each.heads for each in drawn)
        moved = tuple(each.moved for each in drawn)
        planned += [
            PlannedSet(**vars(item), done=in_words(scale), scale=scale, random=random, moved=moved)
            for scale in factors
        ]
    if not planned:
        raise SparksError(f"no set can be measured: {'; '.join(left_out)}")
    return Plan(sets=tuple(planned), left_out=tuple(left_out), **study)


def _different(
    heads: tuple[Head, ...], shape: tuple[int, int], draws: int, seed: int
) -> list[HeadSet]:
    """So many draws that match, no two alike; fewer where there are not so many.

    A set drawn again would be measured to the same answers, and tell nothing new.
    """
    layers, per_layer = shape
    drawn = matched_random(
        heads, num_layers=layers, num_heads=per_layer, draws=_TRIES * draws, seed=seed
    )
    found: dict[tuple[Head, ...], HeadSet] = {}
    for each in drawn:
        found.setdefault(each.heads, each)
    return list(found.values())[:draws]


def stamp_of(model: str) -> str:
    """Names, sizes and times of a model folder's files, as a digest; empty for a hub id."""
    folder = Path(model)
    if not folder.is_dir():
        return ""
    files = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]
    return hashlib.sha256(repr(files).encode()).hexdigest()[:16]


def same_answers(one: Plan, other: Plan) -> bool:
    """Whether two plans ask the same model the same: what is made of the answers may differ."""
    return replace(one, metric="", margin=0.0) == replace(other, metric="", margin=0.0)
