"""Exact patching of edges, and what it says about the attribution."""

from __future__ import annotations

import ast
import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOLERANCE, AssertClose
from models import DEADBAND, KINDS, affine_model, tiny_model, token_pair
from torch import Tensor

import sparks.attribution.patching
from sparks.attribution.eap_ig import edge_attribution
from sparks.attribution.patching import EdgePatcher, patch_edges
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.probes.pairs import TokenPair

PAIR = token_pair(6, 4)


def edges_of(graph: Graph) -> list[tuple[int, int]]:
    return [(int(row), int(column)) for row, column in np.argwhere(graph.edge_mask)]


# -- what patching must do whatever the model ------------------------------------------------------


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_edge_changes_nothing_and_all_edges_give_the_corrupted_run(
    kind: str, positions: str
) -> None:
    patcher = EdgePatcher(tiny_model(kind), PAIR, positions=positions)
    nothing = patcher.patch([])
    everything = patcher.patch(patcher.graph.edge_mask)
    assert nothing.loss == 0
    assert (nothing.num_edges, everything.num_edges) == (0, patcher.graph.num_edges)
    assert everything.loss_corrupted > 0.1
    assert everything.loss == pytest.approx(everything.loss_corrupted, rel=TOLERANCE["patched"])
    assert everything.faithfulness == pytest.approx(0, abs=TOLERANCE["patched"])


@pytest.mark.parametrize("kind", KINDS)
def test_corrupting_what_layers_read_is_corrupting_what_they_write(kind: str) -> None:
    """Two sets of edges with one meaning.

    If all that the first layers read is corrupted, they write what they wrote in the corrupted run;
    and so it looks to everyone else if all edges that leave those layers are patched instead.
    """
    patcher = EdgePatcher(tiny_model(kind), PAIR)
    graph = patcher.graph
    for layers in range(1, graph.num_layers + 1):
        reads, writes = np.zeros_like(graph.edge_mask), np.zeros_like(graph.edge_mask)
        first_columns = layers * graph.destinations_per_layer
        reads[:, :first_columns] = True
        writes[1 : graph.sources_before_attention(layers), first_columns:] = True
        one, other = patcher.patch(reads), patcher.patch(writes)
        assert one.num_edges != other.num_edges
        assert one.loss > 1e-3
        assert one.loss == pytest.approx(other.loss, rel=TOLERANCE["patched"])


@pytest.mark.parametrize("part", ["q", "k", "v"])
@pytest.mark.parametrize("kind", ["llama-gqa", "phi3-fused", "qwen3", "starcoder2"])
def test_one_patched_head_is_a_run_with_its_projection_replaced(kind: str, part: str) -> None:
    """Layer 0 reads the embedding alone: a patched head there has its corrupted projection.

    Done again by hand, on the names of Hugging Face.
    """
    model, head, size = tiny_model(kind), 1, 8
    attention = model.model.layers[0].self_attn
    if kind == "phi3-fused":
        offset = {"q": 0, "k": 32, "v": 48}[part]
        projection = attention.qkv_proj
    else:
        size = attention.head_dim
        offset, projection = 0, getattr(attention, f"{part}_proj")
    features = slice(offset + head * size, offset + (head + 1) * size)
    seen: list[Tensor] = []

    def logits(ids: list[int]) -> Tensor:
        return model(input_ids=torch.tensor([PAIR.prefix + ids])).logits[0, -1]

    def replace(_: object, __: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., features] = seen[0][..., features]
        return output

    with torch.no_grad():
        clean = logits(PAIR.clean)
        keep = projection.register_forward_hook(lambda _, __, output: seen.append(output))
        logits(PAIR.corrupted)
        keep.remove()
        handle = projection.register_forward_hook(replace)
        by_hand = logits(PAIR.clean)
        handle.remove()
    name = f"L0H{head}.q" if part == "q" else f"L0KV{head}.{part}"
    result = patch_edges(model, PAIR, [("embed", name)])
    assert not torch.allclose(by_hand, clean, atol=1e-3)
    torch.testing.assert_close(result.logits[0], by_hand, rtol=0, atol=1e-5)


@torch.no_grad()
def test_zero_patching_of_all_that_the_logits_read_leaves_the_biases_of_the_heads() -> None:
    """No node owns the bias of an o_proj: it is all that stays in the residual stream."""
    model = tiny_model("llama-biases")
    graph = EdgePatcher(model, PAIR).graph
    result = patch_edges(model, PAIR, [(u, "logits") for u in graph.sources], patch="zero")
    rest = sum(layer.self_attn.o_proj.bias for layer in model.model.layers)
    expected = model.lm_head(model.model.norm(rest))
    torch.testing.assert_close(result.logits[0], expected, rtol=0, atol=1e-4)


def test_zero_patching_leaves_a_uniform_output_where_nothing_has_a_bias() -> None:
    model = tiny_model("llama-gqa")
    graph = EdgePatcher(model, PAIR).graph
    result = patch_edges(model, PAIR, [(u, "logits") for u in graph.sources], patch="zero")
    with torch.no_grad():
        clean = model(input_ids=torch.tensor([PAIR.prefix + PAIR.clean])).logits[0, -1]
    entropy = torch.distributions.Categorical(logits=clean).entropy()
    expected = math.log(model.config.vocab_size) - float(entropy)
    # What rounding leaves in the empty stream, 1e-7, the final norm divides by sqrt(eps), 1e-3.
    assert result.loss == pytest.approx(expected, rel=1e-3)


def test_names_and_masks_mean_the_same_and_the_complement_of_a_circuit_is_a_mask() -> None:
    patcher = EdgePatcher(tiny_model("llama-gqa"), PAIR)
    graph = patcher.graph
    edges = edges_of(graph)[::7]
    mask = np.zeros_like(graph.edge_mask)
    for row, column in edges:
        mask[row, column] = True
    named = patcher.patch([(graph.sources[u], graph.destinations[v]) for u, v in edges])
    assert named.loss > 0
    assert patcher.patch(mask).loss == named.loss
    assert patcher.patch(torch.from_numpy(mask)).loss == named.loss
    # Outside the circuit `~mask` lies `mask`, and entries where no edge exists.
    assert patcher.patch(mask | ~graph.edge_mask).loss == named.loss
    assert patcher.patch(mask | ~graph.edge_mask).num_edges == len(edges)


# -- what it says about the attribution ------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_in_an_affine_model_every_score_is_the_exact_effect_of_its_edge(
    seed: int, assert_close: AssertClose
) -> None:
    """L is affine in what one patched edge changes, once an anchor edge has made it positive."""
    pair = token_pair(6, 4, seed=seed)
    model = affine_model(pair, seed=seed)
    scores = edge_attribution(model, [pair], points=8, quadrature="midpoint").scores[0]
    # In float64, so that small effects are not lost in rounding.
    patcher = EdgePatcher(copy.deepcopy(model).double(), pair)
    graph = patcher.graph
    anchor = ("embed", "logits")
    start = patcher.patch([anchor]).loss
    effects = torch.zeros_like(scores)
    for row, column in edges_of(graph):
        edge = (graph.sources[row], graph.destinations[column])
        together = patcher.patch([anchor, edge]).loss
        assert together > DEADBAND  # else L is not affine there, and the test says nothing
        effects[row, column] = start + DEADBAND if edge == anchor else together - start
    assert_close("affine", scores, effects)
    # Not only the anchor: the same without it.
    scores[0, -1] = effects[0, -1] = 0
    assert int((effects.abs() > 1e-4).sum()) > 50
    assert_close("affine", scores, effects)


RANK_FLOOR = {"llama-gqa": 0.6, "qwen3": 0.6, "phi3-fused": 0.6, "starcoder2": 0.6}
"""Smallest rank correlation that passes (measured: 0.72 to 0.76). Patching one edge is of second
order in its change, a score of first order in it and in all others together: they cannot agree
fully."""


@pytest.mark.parametrize("kind", RANK_FLOOR)
def test_scores_rank_edges_as_patching_them_does(kind: str) -> None:
    model = tiny_model(kind, num_hidden_layers=2)
    scores = edge_attribution(model, [PAIR], points=20).scores[0].abs()
    patcher = EdgePatcher(model, PAIR)
    graph = patcher.graph
    effects = torch.zeros_like(scores)
    for row, column in edges_of(graph):
        mask = np.zeros_like(graph.edge_mask)
        mask[row, column] = True
        effects[row, column] = patcher.patch(mask).loss
    exists = torch.from_numpy(graph.edge_mask)
    correlation = spearman(scores[exists], effects[exists])
    print(f"rank correlation {kind}: {correlation:.3f}")
    assert correlation > RANK_FLOOR[kind]


def spearman(first: Tensor, second: Tensor) -> float:
    ranks = torch.stack([first.argsort().argsort(), second.argsort().argsort()]).float()
    return float(torch.corrcoef(ranks)[0, 1])


def test_strong_edges_keep_the_output_and_weak_ones_do_not() -> None:
    """Faithfulness of a circuit: everything outside it patched."""
    model = tiny_model("llama-gqa")
    scores = edge_attribution(model, [PAIR], points=20).scores[0].abs()
    patcher = EdgePatcher(model, PAIR)
    exists = torch.from_numpy(patcher.graph.edge_mask)
    order = scores[exists].argsort(descending=True)
    kept = {}
    for name, half in (("strong", order[: len(order) // 2]), ("weak", order[len(order) // 2 :])):
        mask = torch.zeros(len(order), dtype=torch.bool)
        mask[half] = True
        circuit = torch.zeros_like(exists)
        circuit[exists] = mask
        kept[name] = patcher.patch(~circuit).faithfulness
    print(f"faithfulness of half the edges: {kept}")
    assert kept["strong"] > 0.8
    assert kept["weak"] < 0.2


# -- errors and manners ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([("L9H0", "logits")], r"no source 'L9H0': they are named embed, L0H0, \.\.\. L2H3, L2MLP"),
        ([("embed", "L0H0")], r"no destination 'L0H0': they are named L0H0\.q"),
        ([("L1H0", "L1KV0.k")], r"L1H0 -> L1KV0\.k does not exist: L1KV0\.k reads before L1H0"),
        (["embed"], r"an edge is \(source, destination\) by name, got 'embed'"),
        (np.zeros((2, 3), dtype=bool), r"boolean of shape \[16, 28\].*got bool of shape \[2, 3\]"),
        (np.zeros((16, 28)), r"boolean of shape \[16, 28\].*got float64"),
    ],
)
def test_edges_that_make_no_sense_are_refused_in_one_line(edges: object, message: str) -> None:
    with pytest.raises(SparksError, match=message) as caught:
        patch_edges(tiny_model("llama-gqa"), PAIR, edges)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positions": "first"}, "positions must be one of last, all, got 'first'"),
        ({"patch": "mean"}, "patch must be one of corrupted, zero, got 'mean'"),
        ({"pair": TokenPair([], [999], [1])}, r"pair: token ids must be 0\.\.60, found 999"),
    ],
)
def test_arguments_outside_their_choices_are_refused_in_one_line(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(SparksError, match=message) as caught:
        patch_edges(tiny_model("llama-gqa"), **{"pair": PAIR, "edges": []} | arguments)
    assert "\n" not in str(caught.value)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("lora-llama").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    patch_edges(model, PAIR, [("embed", "logits")])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_oracle_knows_nothing_of_what_it_judges() -> None:
    tree = ast.parse(Path(sparks.attribution.patching.__file__).read_text())
    froms = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    plain = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    imported = froms | {item.name for node in plain for item in node.names}
    judged = ("attribution", "circuit", "destinations", "passes")
    assert "sparks.models.anatomy" in imported
    assert not imported & {f"sparks.{name}" for name in judged}
