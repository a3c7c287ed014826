"""How many births and prunings an unchanged model gives: the null that a run is held against.

Nothing here passes a model. n = probes of the run; a *measurement* is the circuits of n probes.
The two measurements compared have no training between them, so what differs is false. By method:

1. `resampled` (default; the run's own first snapshot).
   Paper's rule: the n probes are split at random into disjoint halves, which are measurements of
   n / 2 probes. Drawing n of n with replacement instead repeats probes, and never finds the heads
   that only unseen probes hold: its median was half of the truth. What halves give is carried from
   n / 2 to n by the trend from quarters to halves,
       births(n) = births(n/2) x mean births(n/2) / mean births(n/4):
   a straight line on log scales, as births of real models follow. At n = 8, 12, 16 on SmolLM2-135M
   with the paper's settings, 95 % bands were 12-65, 9-50, 8-41 (medians 32, 24, 20), those of
   fresh probes 9-55, 8-43, 7-34 (26, 21, 18): a little wide. They held 91, 96 and 96 % of what
   fresh probes gave; at most 2 % lay above. Under a sparser setting, where few probes have most of
   the heads, 22 % did at n = 8 and 10 % at n = 16: `fresh probes` assumes nothing.
   Rule of growth: two draws of n probes with replacement, judged as two checkpoints, with fewer
   flips. Its tests need n probes, and compare probe with probe: draws of one set are exchangeable.
   Active heads: as measured +- (difference of two halves) / sqrt 2, which has the variance of the
   difference of two measurements of n probes (McCarthy 1969, half-samples); growth: +- the
   difference of the two draws.
2. `fresh probes` (a pool measured by `training.null`): disjoint sets of n from the pool and the
   run's own probes. No assumption but that the pool was made as the run's probes were.
3. `weight noise`: the same probes, on the model and on its weights plus tiny random numbers.
4. `seeds`: the last snapshots of runs of other seeds against this one's. Births: active heads that
   this run does not have.

Bands are the middle 95 % of the draws. In 1 and 2 either set may be the first, so births and
prunings have one band. A run's timeline has the same probes throughout, so an unchanged model has
no births there at all: births within the band are those that other probes would also give.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from sparks.attribution.snapshot import Snapshot, SnapshotMeta
from sparks.ground.errors import SparksError
from sparks.runs.null_band import NullBand, NullMethod
from sparks.timeline.growth.rule import growth
from sparks.timeline.growth.settings import GrowthConfig
from sparks.timeline.input import probes_of_group
from sparks.timeline.timeline import RULE_NAMES, Timeline

__all__ = [
    "NullBand",
    "exceeds",
    "fresh",
    "merged",
    "null_of",
    "nulls_of",
    "refuse_too_little",
    "resampled",
    "seeds",
    "sentence",
    "weight_noise",
]

DRAWS = 200
GROWTH_DRAWS = 20
"""Of the rule of growth, where every timeline draws them: a draw takes longer there."""
FEWEST = 4
"""Probes that can be split into quarters."""
_cache: WeakKeyDictionary[Snapshot, dict[Any, NullBand]] = WeakKeyDictionary()


def null_of(timeline: Timeline) -> NullBand | None:
    """The best null of other probes under the timeline's rule: measured on fresh ones, else drawn.

    None with fewer than 4 probes, or too little L at the first checkpoint.
    """
    bands = {band.method: band for band in nulls_of(timeline)}
    return bands.get("fresh probes") or bands.get("resampled")


def nulls_of(timeline: Timeline) -> tuple[NullBand, ...]:
    """`resampled`, and what `sparks null` found of this run under the timeline's rule."""
    if timeline.too_little[0]:
        return ()
    kept = [band for band in timeline.nulls if _belongs(band, timeline)]
    known = {band.method for band in kept}
    drawn = None if "resampled" in known else resampled(timeline)
    return (*kept,) if drawn is None else (drawn, *kept)


def sentence(timeline: Timeline, band: NullBand | None) -> str:
    """Whether the run's emergent heads exceed the null, in words; no full stop."""
    step, by = timeline.steps[-1], f"by the {RULE_NAMES[timeline.rule]}"
    if timeline.too_little[[0, -1]].any():
        return f"{timeline.little_in_words()}: no verdict"
    if band is None:
        return f"{timeline.num_probes} probes are too few for a null: {FEWEST} are needed"
    given = f"{_NULL_NAMES[band.method]} {_span(band.births_low, band.births_high)}"
    fewest = timeline.growth_config.fewest_probes
    if timeline.rule == "growth" and band.method != "seeds" and timeline.num_probes < fewest:
        return (
            f"{timeline.num_probes} probes cannot settle a birth {by} ({fewest} are needed), on "
            f"this model or on an unchanged one"
        )
    if len(timeline) == 1:
        return f"one checkpoint, no births yet; {given} {by}"
    emergent = _heads(_emergent(timeline))
    verdict = "more" if exceeds(timeline, band) else "no more"
    text = f"{emergent} emergent at step {step} {by}; {given}: {verdict} than its null"
    if verdict == "more" and timeline.rule == "paper":
        return f"{text}, as a number; which of them are real it does not say"
    return text


def exceeds(timeline: Timeline, band: NullBand) -> bool:
    """More heads are emergent at the last checkpoint than the upper end of the band."""
    return _emergent(timeline) > band.births_high


_NULL_NAMES: dict[NullMethod, str] = {
    "resampled": "an unchanged model measured with other probes gives",
    "fresh probes": "an unchanged model measured with fresh probes gives",
    "weight noise": "tiny noise on the weights alone gives",
    "seeds": "active heads of another seed's run that this one does not have:",
}


def _emergent(timeline: Timeline) -> int:
    return int(timeline.emergent[-1].sum())


def _heads(number: int) -> str:
    return {0: "no head is", 1: "1 head is"}.get(number, f"{number} heads are")


def _span(low: float, high: float) -> str:
    ends = f"{low:.0f}", f"{high:.0f}"
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _belongs(band: NullBand, timeline: Timeline) -> bool:
    """The band was found of this run, these probes and this rule."""
    meta = timeline.metas[-1 if band.method == "seeds" else 0]
    as_found = timeline.group is None and timeline.growth_config == GrowthConfig()
    here = {"rule": timeline.rule, "probes": timeline.num_probes} | _base(meta)
    return as_found and all(getattr(band, name) == value for name, value in here.items())


def merged(old: Sequence[NullBand], new: Sequence[NullBand]) -> tuple[NullBand, ...]:
    """`new`, and those of `old` that no new one replaces (same rule, method and noise)."""
    keys = {(band.rule, band.method, band.noise) for band in new}
    return (*[b for b in old if (b.rule, b.method, b.noise) not in keys], *new)


# -- methods ---------------------------------------------------------------------------------


def resampled(timeline: Timeline, *, draws: int | None = None, seed: int = 0) -> NullBand | None:
    """From the run's own first snapshot; None with fewer than 4 probes, or too little L there.

    Args:
        timeline: the rule and the probes are its own.
        draws: random splits; None takes `DRAWS`, of the rule of growth `GROWTH_DRAWS`.
        seed: of the draws.
    """
    draws = draws or (DRAWS if timeline.rule == "paper" else GROWTH_DRAWS)
    if timeline.num_probes < FEWEST or timeline.too_little[0]:
        return None
    known = _cache.setdefault(timeline.snapshots[0], {})
    key = (timeline.rule, timeline.group, timeline.growth_config, draws, seed)
    if key not in known:
        known[key] = _resampled(timeline, draws, np.random.default_rng(seed))
    return known[key]


def _resampled(timeline: Timeline, draws: int, rng: np.random.Generator) -> NullBand:
    own = _Probes.of(timeline.snapshots[0], timeline.group)
    judge = _judge(timeline)
    n = timeline.num_probes
    centre = judge(own, own)[0]
    if timeline.rule == "paper":
        pairs = [_splits(n, size, draws, rng) for size in (n // 2, 2 * (n // 4), n // 4)]
        halves, even, quarters = (_compared(own, own, sets, judge) for sets in pairs)
        below = quarters.changes.mean()
        changes = halves.changes * (even.changes.mean() / below if below else 1.0)
        away = (halves.before - halves.after) / np.sqrt(2)
        how = f"split at random {draws} times, and extrapolated from {n // 2} probes to {n}"
    else:
        sets = rng.integers(0, n, (draws, 2, n))
        found = _compared(own, own, sets, judge)
        changes, away = found.changes, found.before - found.after
        how = f"drawn with replacement {draws} times"
    active = np.maximum(0, centre + np.concatenate([away, -away]))
    return NullBand(
        **_about(timeline, "resampled", draws),
        **_ends(changes, changes, active),
        pool=n,
        source=f"the run's own {n} probes at step {timeline.steps[0]}, {how}",
    )


def fresh(
    timeline: Timeline,
    pool: Snapshot,
    *,
    base: Snapshot | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> NullBand:
    """From disjoint sets of fresh probes, measured on the model of the run's first snapshot.

    Args:
        timeline: the rule and the number of probes are its own.
        pool: other probes, of the same kind; those of the group `control` are left out.
        base: the run's probes on the very same weights; None takes the run's first snapshot.
        draws: random pairs of sets.
        seed: of the draws.

    Raises:
        SparksError: the pool is too small, or of another model shape or other settings; too little
            L at the first checkpoint.
    """
    refuse_too_little(timeline)
    base = base or timeline.snapshots[0]
    check_like(base, pool, "the pool")
    n = timeline.num_probes
    parts = [_Probes.of(base, timeline.group), _Probes.of(pool, None)]
    every = _Probes.joined(parts)
    if len(parts[1]) < n:
        raise SparksError(
            f"the pool must hold at least as many probes as the run counts ({n}), and none of "
            f"them, got {len(parts[1])} others: build more with `sparks probes`"
        )
    sets = _splits(len(every), n, draws, np.random.default_rng(seed))
    found = _compared(every, every, sets, _judge(timeline))
    active = np.concatenate([found.before, found.after])
    return NullBand(
        **_about(timeline, "fresh probes", draws),
        **_ends(found.changes, found.changes, active),
        pool=len(every),
        source=f"{draws} pairs of disjoint sets of {n} from {len(every)} probes ({len(parts[1])} "
        f"fresh) on the unchanged model of step {timeline.steps[0]}",
    )


def weight_noise(
    timeline: Timeline, noisy: Sequence[Snapshot], noise: float, *, base: Snapshot | None = None
) -> NullBand:
    """From the run's probes on the model of its first snapshot, and on its weights plus noise.

    Args:
        timeline: the rule is its own.
        noisy: a snapshot a draw, at least one.
        noise: standard deviation of what was added to a matrix, of the matrix's own.
        base: the snapshot without noise; None takes the run's first.

    Raises:
        SparksError: a snapshot is of other probes, another model shape or other settings; too
            little L at the first checkpoint.
    """
    refuse_too_little(timeline)
    base = base or timeline.snapshots[0]
    pairs = [
        (base, check_like(base, snapshot, "a noisy model", same_probes=True)) for snapshot in noisy
    ]
    found = _of_pairs(timeline, pairs)
    return NullBand(
        **_about(timeline, "weight noise", len(noisy)),
        **_ends(found.born, found.gone, found.after),
        noise=float(noise),
        source=f"the run's {timeline.num_probes} probes on the model of step {timeline.steps[0]}, "
        f"without and with noise of {noise:g} of each matrix's spread on its weights "
        f"({len(noisy)} drawn)",
    )


def seeds(timeline: Timeline, others: Sequence[Timeline]) -> NullBand:
    """From the last snapshots of runs of other seeds against this run's last.

    Args:
        timeline: the rule is its own.
        others: at least one.

    Raises:
        SparksError: a run has other probes, another model shape or other settings; too little L at
            the last checkpoint of one.
    """
    for run in (timeline, *others):
        refuse_too_little(run, -1)
    last = timeline.snapshots[-1]
    ends = [other.snapshots[-1] for other in others]
    pairs = [
        (last, check_like(last, end, "a run of another seed", same_probes=True)) for end in ends
    ]
    found = _of_pairs(timeline, pairs)
    steps = ", ".join(str(step) for step in sorted({end.step for end in ends}))
    runs = "1 run of another seed" if len(ends) == 1 else f"{len(ends)} runs of other seeds"
    return NullBand(
        **(_about(timeline, "seeds", len(ends)) | _base(last.meta)),
        **_ends(found.born, found.gone, found.after),
        source=f"{runs} at step {steps}, against this run at step {last.step}",
    )


def refuse_too_little(timeline: Timeline, checkpoint: int = 0) -> None:
    """There is something to attribute at the checkpoint of this index.

    Raises:
        SparksError: there is not.
    """
    if timeline.too_little[checkpoint]:
        raise SparksError(
            f"{timeline.little_in_words()}: circuits are noise there, and so is what an unchanged "
            f"model gives; take probes whose two beginnings the model tells apart"
        )


def check_like(
    first: Snapshot, other: Snapshot, what: str, *, same_probes: bool = False
) -> Snapshot:
    """`other`, once it is sure that the two can be compared head by head.

    Raises:
        SparksError: they differ in graph or settings, or in probes that must be the same.
    """
    compared: list[tuple[str, Any, Any]] = [("model shape", first.graph, other.graph)]
    if found := first.meta.settings.difference(other.meta.settings):
        compared.append(found)
    if same_probes:
        compared.append(("probes", first.meta.probes_hash[:12], other.meta.probes_hash[:12]))
    for name, ours, theirs in compared:
        if ours != theirs:
            raise SparksError(
                f"{what} must have the run's own {name} ({ours}), got {theirs}: it cannot be held "
                f"against this run"
            )
    return other


def _about(timeline: Timeline, method: NullMethod, draws: int) -> dict[str, Any]:
    own = {"rule": timeline.rule, "method": method, "probes": timeline.num_probes, "draws": draws}
    return own | _base(timeline.metas[0])


def _base(meta: SnapshotMeta) -> dict[str, Any]:
    return {
        "base_step": meta.step,
        "base_hash": meta.model_hash,
        "probes_hash": meta.probes_hash,
        "settings": json.dumps(meta.settings.measurement(), sort_keys=True),
    }


# -- two measurements ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Probes:
    """What the rules read of probes."""

    active: Bool[np.ndarray, "probes layers heads"]
    totals: Float[np.ndarray, "probes all"]
    loss: Float[np.ndarray, " probes"]

    def __len__(self) -> int:
        return len(self.active)

    @classmethod
    def of(cls, snapshot: Snapshot, group: str | None) -> _Probes:
        """Of the counted probes."""
        chosen = probes_of_group(snapshot.probe_groups, group)
        parts = (snapshot.active, snapshot.head_totals, snapshot.loss_corrupted)
        return cls(*(part[chosen] for part in parts))

    @classmethod
    def joined(cls, parts: Sequence[_Probes]) -> _Probes:
        names = ("active", "totals", "loss")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def take(self, indices: Int[np.ndarray, " chosen"]) -> _Probes:
        return _Probes(self.active[indices], self.totals[indices], self.loss[indices])


@dataclass(frozen=True, eq=False)
class _Counts:
    """Numbers of heads of pairs of measurements."""

    before: Num[np.ndarray, " draws"]
    after: Num[np.ndarray, " draws"]
    born: Num[np.ndarray, " draws"]
    gone: Num[np.ndarray, " draws"]

    @property
    def changes(self) -> Num[np.ndarray, " twice"]:
        """Births and prunings: either measurement may be the first."""
        return np.concatenate([self.born, self.gone])


_Judge = Callable[[_Probes, _Probes], list[int]]
"""Two measurements -> numbers of heads: active before, active after, born, gone."""


def _judge(timeline: Timeline) -> _Judge:
    """How the timeline's rule judges a pair."""
    if timeline.rule == "paper":
        return _by_paper
    config = timeline.growth_config.with_few_flips()

    def by_growth(before: _Probes, after: _Probes) -> list[int]:
        totals, loss = (
            np.stack([getattr(probes, name) for probes in (before, after)])
            for name in ("totals", "loss")
        )
        found = growth(totals, loss, config)
        return [*(found.share > 1).sum(axis=1).tolist(), *_signs(found.change[1])]

    return by_growth


def _by_paper(before: _Probes, after: _Probes) -> list[int]:
    first, second = (probes.active.any(axis=0) for probes in (before, after))
    return [int(first.sum()), int(second.sum()), *_signs(np.subtract(second, first, dtype=np.int8))]


def _signs(turned: Int[np.ndarray, "*all"]) -> list[int]:
    return [int((turned > 0).sum()), int((turned < 0).sum())]


def _counts(found: Sequence[list[int]]) -> _Counts:
    return _Counts(*np.array(found).T)


def _compared(
    first: _Probes, second: _Probes, sets: Int[np.ndarray, "draws 2 size"], judge: _Judge
) -> _Counts:
    return _counts([judge(first.take(one), second.take(two)) for one, two in sets])


def _of_pairs(timeline: Timeline, pairs: Sequence[tuple[Snapshot, Snapshot]]) -> _Counts:
    if not pairs:
        raise SparksError("a null must be of at least one measurement, got none")
    judge, group = _judge(timeline), timeline.group
    return _counts([judge(*(_Probes.of(snapshot, group) for snapshot in pair)) for pair in pairs])


def _splits(
    count: int, size: int, draws: int, rng: np.random.Generator
) -> Int[np.ndarray, "draws 2 size"]:
    """Pairs of disjoint sets of `size` of `count` probes."""
    order = rng.permuted(np.tile(np.arange(count), (draws, 1)), axis=1)
    return order[:, : 2 * size].reshape(draws, 2, size)


def _ends(
    births: Num[np.ndarray, " draws"],
    prunings: Num[np.ndarray, " draws"],
    active: Num[np.ndarray, " draws"],
) -> dict[str, Any]:
    """Median and the ends of the middle 95 % of each."""
    found = {"births": births, "prunings": prunings, "active": active}
    ends: dict[str, Any] = {}
    for name, values in found.items():
        low, median, high = np.quantile(values, [0.025, 0.5, 0.975]).tolist()
        ends |= {f"{name}_low": low, f"{name}_median": median, f"{name}_high": high}
    return ends
