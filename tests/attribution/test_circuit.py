"""Circuits: worked by hand on a graph of 12 nodes, then against a path search on random graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from sparks.attribution.circuit import Circuit, extract_circuit
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph

GRAPH = Graph(num_layers=2, num_heads=4, num_kv_heads=2)  # embed, 8 heads, 2 MLPs, logits
LOOSE = SnapshotConfig(threshold=0.0)

Edges = Mapping[tuple[str, str], float]


def matrix(edges: Edges, graph: Graph = GRAPH) -> np.ndarray:
    scores = np.zeros((graph.num_sources, graph.num_destinations), dtype=np.float32)
    for (source, destination), score in edges.items():
        cell = graph.sources.index(source), graph.destinations.index(destination)
        assert graph.edge_mask[cell], f"there is no edge {source} -> {destination}"
        scores[cell] = score
    return scores


def named(circuit: Circuit, graph: Graph = GRAPH) -> dict[tuple[str, str], float]:
    rows = zip(circuit.source, circuit.destination, circuit.score, strict=True)
    return {
        (graph.sources[source], graph.destinations[destination]): round(float(score), 6)
        for source, destination, score in rows
    }


def living(circuit: Circuit, graph: Graph = GRAPH) -> set[str]:
    return {graph.sources[row] for row in graph.head_sources[circuit.heads]}


def circuit_of(edges: Edges, config: SnapshotConfig = LOOSE, graph: Graph = GRAPH) -> Circuit:
    return extract_circuit(matrix(edges, graph), graph, config)


# -- worked by hand ------------------------------------------------------------------------------


def test_whole_story_by_hand():
    """Two paths from embed to logits stay; three chains fall edge by edge."""
    circuit = circuit_of(
        {
            # path 1: embed -> L0H0 -> L1MLP -> logits
            ("embed", "L0H0.q"): 0.5,
            ("L0H0", "L1MLP"): -0.9,
            ("L1MLP", "logits"): 0.7,
            # path 2: embed -> L0MLP -> value of group 1 -> L1H2 -> logits
            ("embed", "L0MLP"): -0.3,
            ("L0MLP", "L1KV1.v"): 0.25,
            ("L1H2", "logits"): 0.4,
            # nothing leads into L0H1: it goes, then L1H0, which only it fed
            ("L0H1", "L1H0.q"): 2.0,
            ("L1H0", "logits"): 3.0,
            # nothing leaves L1H1: it goes, then L0H3, which fed only it
            ("embed", "L0H3.q"): 4.0,
            ("L0H3", "L1H1.q"): 5.0,
            # L1H3 shares the value head of path 2, but writes to nobody; its query edge goes
            ("L0H0", "L1H3.q"): 6.0,
        }
    )
    assert named(circuit) == {
        ("L0H0", "L1MLP"): -0.9,
        ("L1MLP", "logits"): 0.7,
        ("embed", "L0H0.q"): 0.5,
        ("L1H2", "logits"): 0.4,
        ("embed", "L0MLP"): -0.3,
        ("L0MLP", "L1KV1.v"): 0.25,
    }
    assert list(named(circuit).values()) == [-0.9, 0.7, 0.5, 0.4, -0.3, 0.25]  # strongest first
    assert living(circuit) == {"L0H0", "L1H2"}
    expected = np.zeros((2, 4), dtype=np.float32)
    expected[0, 0], expected[1, 2] = 0.9, 0.4  # the pruned 6.0 that left L0H0 does not count
    np.testing.assert_array_equal(circuit.importance, expected)


def test_types_are_those_of_a_snapshot():
    circuit = circuit_of({("embed", "logits"): 1.0})
    assert circuit.source.dtype == circuit.destination.dtype == np.int32
    assert circuit.score.dtype == circuit.importance.dtype == np.float32
    assert circuit.heads.dtype == np.bool_
    assert circuit.heads.shape == circuit.importance.shape == (2, 4)
    with pytest.raises(FrozenInstanceError):
        circuit.score = circuit.score


def test_importance_sums_the_strengths_of_what_leaves_a_head():
    circuit = circuit_of(
        {
            ("embed", "L0H2.q"): 1.0,
            ("embed", "L0KV1.k"): 8.0,
            ("L0H2", "logits"): -0.5,
            ("L0H2", "L1MLP"): 0.25,
            ("L1MLP", "logits"): 16.0,
        }
    )
    assert circuit.importance[0, 2] == 0.75
    assert circuit.importance.sum() == 0.75


def test_embed_to_logits_is_a_circuit_without_heads():
    circuit = circuit_of({("embed", "logits"): -0.2})
    assert named(circuit) == {("embed", "logits"): -0.2}
    assert not circuit.heads.any()


@pytest.mark.parametrize(
    ("edges", "kept"),
    [
        ({("embed", "L0MLP"): 1.0, ("L0MLP", "logits"): 1.0}, 2),
        ({("embed", "L0MLP"): 1.0, ("L0MLP", "L1MLP"): 1.0}, 0),  # no way to logits
        ({("L0MLP", "L1MLP"): 1.0, ("L1MLP", "logits"): 1.0}, 0),  # no way from embed
    ],
)
def test_mlps_are_pruned_like_heads(edges: Edges, kept: int):
    assert circuit_of(edges).score.size == kept


# -- grouped queries -----------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["k", "v"])
def test_a_kv_head_feeds_every_head_of_its_group(part: str):
    circuit = circuit_of(
        {
            ("embed", f"L0KV1.{part}"): 1.0,
            ("L0H2", "logits"): 1.0,
            ("L0H3", "logits"): 1.0,
            ("L0H1", "logits"): 1.0,  # of the other group: nothing leads into it
        }
    )
    assert living(circuit) == {"L0H2", "L0H3"}
    assert named(circuit).keys() == {
        ("embed", f"L0KV1.{part}"),
        ("L0H2", "logits"),
        ("L0H3", "logits"),
    }


def test_an_edge_into_a_kv_head_stays_while_one_head_of_the_group_lives():
    edges = {
        ("embed", "L0KV0.k"): 1.0,
        ("embed", "L0KV0.v"): 1.0,
        ("embed", "L0H0.q"): 1.0,  # L0H0 writes to nobody: its own edge goes, the shared ones stay
        ("L0H1", "logits"): 1.0,
    }
    circuit = circuit_of(edges)
    assert living(circuit) == {"L0H1"}
    assert named(circuit).keys() == edges.keys() - {("embed", "L0H0.q")}


def test_an_edge_into_a_kv_head_goes_with_the_last_head_of_its_group():
    circuit = circuit_of(
        {
            ("embed", "logits"): 1.0,
            ("embed", "L0KV0.v"): 1.0,
            ("L0H0", "L1H0.q"): 1.0,  # L1H0 and L1H1 write to nobody: they go,
            ("L0H1", "L1H1.q"): 1.0,  # then L0H0 and L0H1, then the value head they share
        }
    )
    assert named(circuit).keys() == {("embed", "logits")}


def test_a_kv_head_that_is_fed_by_a_dead_head_does_not_keep_its_group():
    circuit = circuit_of({("L0H0", "L1KV0.k"): 1.0, ("L1H0", "logits"): 1.0})
    assert circuit.score.size == 0
    assert not circuit.heads.any()


def test_one_kv_head_for_all_and_one_for_each():
    multi_query = Graph(num_layers=1, num_heads=4, num_kv_heads=1)
    edges = {("embed", "L0KV0.k"): 1.0} | {(f"L0H{head}", "logits"): 1.0 for head in range(4)}
    assert circuit_of(edges, graph=multi_query).heads.all()
    full = Graph(num_layers=1, num_heads=4, num_kv_heads=4)
    assert living(circuit_of(edges, graph=full), full) == {"L0H0"}


# -- which edges are kept ------------------------------------------------------------------------


def direct(scores: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """A path of its own to logits for each head of layer 0; the edge in is far stronger."""
    incoming = {("embed", f"{head}.q"): 100.0 for head in scores}
    return incoming | {(head, "logits"): score for head, score in scores.items()}


def test_top_n_keeps_the_strongest_of_either_sign():
    scores = {"L0H0": 0.2, "L0H1": -0.8, "L0H2": 0.5, "L0H3": -0.1}
    circuit = circuit_of(direct(scores), SnapshotConfig(threshold=0.0, top_n=6))
    assert living(circuit) == {"L0H1", "L0H2"}


def test_top_n_counts_before_pruning():
    """The four edges in use up the count: no path is complete."""
    circuit = circuit_of(direct({f"L0H{i}": 1.0 for i in range(4)}), SnapshotConfig(top_n=4))
    assert circuit.score.size == 0


def test_of_equal_scores_the_lower_index_is_kept_and_comes_first():
    scores = {"L0H3": 1.0, "L0H2": -1.0, "L0H1": 1.0, "L0H0": 0.5}
    circuit = circuit_of(direct(scores), SnapshotConfig(top_n=6))
    assert living(circuit) == {"L0H1", "L0H2"}
    assert [source for source, to in named(circuit) if to == "logits"] == ["L0H1", "L0H2"]
    first = [to for source, to in named(circuit) if source == "embed"]
    assert first == ["L0H1.q", "L0H2.q"]


def test_ties_are_kept_in_order_when_everything_is_equal():
    scores = np.where(GRAPH.edge_mask, np.float32(1), np.float32(0))
    circuit = extract_circuit(scores, GRAPH, LOOSE)
    flat = circuit.source.astype(int) * GRAPH.num_destinations + circuit.destination
    np.testing.assert_array_equal(flat, np.flatnonzero(GRAPH.edge_mask))


@pytest.mark.parametrize("tau", [0.1, 0.7])  # in float32 one is a little more, the other less
def test_a_score_of_exactly_tau_is_kept(tau: float):
    below = float(np.nextafter(np.float32(tau), np.float32(0)))
    scores = {"L0H0": tau, "L0H1": -tau, "L0H2": below, "L0H3": -below}
    assert living(circuit_of(direct(scores), SnapshotConfig(threshold=tau))) == {"L0H0", "L0H1"}


def test_relative_threshold_is_of_the_largest_score():
    edges = {("embed", "L0H0.q"): -8.0, ("L0H0", "logits"): 4.0, ("embed", "logits"): 3.9}
    half = SnapshotConfig(threshold=0.5, threshold_mode="relative")
    assert named(circuit_of(edges, half)).keys() == edges.keys() - {("embed", "logits")}
    scaled = {edge: score * 1e-6 for edge, score in edges.items()}
    assert named(circuit_of(scaled, half)).keys() == edges.keys() - {("embed", "logits")}
    whole = SnapshotConfig(threshold=1.0, threshold_mode="relative")
    assert circuit_of(edges, whole).score.size == 0  # one edge in, and no way out
    assert named(circuit_of({("embed", "logits"): 0.3}, whole)) == {("embed", "logits"): 0.3}


def test_top_share_is_a_share_of_the_edges_that_exist():
    one = Graph(num_layers=1, num_heads=1, num_kv_heads=1)
    # 3 sources x 5 destinations; the edges: embed to 5, L0H0 to MLP and logits, L0MLP to logits
    assert one.num_edges == 8
    edges = {
        ("embed", "L0H0.q"): 8.0,
        ("L0H0", "logits"): 7.0,
        ("embed", "logits"): 6.0,
        ("embed", "L0KV0.k"): 5.0,
    }

    def kept(share: float) -> int:
        config = SnapshotConfig(threshold=0.0, top_share=share, top_n=1)
        return circuit_of(edges, config, one).score.size

    assert [kept(share) for share in (0.25, 0.3, 0.375, 0.45, 1.0)] == [2, 2, 3, 4, 4]
    assert kept(0.01) == 0  # one edge is left, embed -> L0H0.q, and pruned
    only = {("embed", "logits"): 1.0}
    tiny = SnapshotConfig(threshold=0.0, top_share=1e-9)
    assert named(circuit_of(only, tiny, one), one) == {("embed", "logits"): 1.0}


@pytest.mark.parametrize("mode", ["absolute", "relative"])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 1.0])
def test_scores_of_zero_give_an_empty_circuit(mode: str, threshold: float):
    config = SnapshotConfig(threshold=threshold, threshold_mode=mode)  # type: ignore[arg-type]
    circuit = circuit_of({}, config)
    assert circuit.source.size == circuit.destination.size == circuit.score.size == 0
    assert not circuit.heads.any()
    assert not circuit.importance.any()


def test_a_threshold_that_nothing_reaches_gives_an_empty_circuit():
    settings = SnapshotConfig(threshold=1e39)  # above any float32
    assert circuit_of({("embed", "logits"): 3e38}, settings).score.size == 0


def test_an_edge_of_score_zero_is_not_kept_without_a_threshold():
    edges = {("embed", "logits"): 1.0, ("embed", "L0H0.q"): 1.0, ("L0H0", "logits"): 0.0}
    assert named(circuit_of(edges)).keys() == {("embed", "logits")}


# -- what is refused, what is left alone ---------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value: float):
    scores = matrix({("embed", "logits"): 1.0, ("L0H1", "L1KV0.k"): value})
    with pytest.raises(SparksError, match=r"edge L0H1 -> L1KV0\.k must be finite, got -?(nan|inf)"):
        extract_circuit(scores, GRAPH, LOOSE)


def test_cells_without_an_edge_are_ignored():
    edges = {("embed", "L0H0.q"): 1.0, ("L0H0", "logits"): 1.0}
    scores = np.where(GRAPH.edge_mask, matrix(edges), np.float32(np.nan))
    assert named(extract_circuit(scores, GRAPH, LOOSE)) == edges
    scores = np.where(GRAPH.edge_mask, matrix(edges), np.float32(99))
    assert named(extract_circuit(scores, GRAPH, SnapshotConfig(top_n=2))) == edges


@pytest.mark.parametrize("shape", [(19, 11), (12, 19), (11, 18)])
def test_scores_of_another_shape_are_refused(shape: tuple[int, ...]):
    scores = np.zeros(shape, dtype=np.float32)
    with pytest.raises(SparksError, match=r"must have shape \(11, 19\) .*got \("):
        extract_circuit(scores, GRAPH, LOOSE)


def test_scores_are_only_read():
    scores = matrix({("embed", "L0H0.q"): -1.0, ("L0H0", "logits"): 0.5, ("L0H1", "logits"): 2.0})
    before = scores.copy()
    scores.setflags(write=False)
    extract_circuit(scores, GRAPH, SnapshotConfig(top_n=2))
    np.testing.assert_array_equal(scores, before)


# -- against another way of saying it ------------------------------------------------------------


def by_paths(scores: np.ndarray, graph: Graph, config: SnapshotConfig) -> tuple[dict, set[str]]:
    """Kept edges and living heads, from names alone.

    The graph has no cycles, so what pruning leaves are the edges that lie on a path from embed to
    logits, where an edge into a KV head leads to every query head of its group.
    """
    ranked = sorted(
        (-abs(float(scores[i, j])), i, j) for i, j in np.argwhere(graph.edge_mask).tolist()
    )
    share = config.top_share
    limit = config.top_n if share is None else max(1, round(share * len(ranked)))
    tau = config.threshold
    if config.threshold_mode == "relative":
        tau = float(np.float32(tau) * np.float32(-ranked[0][0]))
    top = [(i, j) for minus, i, j in ranked[:limit] if -minus >= np.float32(tau) and minus]

    def nodes_behind(destination: str) -> list[str]:
        if "KV" not in destination:
            return [destination.removesuffix(".q")]
        layer, kv = destination[1:-2].split("KV")
        size = graph.num_heads // graph.num_kv_heads
        return [f"L{layer}H{int(kv) * size + head}" for head in range(size)]

    links = [
        (graph.sources[i], node, (i, j))
        for i, j in top
        for node in nodes_behind(graph.destinations[j])
    ]

    def reached(start: str, steps: list[tuple[str, str]]) -> set[str]:
        seen, todo = {start}, [start]
        while todo:
            here = todo.pop()
            for one, other in steps:
                if one == here and other not in seen:
                    seen.add(other)
                    todo.append(other)
        return seen

    on_a_path = reached("embed", [(a, b) for a, b, _ in links]) & reached(
        "logits", [(b, a) for a, b, _ in links]
    )
    alive = {cell for a, b, cell in links if a in on_a_path and b in on_a_path}
    edges = {cell: float(scores[cell]) for cell in top if cell in alive}
    heads = {name for name in on_a_path if "H" in name}
    return edges, heads if edges else set()


GRAPHS = [
    Graph(num_layers=1, num_heads=1, num_kv_heads=1),
    Graph(num_layers=3, num_heads=2, num_kv_heads=2),
    Graph(num_layers=3, num_heads=4, num_kv_heads=2),
    Graph(num_layers=2, num_heads=6, num_kv_heads=2),
    Graph(num_layers=4, num_heads=3, num_kv_heads=1),
]
CONFIGS = [
    SnapshotConfig(threshold=0.0),
    SnapshotConfig(threshold=0.0, top_n=7),
    SnapshotConfig(threshold=0.0, top_n=25),
    SnapshotConfig(threshold=0.5),
    SnapshotConfig(threshold=0.0, top_share=0.12),
    SnapshotConfig(threshold=0.25, top_share=0.4),
    SnapshotConfig(threshold=0.3, threshold_mode="relative"),
    SnapshotConfig(threshold=0.2, threshold_mode="relative", top_n=20),
]


@pytest.mark.parametrize(
    "graph", GRAPHS, ids=lambda g: f"{g.num_layers}x{g.num_heads}/{g.num_kv_heads}"
)
def test_random_scores_give_what_a_path_search_gives(graph: Graph):
    rng = np.random.default_rng(7)
    sizes = set()
    for trial in range(240):
        config = CONFIGS[trial % len(CONFIGS)]
        scores = rng.standard_normal((graph.num_sources, graph.num_destinations))
        if trial % 3 == 0:  # many ties, many zeros
            scores = np.round(scores) / 2
        scores[rng.random(scores.shape) < rng.choice([0.0, 0.5, 0.8, 0.9])] = 0
        scores = scores.astype(np.float32)
        circuit = extract_circuit(scores, graph, config)
        edges, heads = by_paths(scores, graph, config)
        cells = zip(circuit.source.tolist(), circuit.destination.tolist(), strict=True)
        found = dict(zip(cells, circuit.score.tolist(), strict=True))
        assert list(found.items()) == list(edges.items()), (trial, config)
        assert living(circuit, graph) == heads, (trial, config)
        sums = np.zeros_like(circuit.importance, dtype=float)
        for (row, _), score in edges.items():
            sums[graph.head_sources == row] += abs(score)
        np.testing.assert_allclose(circuit.importance, sums, rtol=1e-6)
        sizes.add(len(edges))
    assert 0 in sizes  # the trials reach the empty circuit,
    assert len(sizes) > 3  # and circuits of many sizes


def test_pruning_a_circuit_again_changes_nothing():
    graph = Graph(num_layers=6, num_heads=8, num_kv_heads=2)
    rng = np.random.default_rng(3)
    scores = rng.standard_normal((graph.num_sources, graph.num_destinations)).astype(np.float32)
    config = SnapshotConfig(threshold=0.0, top_n=200)
    once = extract_circuit(scores, graph, config)
    assert 0 < once.score.size < 200
    again = np.zeros_like(scores)
    again[once.source, once.destination] = once.score
    twice = extract_circuit(again, graph, config)
    for name in ("source", "destination", "score", "heads", "importance"):
        np.testing.assert_array_equal(getattr(once, name), getattr(twice, name))


def test_a_long_chain_unravels_to_the_end():
    """Each pass frees one more node: 60 layers of a chain that never reaches logits."""
    graph = Graph(num_layers=60, num_heads=2, num_kv_heads=1)
    chain = {("embed", "L0H0.q"): 1.0}
    chain |= {(f"L{i}H0", f"L{i + 1}H0.q"): 1.0 for i in range(59)}
    assert circuit_of(chain, graph=graph).score.size == 0
    complete = circuit_of(chain | {("L59H0", "logits"): 1.0}, graph=graph)
    assert complete.score.size == 61
    assert complete.heads[:, 0].all()
    assert not complete.heads[:, 1].any()
