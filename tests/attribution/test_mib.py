"""Scores in MIB's form: the official graph by other means, and the official scores themselves."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from places import DATA
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from sparks.attribution.eap_ig import edge_attribution
from sparks.attribution.faithfulness.mib import read_mib, write_mib
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.probes.pairs import TokenPair

OFFICIAL = DATA / "eap_ig"


def official_count(layers: int, heads: int) -> int:
    """Edges of a graph in which every head has a query, a key and a value of its own."""
    into_heads = sum(3 * heads * (1 + layer * (heads + 1)) for layer in range(layers))
    into_mlps = sum(1 + layer * (heads + 1) + heads for layer in range(layers))
    return into_heads + into_mlps + 1 + layers * (heads + 1)


@pytest.mark.parametrize(
    ("layers", "heads", "published"),
    [(12, 12, 32491), (24, 14, 179749), (32, 32, 1592881)],
    ids=["gpt2", "qwen2.5-0.5b", "llama3-8b"],
)
def test_the_formula_gives_the_published_counts(layers, heads, published):
    assert official_count(layers, heads) == published


@pytest.mark.parametrize(("layers", "heads", "kv_heads"), [(12, 12, 12), (3, 4, 2), (2, 6, 1)])
def test_every_edge_is_there_exactly_once(tmp_path, layers, heads, kv_heads):
    graph = Graph(num_layers=layers, num_heads=heads, num_kv_heads=kv_heads)
    path = write_mib(tmp_path / "m.json", np.zeros(graph.edge_mask.shape), graph, d_model=8)

    def unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
        assert len({name for name, _ in pairs}) == len(pairs)
        return dict(pairs)

    record = json.loads(path.read_text(), object_pairs_hook=unrepeated)
    assert record["cfg"] == {
        "n_layers": layers, "n_heads": heads, "parallel_attn_mlp": False, "d_model": 8
    }  # fmt: skip
    assert len(record["edges"]) == official_count(layers, heads)
    assert len(record["nodes"]) == 2 + layers * (heads + 1)
    assert set(record) == {"cfg", "nodes", "edges"}
    assert all(set(edge) == {"score", "in_graph"} for edge in record["edges"].values())


@pytest.mark.parametrize(
    "folder", sorted(path.name for path in OFFICIAL.iterdir() if path.is_dir())
)
def test_it_holds_the_official_scores(tmp_path, folder):
    """Columns of a group, summed: the official file's and ours are the same numbers."""
    source = OFFICIAL / folder
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    pairs = [TokenPair(**pair) for pair in json.loads((source / "pairs.json").read_text())]
    names = json.loads((source / "nodes.json").read_text())
    tensors = load_file(source / "scores.safetensors")
    scores = edge_attribution(model, pairs, points=5, quadrature="left")
    path = write_mib(
        tmp_path / "m.json",
        scores.scores.mean(0).numpy(),
        scores.graph,
        d_model=model.config.hidden_size,
    )
    edges = json.loads(path.read_text())["edges"]

    exists = tensors["real_edge_mask"].astype(bool)
    rows, columns = names["source_nodes"], names["destination_nodes"]
    assert set(edges) == {f"{rows[r]}->{columns[c]}" for r, c in np.argwhere(exists)}

    official = tensors["edge_scores_m5"].mean(0)
    group = scores.graph.num_heads // scores.graph.num_kv_heads

    def shared(column: str) -> str:
        """Key and value columns by their group: `a1.h3<k>` of groups of 2 is `a1.h1<k>` too."""
        match = re.fullmatch(r"a(\d+)\.h(\d+)<([kv])>", column)
        return column if match is None else f"{match[1]}/{int(match[2]) // group}/{match[3]}"

    found: dict[tuple[str, str], list[float]] = {}
    for row, column in np.argwhere(exists):
        both = found.setdefault((rows[row], shared(columns[column])), [0.0, 0.0])
        both[0] += edges[f"{rows[row]}->{columns[column]}"]["score"]
        both[1] += float(official[row, column])
    ours, theirs = np.array(list(found.values())).T
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
    assert len(found) == scores.graph.num_edges


def test_what_is_written_is_read_back(tmp_path):
    graph = Graph(num_layers=2, num_heads=4, num_kv_heads=2)
    scores = np.random.default_rng(0).standard_normal(graph.edge_mask.shape) * graph.edge_mask
    path = write_mib(tmp_path / "m.json", scores, graph, d_model=8)
    read, found = read_mib(path, num_kv_heads=2)
    assert read == graph
    np.testing.assert_allclose(found, scores, rtol=1e-12)
    edges = json.loads(path.read_text())["edges"]
    cell = scores[graph.sources.index("L0H3"), graph.destinations.index("L1KV1.k")]
    assert edges["a0.h3->a1.h2<k>"]["score"] == edges["a0.h3->a1.h3<k>"]["score"] == cell / 2
    whole, unrolled = read_mib(path)
    assert whole.num_kv_heads == 4
    assert unrolled.sum() == pytest.approx(scores.sum())


def test_a_circuit_is_marked(tmp_path):
    graph = Graph(num_layers=1, num_heads=2, num_kv_heads=1)
    kept = np.zeros(graph.edge_mask.shape, dtype=bool)
    kept[0, graph.destinations.index("L0KV0.v")] = True
    kept[graph.sources.index("L0H1"), -1] = True
    kept[-1, 0] = True  # no edge: ignored
    path = write_mib(tmp_path / "m.json", np.zeros(kept.shape), graph, d_model=4, kept=kept)
    record = json.loads(path.read_text())
    marked = {name for name, edge in record["edges"].items() if edge["in_graph"]}
    assert marked == {"input->a0.h0<v>", "input->a0.h1<v>", "a0.h1->logits"}
    nodes = {name for name, node in record["nodes"].items() if node["in_graph"]}
    assert nodes == {"input", "a0.h1", "logits"}


def test_bad_input_is_told(tmp_path):
    graph = Graph(num_layers=1, num_heads=1, num_kv_heads=1)
    zeros = np.zeros(graph.edge_mask.shape)
    with pytest.raises(SparksError, match=r"MIB reads scores from a .json file, got .*m.pt"):
        write_mib(tmp_path / "m.pt", zeros, graph, d_model=4)
    with pytest.raises(SparksError, match=r"scores and kept must have shape \(3, 5\)"):
        write_mib(tmp_path / "m.json", np.zeros((2, 2)), graph, d_model=4)
    with pytest.raises(SparksError, match="scores must be finite for MIB"):
        write_mib(tmp_path / "m.json", zeros + np.inf, graph, d_model=4)
    path = write_mib(tmp_path / "m.json", zeros, graph, d_model=4)
    record = json.loads(path.read_text())
    lacking = {**record, "edges": {k: v for k, v in record["edges"].items() if k != "m0->logits"}}
    foreign = {**record, "edges": {**record["edges"], "m9->logits": {"score": 0.0}}}
    for text, match in (
        ("[]", "not scores in MIB's form"),
        ("{", "not scores in MIB's form"),
        (json.dumps({"cfg": {}}), "not scores in MIB's form .*edges"),
        (json.dumps(lacking), "edge m0->logits is missing"),
        (json.dumps(foreign), "edge m9->logits is not in its graph"),
    ):
        path.write_text(text)
        with pytest.raises(SparksError, match=match):
            read_mib(path)
    with pytest.raises(SparksError, match="cannot read"):
        read_mib(tmp_path / "none.json")
    with pytest.raises(SparksError, match="num_heads must be a multiple of num_kv_heads"):
        read_mib(write_mib(path, zeros, graph, d_model=4), num_kv_heads=3)


def test_blocks_side_by_side_have_no_edge_from_a_head_to_the_mlp_beside_it(tmp_path):
    graph = Graph(num_layers=2, num_heads=2, num_kv_heads=2, parallel=True)
    scores = np.random.default_rng(0).normal(size=graph.edge_mask.shape) * graph.edge_mask
    path = write_mib(tmp_path / "scores.json", scores, graph, d_model=8)
    record = json.loads(path.read_text())
    assert record["cfg"]["parallel_attn_mlp"] is True
    assert not any(name.startswith("a0.h0->m0") for name in record["edges"])
    assert "a0.h0->m1" in record["edges"]
    found_graph, found = read_mib(path)
    assert found_graph == graph
    np.testing.assert_allclose(found, scores)
