"""The edges that the page is given: a consensus over probes, and which of it is sent."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from factories import make_run, make_snapshot
from report_payload import payload, raw, summed, unpacked

from sparks.attribution.snapshot import Snapshot
from sparks.models.graph import Graph
from sparks.timeline.timeline import Timeline
from sparks.views.report import render_report
from sparks.views.report.edges import (
    EDGES_OF_A_HEAD,
    FEWEST_EDGES,
    MOST_EDGES,
    consensus,
    most_edges,
)

GRAPH = Graph(num_layers=6, num_heads=8, num_kv_heads=2)


def by_hand(snapshot: Snapshot, chosen: list[int]) -> dict[tuple[str, str], tuple[float, ...]]:
    """Names of the ends -> mean |score|, mean score, share of the probes: one edge at a time."""
    found: dict[tuple[str, str], list[float]] = {}
    for probe in chosen:
        for edge in range(snapshot.edge_offsets[probe], snapshot.edge_offsets[probe + 1]):
            ends = (
                snapshot.graph.sources[snapshot.edge_source[edge]],
                snapshot.graph.destinations[snapshot.edge_destination[edge]],
            )
            found.setdefault(ends, []).append(float(snapshot.edge_score[edge]))
    n = len(chosen)
    return {
        ends: (sum(map(abs, scores)) / n, sum(scores) / n, len(scores) / n)
        for ends, scores in found.items()
    }


def sent(run: dict[str, Any]) -> list[dict[tuple[str, str], tuple[float, ...]]]:
    """Each checkpoint's edges, read as the page reads them."""
    graph = Graph(num_layers=run["layers"], num_heads=run["heads"], num_kv_heads=run["kv_heads"])
    edges = run["edges"]
    strength = edges["strength_max"] * (unpacked(edges["strength"], "<u2") / 4095) ** 2
    signed = strength * np.frombuffer(raw(edges["balance"]), np.int8) / 127
    share = np.frombuffer(raw(edges["share"]), np.uint8) / 255
    names = zip(
        np.array(graph.sources)[summed(edges["source"], "<u2")],
        np.array(graph.destinations)[unpacked(edges["destination"], "<u2")],
        strict=True,
    )
    whole = list(zip(names, zip(strength, signed, share, strict=True), strict=True))
    cuts = np.cumsum([0, *edges["counts"]])
    return [dict(whole[a:b]) for a, b in itertools.pairwise(cuts)]


def busy_snapshot(step: int = 0, probes: int = 5, seed: int = 0) -> Snapshot:
    rng = np.random.default_rng(seed)
    held = {
        f"L{layer}H{head}": int(rng.integers(1, probes + 1))
        for layer in range(6)
        for head in range(0, 8, 2)
    }
    return make_snapshot(step, held, graph=GRAPH, probes=probes, seed=seed)


def test_consensus_is_the_mean_over_probes():
    snapshot = busy_snapshot()
    for chosen in ([0, 1, 2, 3, 4], [1, 3], [2]):
        edges = consensus(snapshot, np.array(chosen))
        expected = by_hand(snapshot, chosen)
        assert len(edges.source) == len(expected) > 3
        for index, (source, destination) in enumerate(
            zip(edges.source, edges.destination, strict=True)
        ):
            ends = (GRAPH.sources[source], GRAPH.destinations[destination])
            found = (edges.strength[index], edges.strength[index] * edges.balance[index],
                     edges.share[index])  # fmt: skip
            np.testing.assert_allclose(found, expected[ends], rtol=1e-6)


def test_a_score_that_is_no_number_counts_as_none():
    snapshot = busy_snapshot(probes=2)
    snapshot.edge_score[:] = np.nan
    snapshot.edge_score[0] = np.inf
    edges = consensus(snapshot, np.array([0, 1]))
    assert len(edges.source) > 3
    assert not edges.strength.any()
    assert not edges.balance.any()


def test_edges_survive_packing():
    run = [busy_snapshot(step, seed=step) for step in (0, 10)]
    data = payload(render_report([Timeline(run)]))["runs"][0]
    for snapshot, found in zip(run, sent(data), strict=True):
        expected = by_hand(snapshot, list(range(5)))
        assert set(found) == set(expected)  # few enough to be sent whole
        for ends, values in expected.items():
            np.testing.assert_allclose(found[ends], values, rtol=0.02, atol=0.005)
    assert data["edges"]["found"] == data["edges"]["counts"]


def test_only_the_probes_of_the_group_count():
    groups = ["b", "b", "a", "a"]
    run = [make_snapshot(0, {"L0H0": 4, "L1H1": 2}, probes=4, groups=groups)]
    data = payload(render_report([Timeline(run, group="a")]))["runs"][0]
    assert {source for source, _ in sent(data)[0]} <= {"embed", "L0H0"}
    whole = payload(render_report([Timeline(run)]))["runs"][0]
    assert "L1H1" in {source for source, _ in sent(whole)[0]}


@pytest.mark.parametrize(
    ("checkpoints", "expected"), [(1, MOST_EDGES), (60, 50), (1000, FEWEST_EDGES)]
)
def test_longer_runs_send_fewer_edges_of_a_checkpoint(checkpoints: int, expected: int):
    assert most_edges(checkpoints) == expected


def crowded_run(steps: list[int]) -> list[Snapshot]:
    """More edges than are sent, the strongest between MLPs; one weak head, born at step 10."""
    graph, rng = GRAPH, np.random.default_rng(0)
    run = []
    for step in steps:
        snapshot = make_snapshot(step, ["L5H7"] if step >= 10 else [], graph=graph, probes=1)
        weak = (snapshot.edge_source, snapshot.edge_destination, snapshot.edge_score / 1e3)
        pairs = np.argwhere(graph.edge_mask)
        heads = re.compile(r"L\dH[0-6]\Z")  # other heads than L5H7
        is_mlp = [
            graph.sources[u].endswith("MLP") and graph.destinations[v].endswith("MLP")
            for u, v in pairs
        ]
        is_head = [
            bool(heads.match(graph.sources[u])) and graph.destinations[v] == "logits"
            for u, v in pairs
        ]
        strong = np.concatenate([pairs[is_mlp], pairs[is_head]]).astype(np.int32)
        size = np.concatenate([rng.uniform(10, 20, sum(is_mlp)), rng.uniform(1, 2, sum(is_head))])
        source, destination, score = (
            np.concatenate([new, old])
            for new, old in zip((strong[:, 0], strong[:, 1], size), weak, strict=True)
        )
        run.append(
            replace(
                snapshot,
                edge_source=source.astype(np.int32),
                edge_destination=destination.astype(np.int32),
                edge_score=score.astype(np.float32),
                edge_offsets=np.array([0, len(source)]),
            )
        )
    return run


def test_strongest_edges_those_through_heads_and_those_of_born_heads_are_sent(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("sparks.views.report.edges.most_edges", lambda _: 4)
    run = crowded_run([0, 10, 20, 30])
    timeline = Timeline(run)
    assert timeline.by("paper").cohort[5, 7] == 1
    assert timeline.cohort[5, 7] == -1  # one probe settles nothing; the edges are sent all the same
    data = payload(render_report([timeline]))["runs"][0]
    for at, (snapshot, found) in enumerate(zip(run, sent(data), strict=True)):
        expected = by_hand(snapshot, [0])
        order = sorted(expected, key=lambda ends: -expected[ends][0])
        through = [ends for ends in order if "H" in ends[0] or re.search("H|KV", ends[1])]
        of_head = [ends for ends in order if "L5H7" in (ends[0], ends[1].split(".")[0])]
        extra = of_head if at in (1, 3) else []  # its birth, and the last checkpoint
        assert set(found) == {*order[:4], *through[:4], *extra}
        assert not set(extra) & {*order[:4], *through[:4]}
        assert len(expected) > len(found) + 10
    assert data["edges"]["of_a_head"] == EDGES_OF_A_HEAD


def test_run_whose_circuits_are_empty_sends_no_edges():
    data = payload(render_report([Timeline(make_run({0: [], 10: []}))]))["runs"][0]
    assert data["edges"]["counts"] == data["edges"]["found"] == [0, 0]
    assert data["edges"]["strength_max"] == 0
