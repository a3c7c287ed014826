"""Mixtures of experts: our calls leave the routers' loss out; what switches take is told."""

from __future__ import annotations

import warnings

import pytest
import torch
from families import tiny_family
from models import VOCAB, randomise, token_pair
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen2MoeConfig

from sparks.attribution.eap_ig import edge_attribution, node_attribution
from sparks.attribution.patching import patch_edges
from sparks.attribution.snapshot import Snapshot
from sparks.attribution.take_snapshot import take_snapshot
from sparks.effects.export import export_model
from sparks.effects.head_means import measure_head_means
from sparks.ground.config import SnapshotConfig
from sparks.models.generation import continuations, generation_settings
from sparks.probes.pairs import TokenizedProbes

SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
KINDS = {
    "mixtral": (MixtralConfig, {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        Qwen2MoeConfig,
        {
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "shared_expert_intermediate_size": 12,
        },
    ),
}
PAIR = token_pair(6, 3)


@pytest.fixture(params=sorted(KINDS))
def two(request):
    """A model with the routers' loss off, and the same with it on, as TRL sets it."""
    kind, differences = KINDS[request.param]
    found = []
    for loss in (False, True):
        config = kind(**SHAPE, **differences, output_router_logits=loss)
        model = AutoModelForCausalLM.from_config(config)
        randomise(model)
        found.append(model.eval())
    return found


def test_scores_and_patches_are_those_of_the_model_without_the_loss(two):
    off, on = (edge_attribution(model, [PAIR], points=2) for model in two)
    assert torch.equal(on.scores, off.scores)
    off, on = (patch_edges(model, PAIR, [("L0H0", "logits")]) for model in two)
    assert on.loss == off.loss


def test_answers_means_and_exports_are_too(two, tmp_path):
    settings = generation_settings([2], max_new_tokens=3, greedy=True)
    rows = [[5, 9, 30], [7]]
    off, on = (continuations(model, rows, settings, "seed") for model in two)
    assert on == off
    off, on = (measure_head_means(model, rows).overall for model in two)
    assert torch.equal(on, off)
    assert export_model(two[1], [(0, 1)], tmp_path / "out").difference < 5e-6
    assert two[1].config.output_router_logits is True


# -- switches of experts ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_what_switches_take_is_told_apart_and_closes_the_gap(kind):
    """With more points the share of the switches settles, and what is left of the gap goes to 0."""
    model, pairs = tiny_family(kind), [token_pair(6, 4), token_pair(7, 4, seed=3)]
    few, many = (edge_attribution(model, pairs, points=points) for points in (100, 400))
    assert float(many.switches.abs().max()) > 0.05
    assert torch.allclose(few.switches, many.switches, atol=0.02)
    assert float(many.completeness_gap.max()) < 1e-3
    halves = [edge_attribution(model, [pair], points=100, memory_gib=0.001) for pair in pairs]
    assert torch.allclose(torch.cat([half.switches for half in halves]), few.switches, atol=1e-5)
    nodes = node_attribution(model, pairs, points=100)
    assert torch.allclose(nodes.completeness_gap, few.completeness_gap, atol=1e-4)


def test_switches_ask_for_no_more_points_and_a_snapshot_tells_them():
    model, pairs = tiny_family("mixtral"), (token_pair(6, 4), token_pair(7, 4, seed=3))
    found = edge_attribution(model, pairs, points=16, tolerance=0.05, max_points=432)
    assert float(found.switches.abs().min()) > 0.05
    assert int(found.points.max()) <= 48
    probes = TokenizedProbes(pairs, ("a", "b"), ("", ""))
    config = SnapshotConfig(points=16)
    snapshot = take_snapshot(model, probes, config, progress=False)
    same = edge_attribution(model, pairs, points=16).switches.abs()
    assert snapshot.meta.router_share == pytest.approx(float(same.mean()), rel=1e-4)
    again = Snapshot.from_arrays(*snapshot.to_arrays())
    assert again.meta.router_share == snapshot.meta.router_share


def test_a_model_without_a_mixture_has_none():
    model, pair = tiny_family("llama"), token_pair(6, 4)
    assert torch.equal(edge_attribution(model, [pair], points=4).switches, torch.zeros(1))
    probes = TokenizedProbes((pair,), ("a",), ("",))
    config = SnapshotConfig(points=4)
    assert take_snapshot(model, probes, config, progress=False).meta.router_share is None


@pytest.mark.parametrize("kind", ["gpt_oss", "qwen3_moe"])
def test_adapters_on_experts_are_as_their_merged_weights(kind, assert_close):
    """PEFT's `target_parameters`: experts are parameters, not modules."""
    plain = edge_attribution(tiny_family(kind), [PAIR], points=8)
    config = LoraConfig(
        r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM",
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        # Of the adapters. With some (0, gpt_oss: 4e-4) rounding moves a switch over a point.
        torch.manual_seed(4)
        model = get_peft_model(tiny_family(kind), config).eval()
    found = edge_attribution(model, [PAIR], points=8)
    merged = edge_attribution(model.merge_and_unload().eval(), [PAIR], points=8)
    assert_close("parity", found.scores, merged.scores)
    assert_close("parity", found.switches, merged.switches)
    assert float((found.scores - plain.scores).norm() / plain.scores.norm()) > 0.1
