"""Mixtures of experts that are trained with the loss of their routers: our calls leave it out."""

from __future__ import annotations

import pytest
import torch
from models import VOCAB, randomise, token_pair
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen2MoeConfig

from sparks.attribution.eap_ig import edge_attribution
from sparks.attribution.patching import patch_edges
from sparks.effects.export import export_model
from sparks.effects.head_means import measure_head_means
from sparks.models.generation import continuations, generation_settings

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
