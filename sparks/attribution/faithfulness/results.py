"""What a measurement of faithfulness gave: curves, areas and their intervals, as a file and tables.

Definitions stand in `curve`. Intervals are percentile bootstraps over probes of the
whole number (means first, then the ratio, then the area), with the same resamples everywhere, so
that a difference between two kinds of circuits has an interval of its own (`minus`). Draws of the
random control are averaged within a probe.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from pydantic import Field

from sparks.attribution.faithfulness.curve import areas
from sparks.attribution.faithfulness.settings import METRICS, CurveConfig, Metric
from sparks.ground.config import check_choice, refuse_unknown
from sparks.ground.errors import SparksError
from sparks.ground.files import read_file, why, write_atomically
from sparks.ground.schema import LIMITS, Count, Number, Plain, Positive, Scalar, Share, Spec, decode
from sparks.stats.intervals import Interval, percentiles, resampled_counts

KINDS = ("shared", "own", "random")
"""Kinds of circuits, in the order of the tables."""
VERSION = 1
"""Of the file; another version is refused."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """One kind of circuits under one metric."""

    kind: str
    shares: tuple[float, ...]
    edges: Float[np.ndarray, " sizes"]
    """Edges after pruning, mean over probes and draws."""
    heads: Float[np.ndarray, " sizes"]
    """Attention heads in the circuit, mean over probes and draws."""
    faithfulness: tuple[Interval, ...]
    """f: all outside the circuit patched."""
    necessity: tuple[Interval, ...]
    """n: all inside the circuit patched."""
    cpr: Interval
    cmd: Interval


@dataclass(frozen=True, kw_only=True, eq=False)
class FaithfulnessCurves:
    """Metrics of every probe under every circuit.

    Axes: metrics as `METRICS`, sets of circuits as `sets` (each draw is one), probes, sizes.
    """

    model: str
    probe_ids: tuple[str, ...]
    probe_groups: tuple[str, ...]
    settings: dict[str, Any]
    """Of the scores (`SnapshotConfig`) and of the circuits (`CurveConfig`)."""
    num_edges: int
    """Of the whole network."""
    num_heads: int
    """Of the whole network: all layers."""
    shares: tuple[float, ...]
    sets: tuple[str, ...]
    """Kind of each set of circuits; `random` once a draw."""
    clean: Float[np.ndarray, "metrics probes"]
    """m(N)."""
    empty: Float[np.ndarray, "metrics probes"]
    """m(empty): of the corrupted run."""
    kept: Float[np.ndarray, "metrics sets probes sizes"]
    """m(C)."""
    removed: Float[np.ndarray, "metrics sets probes sizes"]
    """m(N without C)."""
    edges: Int[np.ndarray, "sets probes sizes"]
    heads: Int[np.ndarray, "sets probes sizes"]

    # -- numbers -----------------------------------------------------------------------------

    def usable(self, metric: Metric) -> Bool[np.ndarray, " probes"]:
        """Probes whose metric tells the clean from the corrupted run."""
        index = _metric(metric)
        return self.clean[index] > self.empty[index]

    def curve(self, kind: str, metric: Metric = "kl") -> Curve:
        """Faithfulness, necessity and areas of one kind of circuits.

        Raises:
            SparksError: an unknown kind or metric, or no probe is usable.
        """
        members = self._members(kind)
        faithfulness, necessity = self._over_resamples(kind, metric)
        cpr, cmd = areas(self.shares, faithfulness)
        return Curve(
            kind=kind,
            shares=self.shares,
            edges=self.edges[members].mean(axis=(0, 1)),
            heads=self.heads[members].mean(axis=(0, 1)),
            faithfulness=self._estimates(faithfulness, metric),
            necessity=self._estimates(necessity, metric),
            cpr=self._estimates(cpr[:, None], metric)[0],
            cmd=self._estimates(cmd[:, None], metric)[0],
        )

    def minus(self, kind: str, other: str, metric: Metric = "kl") -> tuple[Interval, Interval]:
        """CPR and CMD of `kind` minus those of `other`, probes paired.

        Raises:
            SparksError: as `curve`.
        """
        ours, theirs = (
            areas(self.shares, self._over_resamples(name, metric)[0]) for name in (kind, other)
        )
        cpr, cmd = (
            self._estimates((mine - other)[:, None], metric)[0]
            for mine, other in zip(ours, theirs, strict=True)
        )
        return cpr, cmd

    def _members(self, kind: str) -> list[int]:
        found = [index for index, name in enumerate(self.sets) if name == kind]
        if not found:
            raise SparksError(f"circuits must be one of {', '.join(KINDS)}, got {kind!r}")
        return found

    def _over_resamples(
        self, kind: str, metric: Metric
    ) -> tuple[Float[np.ndarray, "resamples sizes"], Float[np.ndarray, "resamples sizes"]]:
        """f and n: of the probes themselves first, then of every resample of them."""
        index, usable = _metric(metric), self.usable(metric)
        count = int(usable.sum())
        if not count:
            raise SparksError(
                f"no probe has a {metric} to measure by: clean and corrupted runs say the same "
                f"next token in all of them; use the metric kl"
            )
        weights = np.concatenate([np.ones((1, count)), resampled_counts(count)])
        clean, empty = self.clean[index][usable], self.empty[index][usable]

        def lost(values: Float[np.ndarray, "metrics sets probes sizes"]) -> np.ndarray:
            # A share of each draw first: their mean then is exactly 0 and 1 where all are.
            draws = [
                _shares_lost(clean, empty, values[index, member][usable], weights)
                for member in self._members(kind)
            ]
            return np.mean(draws, axis=0)

        return 1 - lost(self.kept), lost(self.removed)

    def _estimates(
        self, values: Float[np.ndarray, "resamples sizes"], metric: Metric
    ) -> tuple[Interval, ...]:
        low, high = percentiles(values[1:])
        if self.usable(metric).sum() < 2:
            low, high = np.full_like(low, math.nan), np.full_like(high, math.nan)
        return tuple(
            Interval(value=float(value), low=float(bottom), high=float(top))
            for value, bottom, top in zip(values[0], low, high, strict=True)
        )

    # -- tables ------------------------------------------------------------------------------

    def points(self) -> pd.DataFrame:
        """A row a metric, kind of circuits and size."""
        rows = []
        for metric in self.measurable:
            for kind in KINDS:
                curve = self.curve(kind, metric)
                for index, share in enumerate(self.shares):
                    row = {"metric": metric, "circuits": kind, "share": share}
                    row |= {"edges": curve.edges[index], "heads": curve.heads[index]}
                    row |= curve.faithfulness[index].cells("faithfulness")
                    row |= curve.necessity[index].cells("necessity")
                    rows.append(row)
        return pd.DataFrame(rows)

    def areas(self) -> pd.DataFrame:
        """CPR and CMD, a row a metric and kind of circuits; then the kinds minus their control."""
        rows = []
        for metric in self.measurable:
            probes = int(self.usable(metric).sum())
            for kind in KINDS:
                curve = self.curve(kind, metric)
                row = {"metric": metric, "circuits": kind, "probes": probes}
                rows.append(row | curve.cpr.cells("cpr") | curve.cmd.cells("cmd"))
            for kind in KINDS[:-1]:
                cpr, cmd = self.minus(kind, "random", metric)
                row = {"metric": metric, "circuits": f"{kind} - random", "probes": probes}
                rows.append(row | cpr.cells("cpr") | cmd.cells("cmd"))
        return pd.DataFrame(rows)

    @property
    def measurable(self) -> tuple[Metric, ...]:
        """Metrics that at least one probe can be measured by."""
        return tuple(metric for metric in METRICS if self.usable(metric).any())

    # -- file --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a JSON file, whole or not at all; returns its path.

        Raises:
            SparksError: it cannot be written.
        """
        record: dict[str, Any] = {"format": _FORMAT, "version": VERSION}
        for item in fields(self):
            value = getattr(self, item.name)
            record[item.name] = value.tolist() if item.name in _ARRAYS else value
        return write_atomically(path, json.dumps(record) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FaithfulnessCurves:
        """Read what `save` wrote.

        Raises:
            SparksError: the file cannot be read or is no such file.
        """
        try:
            content = read_file(path, most=_MOST_BYTES)
            version = decode(_Version, content)
            if (version.format, version.version) == (_FORMAT, VERSION):
                return cls(**decode(_File, content).fields())
        except OSError as error:
            raise SparksError(f"cannot read {path}: {why(error)}") from error
        except SparksError as error:
            raise SparksError(f"{path}: the file is damaged ({error})") from error
        if version.format != _FORMAT:
            raise SparksError(
                f"{path}: no curves of faithfulness: give a file of FaithfulnessCurves.save"
            )
        raise SparksError(
            f"{path}: version {version.version!r}, this program reads {VERSION}: use the one that "
            f"wrote it"
        )


_FORMAT = "sparks-faithfulness"
_MOST_BYTES = 2**28

_ARRAYS = {
    "clean": Spec(np.float64, "metrics probes"),
    "empty": Spec(np.float64, "metrics probes"),
    "kept": Spec(np.float64, "metrics sets probes sizes"),
    "removed": Spec(np.float64, "metrics sets probes sizes"),
    "edges": Spec(np.int64, "sets probes sizes", 0),
    "heads": Spec(np.int64, "sets probes sizes", 0),
}


@dataclass(frozen=True, kw_only=True)
class _Version:
    """What the file says of itself in every version."""

    __pydantic_config__ = LIMITS

    format: Scalar = None
    version: Scalar = None


@dataclass(frozen=True, kw_only=True)
class _File:
    """A `FaithfulnessCurves` as the file has it: arrays are lists."""

    __pydantic_config__ = LIMITS

    model: str
    probe_ids: Annotated[tuple[str, ...], Field(min_length=1)]
    probe_groups: tuple[str, ...]
    settings: dict[str, dict[str, Plain]]
    num_edges: Positive
    num_heads: Positive
    shares: tuple[Share, ...]
    sets: tuple[Literal["shared", "own", "random"], ...]
    clean: list[list[Number]]
    empty: list[list[Number]]
    kept: list[list[list[list[Number]]]]
    removed: list[list[list[list[Number]]]]
    edges: list[list[list[Count]]]
    heads: list[list[list[Count]]]

    def fields(self) -> dict[str, Any]:
        """Those of `FaithfulnessCurves`, once all fit together.

        Raises:
            SparksError: they do not.
        """
        values = dict(vars(self))
        sizes = {
            "metrics": len(METRICS),
            "probes": len(self.probe_ids),
            "sets": len(self.sets),
            "sizes": len(self.shares),
        }
        if len(self.probe_groups) != sizes["probes"]:
            raise SparksError(f"{sizes['probes']} probes, {len(self.probe_groups)} groups")
        if missing := [kind for kind in KINDS if kind not in self.sets]:
            raise SparksError(f"sets lacks {missing[0]!r}")
        circuits = self.settings.get("circuits", {})
        refuse_unknown(CurveConfig, circuits)
        if CurveConfig(**circuits).shares != self.shares:
            raise SparksError("shares are not those of its settings")
        for name, spec in _ARRAYS.items():
            try:
                array = np.array(values[name], dtype=spec.dtype)
            except ValueError as error:
                raise SparksError(f"{name} must be a whole table, its rows differ") from error
            spec.check_shape(name, array, sizes)
            spec.check_range(name, array)
            values[name] = array
        return values


def _shares_lost(
    clean: Float[np.ndarray, " probes"],
    empty: Float[np.ndarray, " probes"],
    values: Float[np.ndarray, "probes sizes"],
    weights: Float[np.ndarray, "resamples probes"],
) -> Float[np.ndarray, "resamples sizes"]:
    """(m(N) - values) / (m(N) - m(empty)), means over the probes of a resample first."""
    apart = clean[:, None] - np.column_stack([values, empty])
    # One sum for all columns, so that equal ones stay equal to the last bit.
    summed = (weights[:, :, None] * apart).sum(axis=1)
    return summed[:, :-1] / summed[:, -1:]


def _metric(metric: Metric) -> int:
    check_choice("metric", metric, METRICS)
    return METRICS.index(metric)
