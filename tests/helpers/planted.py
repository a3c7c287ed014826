"""A run whose truth is known: heads of a model are silenced, revived, grown and shrunk by hand.

At each checkpoint what a head writes is scaled, by scaling its columns of the attention's output
projection; then the model is measured as in a training. The edited heads' events are known from the
edits. A head that nobody edited may change too, as a consequence; whether it really did is judged
by other probes (`judged`), not by the rule under test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from models import token_pair
from torch import nn

from sparks.attribution.snapshot import Snapshot
from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.models.anatomy_proof import take_apart
from sparks.models.guard import undisturbed
from sparks.probes.pairs import TokenizedProbes
from sparks.timeline.timeline import Timeline

Head = tuple[int, int]

STORIES: dict[str, tuple[Sequence[float], Sequence[tuple[str, int, int]]]] = {
    # Scale at each of ten checkpoints; events as (kind, first, last checkpoint that is right).
    "silenced": ([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [("silenced", 3, 3)]),
    "born": ([0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [("born", 2, 2)]),
    "dies and returns": (
        [1, 1, 0, 0, 0, 0, 1, 1, 1, 1],
        [("silenced", 2, 2), ("returned", 6, 6)],
    ),
    "born, pruned, revived": (
        [0, 1, 1, 1, 0, 0, 0, 1, 1, 1],
        [("born", 1, 1), ("pruned", 4, 4), ("revived", 7, 7)],
    ),
    "slow growth": ([0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1, 1], [("born", 2, 8)]),
    "slow decline": ([1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0], [("silenced", 4, 9)]),
}
CHECKPOINTS = 10


@contextmanager
def scaled(model: nn.Module, scales: Mapping[Head, float]) -> Iterator[None]:
    """The model with what these heads write multiplied; as before afterwards, to the bit."""
    with undisturbed(model):
        anatomy = take_apart(model)
    weights = {layer: anatomy.layers[layer].output.weight for layer, _ in scales}
    before = {layer: weight.detach().clone() for layer, weight in weights.items()}
    try:
        with torch.no_grad():
            for (layer, head), scale in scales.items():
                columns = weights[layer].unflatten(1, (anatomy.graph.num_heads, -1))
                columns[:, head] *= scale
        yield
    finally:
        with torch.no_grad():
            for layer, weight in weights.items():
                weight.copy_(before[layer])


@dataclass(frozen=True)
class Planted:
    """What was done to which head."""

    story: Mapping[Head, str]

    def run(
        self, model: nn.Module, probes: TokenizedProbes, config: SnapshotConfig
    ) -> list[Snapshot]:
        """A snapshot a checkpoint, steps 0, 10, 20, ..."""
        snapshots = []
        for time in range(CHECKPOINTS):
            scales = {head: float(STORIES[name][0][time]) for head, name in self.story.items()}
            with scaled(model, scales):
                snapshots.append(
                    take_snapshot(model, probes, config, step=10 * time, progress=False)
                )
        return snapshots


@dataclass(frozen=True)
class Score:
    """Events found against events planted."""

    planted: int
    found: int
    """Of the planted, at the right checkpoint."""
    called: int
    """Events of edited heads, and of others that other probes do not confirm."""
    consequences: int
    """Events of heads that nobody edited and that other probes confirm."""
    wrong: tuple[str, ...]
    """What was missed or made up, in words."""

    @property
    def recall(self) -> float:
        return self.found / self.planted

    @property
    def precision(self) -> float:
        return self.found / self.called


def judge(timeline: Timeline, planted: Planted, truth: Timeline) -> Score:
    """Compare a timeline with the edits.

    Args:
        timeline: by the rule under test.
        planted: the edits.
        truth: of the same checkpoints, measured with other probes, many of them.
    """
    wanted = {
        (head, kind): (first, last)
        for head, name in planted.story.items()
        for kind, first, last in STORIES[name][1]
    }
    found, called, consequences, wrong = 0, 0, 0, []
    steps = timeline.steps.tolist()
    for event in timeline.event_list():
        head, at = (event.layer, event.head), steps.index(event.step)
        if head in planted.story:
            called += 1
            first, last = wanted.pop((head, event.kind), (-1, -1))
            shows = crossing(truth, head, at)
            if first <= at <= last and abs(steps.index(event.onset) - shows) <= 1:
                found += 1
            else:
                right = f"{first}-{last}, onset {steps.index(event.onset)}, truth {shows}"
                wrong.append(f"{event.name} {event.kind} at checkpoint {at}, right: {right}")
        elif confirmed(truth, head, at, up=event.kind in ("born", "revived", "returned")):
            consequences += 1
        else:
            called += 1
            wrong.append(f"{event.name} {event.kind} at checkpoint {at}: nobody edited it")
    wrong += [f"L{h[0]}H{h[1]} {kind} missed" for h, kind in wanted]
    return Score(
        planted=found + len(wrong) - sum("nobody" in line for line in wrong),
        found=found,
        called=called,
        consequences=consequences,
        wrong=tuple(wrong),
    )


def confirmed(truth: Timeline, head: Head, at: int, *, up: bool) -> bool:
    """Other probes see the head on the new side of an even share now, and on the other before."""
    above = truth.share[:, head[0], head[1]] >= 1
    return bool(above[at] == up and (above[:at] != up).any())


def crossing(truth: Timeline, head: Head, at: int) -> int:
    """Checkpoint since which other probes see the head on the side of an even share it is on."""
    above = truth.share[: at + 1, head[0], head[1]] >= 1
    return int(np.flatnonzero(above != above[-1])[-1:].sum() + 1)


def clear_heads(snapshot: Snapshot, count: int) -> list[Head]:
    """Heads with the largest shares of the unedited model, the surest first."""
    share = Timeline([snapshot]).share[0]
    order = np.argsort(-share, axis=None, kind="stable")[:count]
    return [divmod(int(index), share.shape[1]) for index in order]


def random_probes(count: int, start: int) -> TokenizedProbes:
    """Of a tiny model: random tokens."""
    pairs = tuple(token_pair(4, 5, seed=start + index) for index in range(count))
    ids = tuple(f"p{index}" for index in range(count))
    return TokenizedProbes(pairs=pairs, ids=ids, groups=("",) * count, hash=str(start))
