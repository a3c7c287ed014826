"""Sets of heads by rule from a timeline, and random sets that match them. No torch.

Rules, each after "Thinking Sparks!" (https://arxiv.org/abs/2509.25758, "Heads over time"):

1. `active` at the last checkpoint, `active@40` at step 40; `emergent` active and not base at the
   last checkpoint, `emergent@40` at step 40.
2. `born` ever born; `kept` born, and active at the end; `pruned` born, and silent at the end.
3. `base` active at the first checkpoint; `retained` those still active at the end; `base-only`
   those silent at the end.
4. `top:10` the ten heads of largest importance (A.6) at the last checkpoint; `top:10@40` at step
   40.
5. `exclusive` active at the end of this run, and at the end of none of the others.

What is active or born says the timeline's rule, that of growth or the paper's.

A random set matches a set if it has as many heads in every layer and shares none with it. Where a
layer has too few others, the nearest layers lend theirs; `moved` says how many.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from sparks.ground.errors import SparksError
from sparks.models.heads import Head, check_heads, is_head_list, names, parse_heads
from sparks.timeline.timeline import Timeline

_RULE = re.compile(r"([a-z-]+)(?::(\d+))?(?:@(\d+))?\Z")


class NoHeads(SparksError):  # noqa: N818
    """A rule finds no head: the run has none of the kind, and nothing else is wrong."""


_SETS: dict[str, Callable[[Timeline, int], Bool[np.ndarray, "layers heads"]]] = {
    "active": lambda line, at: line.active[at],
    "emergent": lambda line, at: line.emergent[at],
    "born": lambda line, at: line.cohort >= 0,
    "kept": lambda line, at: (line.cohort >= 0) & line.active[-1],
    "pruned": lambda line, at: (line.cohort >= 0) & ~line.active[-1] & ~line.undecided[-1],
    "base": lambda line, at: line.base,
    "retained": lambda line, at: line.retained[-1],
    "base-only": lambda line, at: line.base & ~line.active[-1] & ~line.undecided[-1],
}

RULES = (*_SETS, "top:K", "exclusive")
"""As `select_heads` takes them; some may carry a step, as in `emergent@40`."""

_OF_A_STEP = ("active", "emergent", "top")


@dataclass(frozen=True, kw_only=True)
class HeadSet:
    """Heads under a name, and where they come from."""

    name: str
    """The rule, or `by hand`, or `random 1`."""
    heads: tuple[Head, ...]
    """In order of layer and head."""
    origin: str
    """How they were found, in words."""
    moved: int = 0
    """Of a random set: heads that lie in another layer than those they match."""

    def __len__(self) -> int:
        return len(self.heads)

    def __str__(self) -> str:
        return names(self.heads)


def choose_heads(
    text: str, timeline: Timeline | None = None, *, others: Sequence[Timeline] = ()
) -> HeadSet:
    """The heads that `text` names, as `L5H1,L7H2` or as a rule.

    Raises:
        SparksError: as `parse_heads` or `select_heads`; or a rule without a timeline.
    """
    if is_head_list(text):
        return HeadSet(name="by hand", heads=parse_heads(text), origin="given by hand")
    if timeline is None:
        _parsed(text)
        raise SparksError(f"the rule {text!r} needs a run to read heads from: give its folder")
    return select_heads(timeline, text, others=others)


def select_heads(timeline: Timeline, rule: str, *, others: Sequence[Timeline] = ()) -> HeadSet:
    """The heads of a run that a rule names.

    Args:
        timeline: of the run.
        rule: one of `RULES`.
        others: runs that `exclusive` looks at, of models of the same shape.

    Raises:
        NoHeads: no head is found.
        SparksError: an unknown rule or step, `exclusive` without others or with those of another
            shape.
    """
    kind, most, step = _parsed(rule)
    at = _checkpoint(timeline, step)
    where = f"run {timeline.name or '(no name)'}, by the {timeline.rule} rule"
    if kind == "top":
        assert most is not None
        heads = strongest(timeline, None, most, checkpoint=at)
        where = f"run {timeline.name or '(no name)'}, importance at step {timeline.steps[at]}"
    elif kind == "exclusive":
        heads = _heads(_exclusive(timeline, others))
        where += ", active in none of " + ", ".join(other.name or "(no name)" for other in others)
    else:
        heads = _heads(_SETS[kind](timeline, at))
        where += f", step {timeline.steps[0 if kind == 'base' else at]}"
    if not heads:
        way = (
            "the paper's rule finds more (--rule paper), or take the strongest with top:10"
            if timeline.rule == "growth"
            else "take the strongest with top:10"
        )
        raise NoHeads(f"no head is {rule} in {where}: {way}")
    return HeadSet(name=rule, heads=heads, origin=where)


def strongest(
    timeline: Timeline, heads: Iterable[Head] | None, most: int, *, checkpoint: int = -1
) -> tuple[Head, ...]:
    """At most `most` heads of largest importance at a checkpoint, in order of layer and head.

    Args:
        timeline: of the run.
        heads: those to choose from; None chooses from all that have importance.
        most: how many.
        checkpoint: its index; -1 is the last one.

    Raises:
        SparksError: `most` is below 1.
    """
    if most < 1:
        raise SparksError(f"how many heads to take must be at least 1, got {most}")
    return tuple(sorted(by_importance(timeline, heads, checkpoint=checkpoint)[:most]))


def by_importance(
    timeline: Timeline, heads: Iterable[Head] | None, *, checkpoint: int = -1
) -> tuple[Head, ...]:
    """Heads, those of largest importance at a checkpoint first; of equal ones the lower layer.

    `heads` None takes all that have importance there.
    """
    importance = timeline.importance[checkpoint]
    chosen = _heads(importance > 0) if heads is None else tuple(sorted(heads))
    return tuple(sorted(chosen, key=lambda head: -importance[head]))


def matched_random(
    heads: Iterable[Head],
    *,
    num_layers: int,
    num_heads: int,
    draws: int,
    seed: int = 0,
    avoid: Iterable[Head] = (),
) -> tuple[HeadSet, ...]:
    """Random sets with as many heads in every layer as `heads`, and none of them.

    Args:
        heads: the set to match.
        num_layers: of the model.
        num_heads: attention heads of a layer.
        draws: sets to draw. They may overlap, and repeat where few heads are left.
        seed: of the draws; each draw has its own, so that more draws keep the first ones.
        avoid: heads that are never drawn either.

    Raises:
        SparksError: `heads` do not fit the model, fewer heads are left than are wanted, or
            `draws` is below 1.
    """
    wanted = check_heads(heads, num_layers=num_layers, num_heads=num_heads)
    taken = {*wanted, *avoid}
    free = [
        (layer, head)
        for layer in range(num_layers)
        for head in range(num_heads)
        if (layer, head) not in taken
    ]
    if draws < 1:
        raise SparksError(f"random draws must be at least 1, got {draws}")
    if len(free) < len(wanted):
        raise SparksError(
            f"no random heads match {len(wanted)} of {num_layers * num_heads}: only {len(free)} "
            f"others are left; take a smaller set"
        )
    return tuple(_random_set(wanted, free, seed, draw) for draw in range(draws))


def _random_set(wanted: tuple[Head, ...], free: Sequence[Head], seed: int, draw: int) -> HeadSet:
    rng = np.random.default_rng([seed, draw])
    order = [free[index] for index in rng.permutation(len(free))]
    layers = Counter(layer for layer, _ in wanted)
    own = {layer: [head for head in order if head[0] == layer][:n] for layer, n in layers.items()}
    drawn = [head for heads in own.values() for head in heads]
    for layer, number in layers.items():  # only then, so that no layer loses what it needs itself
        for _ in range(number - len(own[layer])):
            left = [head for head in order if head not in drawn]
            drawn.append(min(left, key=lambda head: abs(head[0] - layer)))
    moved = len(wanted) - sum(map(len, own.values()))
    return HeadSet(
        name=f"random {draw + 1}",
        heads=tuple(sorted(drawn)),
        origin=f"drawn at random, as many in each layer (seed {seed})",
        moved=moved,
    )


def _parsed(rule: str) -> tuple[str, int | None, int | None]:
    """Kind, number and step of a rule."""
    match = _RULE.match(rule.strip())
    kind = match[1] if match else ""
    takes_number, takes_step = kind == "top", kind in _OF_A_STEP
    if (
        match is None
        or kind not in (*_SETS, "top", "exclusive")
        or (match[2] is not None) != takes_number
        or (match[3] is not None and not takes_step)
    ):
        raise SparksError(
            f"{rule!r} names no heads: give them as L5H1,L7H2, or a rule: {', '.join(RULES)}"
        )
    number = int(match[2]) if match[2] else None
    return kind, number, int(match[3]) if match[3] else None


def _checkpoint(timeline: Timeline, step: int | None) -> int:
    if step is None:
        return -1
    steps = timeline.steps.tolist()
    if step not in steps:
        known = ", ".join(map(str, steps[:12])) + (", ..." if len(steps) > 12 else "")
        raise SparksError(f"run {timeline.name} has no snapshot of step {step}; it has: {known}")
    return steps.index(step)


def _exclusive(timeline: Timeline, others: Sequence[Timeline]) -> Bool[np.ndarray, "layers heads"]:
    if not others:
        raise SparksError("the rule 'exclusive' needs other runs to look at: name at least one")
    found = timeline.active[-1].copy()
    for other in others:
        if other.base.shape != timeline.base.shape:
            raise SparksError(
                f"runs {timeline.name} and {other.name} are of models of different shapes, "
                f"{timeline.base.shape} and {other.base.shape} layers and heads"
            )
        found &= ~other.active[-1] & ~other.undecided[-1]
    return found


def _heads(mask: Bool[np.ndarray, "layers heads"]) -> tuple[Head, ...]:
    return tuple((int(layer), int(head)) for layer, head in np.argwhere(mask))
