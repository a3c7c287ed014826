"""Heads with thinking on and off: shared, of one mode alone, undecided. No torch.

Both modes are measured with the same problems on one model, so that every test is paired over
probes (`thinking.states`).

How many heads either rule calls exclusive by luck is measured by exchanging modes within probes
(`overlap`). A head of one mode alone matters to what the model writes under that mode; what
it does there, an ablation has to show.

Source: "Thinking Sparks!", https://arxiv.org/abs/2509.25758, section 6, Fig. 5.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int8, Num

from sparks.ground.errors import SparksError
from sparks.models.heads import Head, head_name
from sparks.probes.thinking_switch import MODES, Mode
from sparks.thinking.overlap import DRAWS, Sets, edge_sets, exchanged, overlap
from sparks.thinking.record import ThinkRecord
from sparks.thinking.states import (
    ONLY_OFF,
    ONLY_ON,
    STATES,
    Measured,
    by_paper,
    exchanged_modes,
    judged,
    num_exclusive,
)
from sparks.timeline.timeline import RULES, Rule, Timeline

HALF = 0.5
"""Of the circuits: more of them are most."""


class ThinkComparison:
    """Two measurements of one model, thinking on and off, the same problems in the same order."""

    on: Timeline
    off: Timeline
    record: ThinkRecord | None
    """Of the folder, where there is one."""

    def __init__(
        self, on: Timeline, off: Timeline, *, record: ThinkRecord | None = None, seed: int = 0
    ) -> None:
        """Check that the two can be compared.

        Args:
            on: measured with thinking on; its last snapshot counts.
            off: measured with thinking off.
            record: of the folder.
            seed: of the draws of the nulls.

        Raises:
            SparksError: they differ in model, probes or settings.
        """
        self.on, self.off = on.by("growth"), off.by("growth")
        self.record, self._seed = record, seed
        self._check_alike()

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str]) -> ThinkComparison:
        """The comparison of a folder that `measure_think` wrote.

        Raises:
            SparksError: it holds no such measurement, or one that is not finished.
        """
        folder = Path(path)
        record = ThinkRecord.load(folder)
        for mode in MODES:
            if not (folder / mode / "step-00000000.safetensors").exists():
                raise SparksError(
                    f"{folder} has no snapshot with thinking {mode}: finish it with sparks think "
                    f"{record.model} --output {folder}"
                )
        on, off = (Timeline.from_run(folder / mode) for mode in MODES)
        return cls(on, off, record=record)

    # -- heads -------------------------------------------------------------------------------

    @cached_property
    def states(self) -> Int8[np.ndarray, "layers heads"]:
        """Index into `STATES` of every head, by the rule of growth."""
        found, _ = judged(*self._measured, self.on.growth_config)
        return found.reshape(self._shape)

    @cached_property
    def paper_states(self) -> Int8[np.ndarray, "layers heads"]:
        """The same by the paper's rule."""
        return by_paper(*self._held).reshape(self._shape)

    def exclusive(self, mode: Mode, rule: Rule = "growth") -> tuple[Head, ...]:
        """Heads of this mode alone, in order of layer and head.

        Raises:
            SparksError: an unknown mode or rule.
        """
        if mode not in MODES or rule not in RULES:
            raise SparksError(
                f"mode must be on or off and rule growth or paper, got {mode!r} and {rule!r}"
            )
        states = self.states if rule == "growth" else self.paper_states
        wanted = ONLY_ON if mode == "on" else ONLY_OFF
        return tuple((int(layer), int(head)) for layer, head in np.argwhere(states == wanted))

    def heads(self) -> pd.DataFrame:
        """A row a head, layer by layer.

        Columns: head (its name), layer, index; state and paper_state (of `STATES`); on, on_low,
        on_high, off, off_low, off_high (share of all score mass under each mode, in even shares,
        and its 95 % interval); factor (on / off); higher (`on` or `off` where the
        paired test says so, else empty); on_frequency, off_frequency (share of the probes'
        circuits, paper's n and tau); on_importance, off_importance (A.6).
        """
        _, higher = judged(*self._measured, self.on.growth_config)
        layers, heads = self._shape
        frame = pd.DataFrame(
            {
                "head": [head_name(divmod(index, heads)) for index in range(layers * heads)],
                "layer": np.repeat(np.arange(layers), heads),
                "index": np.tile(np.arange(heads), layers),
                "state": [STATES[state] for state in self.states.ravel()],
                "paper_state": [STATES[state] for state in self.paper_states.ravel()],
            }
        )
        for mode, line in (("on", self.on), ("off", self.off)):
            frame[mode] = line.share[-1].ravel().astype(float)
            frame[f"{mode}_low"] = line.share_low[-1].ravel().astype(float)
            frame[f"{mode}_high"] = line.share_high[-1].ravel().astype(float)
        frame["factor"] = frame["on"] / frame["off"]
        frame["higher"] = [{1: "on", -1: "off", 0: ""}[int(way)] for way in higher]
        for mode, line in (("on", self.on), ("off", self.off)):
            frame[f"{mode}_frequency"] = line.frequency[-1].ravel().astype(float)
            frame[f"{mode}_importance"] = line.importance[-1].ravel().astype(float)
        return frame

    def counts(self) -> pd.DataFrame:
        """A row a rule.

        Columns: rule; shared, only_on, only_off, neither, undecided (heads); on, off (heads that
        are active under the mode); exclusive (of either mode alone), and luck, luck_low, luck_high
        (median and middle 95 % of `exclusive` where each probe's modes are exchanged at random).
        """
        held_on, held_off = self._held
        on, off = self._measured
        config = self.on.growth_config.with_few_flips()

        def by_growth(mask: Bool[np.ndarray, " probes"]) -> int:
            totals = exchanged_modes(on.totals, off.totals, mask)
            loss = exchanged_modes(on.loss, off.loss, mask)
            one, two = map(Measured, totals, loss)
            return num_exclusive(judged(one, two, config)[0])

        def paper(mask: Bool[np.ndarray, " probes"]) -> int:
            return num_exclusive(by_paper(*exchanged_modes(held_on, held_off, mask)))

        rows = []
        by_rule: dict[Rule, tuple[Any, Any]] = {
            "growth": (self.states, by_growth),
            "paper": (self.paper_states, paper),
        }
        for rule, (states, count) in by_rule.items():
            numbers = np.bincount(states.ravel(), minlength=len(STATES)).tolist()
            luck = exchanged(count, len(held_on), draws=DRAWS, seed=self._seed)
            row: dict[str, object] = {"rule": rule}
            row |= {
                name.replace(" ", "_"): number for name, number in zip(STATES, numbers, strict=True)
            }
            active = [line.by(rule).active[-1] for line in (self.on, self.off)]
            row |= {mode: int(a.sum()) for mode, a in zip(MODES, active, strict=True)}
            row["exclusive"] = numbers[ONLY_ON] + numbers[ONLY_OFF]
            row |= dict(zip(("luck", "luck_low", "luck_high"), luck, strict=True))
            rows.append(row)
        return pd.DataFrame(rows)

    def overlap(self) -> pd.DataFrame:
        """A row a kind of set: heads and edges of each probe, by majority and by any.

        Columns: what, counted; on, off, shared, union (numbers, of `each` their means); jaccard,
        low, high (shared / union, and for `each` its 95 % interval); one_mode, one_mode_low,
        one_mode_high (Jaccard of disjoint halves of the probes under one mode: median and middle
        95 % of random splits; NaN with under four probes); two_modes, two_modes_low,
        two_modes_high (of disjoint halves under two modes); two_modes_lower (share of the splits
        in which two modes agree less than one).
        """
        edges = edge_sets(self.on.snapshots[-1], self.off.snapshots[-1], self._chosen)
        kinds = [
            ("heads", "each", self._held, 0.0),
            ("edges", "each", edges, 0.0),
            ("heads", "majority", self._levels, HALF * self.on.snapshots.settings),
            ("edges", "majority", edges, HALF),
            ("heads", "any", self._held, 0.0),
            ("edges", "any", edges, 0.0),
        ]
        return pd.DataFrame(
            [
                overlap(Sets(what=what, counted=counted, on=on, off=off, cut=cut), seed=self._seed)
                for what, counted, (on, off), cut in kinds
            ]
        )

    @property
    def num_probes(self) -> int:
        """Problems measured under both modes."""
        return self.on.num_probes

    @property
    def fewest_probes(self) -> int:
        """Probes below which no head can be called exclusive."""
        return self.on.growth_config.fewest_probes

    # -- arrays ------------------------------------------------------------------------------

    @property
    def _shape(self) -> tuple[int, int]:
        return self.on.graph.num_layers, self.on.graph.num_heads

    @property
    def _levels(self) -> tuple[Num[np.ndarray, "probes all"], Num[np.ndarray, "probes all"]]:
        on, off = (
            line.snapshots[-1].levels[0][chosen].reshape(len(chosen), -1)
            for line, chosen in zip((self.on, self.off), self._chosen, strict=True)
        )
        return on, off

    @cached_property
    def _measured(self) -> tuple[Measured, Measured]:
        on, off = (
            Measured(
                line.snapshots[-1].head_totals[chosen], line.snapshots[-1].loss_corrupted[chosen]
            )
            for line, chosen in zip((self.on, self.off), self._chosen, strict=True)
        )
        return on, off

    @cached_property
    def _held(self) -> tuple[Bool[np.ndarray, "probes all"], Bool[np.ndarray, "probes all"]]:
        on, off = (
            line.snapshots[-1].active[chosen].reshape(len(chosen), -1)
            for line, chosen in zip((self.on, self.off), self._chosen, strict=True)
        )
        return on, off

    @cached_property
    def _chosen(self) -> tuple[list[int], list[int]]:
        """Indices of the probes that count, in each snapshot."""
        on, off = (
            [line.snapshots[-1].probe_ids.index(name) for name in line.probe_ids]
            for line in (self.on, self.off)
        )
        return on, off

    def _check_alike(self) -> None:
        on, off = self.on.snapshots[-1], self.off.snapshots[-1]
        again = "measure both again with sparks think --overwrite"
        name, *values = on.meta.settings.difference(off.meta.settings) or ("", "", "")
        for what, first, second in (
            ("the same problems", self.on.probe_ids, self.off.probe_ids),
            ("the same graph", on.graph, off.graph),
            ("the same weights", on.meta.model_hash[:12], off.meta.model_hash[:12]),
            ("the same settings", *(f"{name}={value!r}" for value in values)),
            ("the same circuit settings", on.grid, off.grid),
        ):
            if first != second:
                raise SparksError(
                    f"thinking on and off must be measured with {what}, got {first} and {second}: "
                    f"{again}"
                )
