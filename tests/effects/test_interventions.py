"""Interventions: against weights edited by hand, and the model left as it was found."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from models import KINDS, VOCAB, WRAPPED, tiny_model

from sparks.effects.head_means import measure_head_means
from sparks.effects.interventions import intervene
from sparks.ground.errors import SparksError
from sparks.models.anatomy import find

HEADS = [(0, 1), (2, 0), (2, 2)]
IDS = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(3))


def logits(model, ids=IDS, **kwargs):
    with torch.no_grad():
        return model(input_ids=ids, **kwargs).logits


def edited_by_hand(model, heads, scale):
    """A copy, adapters merged, whose `o_proj` columns of the heads are scaled."""
    found = copy.deepcopy(model)
    if hasattr(found, "merge_and_unload"):
        found = found.merge_and_unload()
    config = found.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    with torch.no_grad():
        for layer, head in heads:
            weight = found.model.layers[layer].self_attn.o_proj.weight
            weight[:, head * size : (head + 1) * size] *= scale
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 1.3])
def test_it_is_what_editing_the_weights_does(kind, scale, assert_close):
    model = tiny_model(kind)
    before = logits(model)
    with intervene(model, HEADS, scale=scale):
        found = logits(model)
    assert_close("same", found, logits(edited_by_hand(model, HEADS, scale)))
    assert float((found - before).norm() / before.norm()) > 1e-2
    assert torch.equal(logits(model), before)


def slices(model, ids):
    """What every head gives before `o_proj`, read with a plain hook; [layers rows pos features]."""
    found = []
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args: found.append(args[0]))
        for layer in model.model.layers
    ]
    logits(model, ids)
    for handle in handles:
        handle.remove()
    return torch.stack(found)


def test_means_are_those_over_all_positions_of_all_rows(assert_close):
    model = tiny_model("llama-gqa")
    rows = [IDS[0, :5].tolist(), IDS[1].tolist(), IDS[0, 4:].tolist()]
    seen = [slices(model, torch.tensor([row]))[:, 0].unflatten(-1, (4, 8)) for row in rows]
    means = measure_head_means(model, rows, by_position=True, batch_size=2)
    assert_close("same", means.overall, torch.cat(seen, dim=1).mean(1))
    assert (means.num_rows, means.num_tokens) == (3, 19)
    for position in range(9):
        there = [item[:, position] for item in seen if item.shape[1] > position]
        assert_close("same", means.by_position[position], torch.stack(there).mean(0))
    assert measure_head_means(model, rows).by_position is None


@pytest.mark.parametrize("kind", ["llama-gqa", "phi3-fused", "lora-llama", "starcoder2"])
def test_a_mean_ablation_gives_the_mean(kind):
    model = tiny_model(kind)
    rows = IDS.tolist()
    bare = find(model)
    means = measure_head_means(model, rows)
    seen = []
    with intervene(model, HEADS, means=means):
        handle = bare.layers[2].output.register_forward_pre_hook(lambda _, a: seen.append(a[0]))
        logits(model)
        handle.remove()
    found = seen[0].unflatten(-1, (bare.graph.num_heads, -1))
    for head in (0, 2):
        assert torch.allclose(found[..., head, :], means.overall[2, head].expand(2, 9, -1))
    assert not torch.allclose(found[..., 1, :], means.overall[2, 1].expand(2, 9, -1))
    with intervene(model, HEADS, scale=1.0, means=means):
        assert torch.allclose(logits(model), logits(tiny_model(kind)), atol=1e-4)


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen2", "qwen3", "mistral-window", "smollm3-nope"])
def test_generation_with_a_cache_is_generation_without(kind):
    model = tiny_model(kind)
    means = measure_head_means(model, [row[:6] for row in IDS.tolist()], by_position=True)
    settings = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}
    for given in (None, means):
        with intervene(model, HEADS, means=given):
            cached, plain = (
                model.generate(IDS, attention_mask=torch.ones_like(IDS), use_cache=use, **settings)
                for use in (True, False)
            )
            step = IDS
            for _ in range(8):  # without `generate` at all
                step = torch.cat([step, logits(model, step)[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(cached, plain)
        assert torch.equal(cached, step)


def test_means_by_position_count_from_the_first_token_of_a_padded_row(assert_close):
    model = tiny_model("llama-gqa")
    means = measure_head_means(model, [row[:6] for row in IDS.tolist()], by_position=True)
    row = IDS[:1, :7]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), row], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 7])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with intervene(model, HEADS, means=means):
        alone = logits(model, row)
        behind = logits(model, padded, attention_mask=mask, position_ids=positions)[:, 3:]
    assert_close("same", behind, alone)
    with intervene(model, HEADS, means=measure_head_means(model, [r[:6] for r in IDS.tolist()])):
        assert not torch.allclose(alone, logits(model, row), atol=1e-3)


def test_contexts_nest_and_an_error_inside_leaves_nothing_behind():
    model = tiny_model("qwen3")
    before = logits(model)
    both = edited_by_hand(edited_by_hand(model, [(0, 1)], 0.5), [(0, 1), (1, 1)], 2.0)

    def inside():
        with intervene(model, [(0, 1)], scale=0.5):
            with intervene(model, [(0, 1), (1, 1)], scale=2.0):
                assert torch.allclose(logits(model), logits(both), atol=1e-5)
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert torch.equal(logits(model), before)
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_training_flags_gradients_and_random_states_are_left_alone():
    model = tiny_model("lora-llama").train()
    state, trained = torch.get_rng_state(), [p.requires_grad for p in model.parameters()]
    means = measure_head_means(model, IDS.tolist())
    with intervene(model, HEADS, means=means):
        assert model.training
        model(input_ids=IDS, labels=IDS).loss.backward()  # gradients pass
        torch.set_rng_state(state)
    assert trained == [p.requires_grad for p in model.parameters()]
    assert torch.equal(state, torch.get_rng_state())
    assert trained == [p.grad is not None for p in model.parameters()]


@pytest.mark.parametrize(
    ("heads", "settings", "message"),
    [
        ([(3, 0)], {}, "no head L3H0: the model has layers 0..2 and heads 0..3"),
        ([(0, 4)], {}, "no head L0H4: the model has"),
        ([], {}, "no heads: name at least one, as in L5H1,L7H2"),
        ([(0, -1)], {}, r"layer and head count from 0, got \(0, -1\)"),
        ([5], {}, r"a head must be a pair of layer and head, got 5: as in \(5, 1\)"),
        ([(0, 1)], {"scale": float("nan")}, "scale must be a finite number, got nan"),
    ],
)
def test_bad_input_is_one_line(heads, settings, message):
    with (
        pytest.raises(SparksError, match=message) as caught,
        intervene(tiny_model("llama-gqa"), heads, **settings),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_means_of_another_model_and_bad_references_are_refused():
    model = tiny_model("llama-gqa")
    means = measure_head_means(tiny_model("llama-odd"), IDS.tolist())
    with (
        pytest.raises(SparksError, match=re.escape("shape (3, 5, 10), this one needs (3, 4, 8)")),
        intervene(model, HEADS, means=means),
    ):
        pass
    for rows, message in [
        ([], "needs reference texts, got none"),
        ([[1], []], "reference text 2 is empty in tokens"),
        ([[1, VOCAB]], f"token ids must be 0..{VOCAB - 1}, found {VOCAB}"),
        ([[1] * 65], "65 tokens, more than the model's context of 64"),
    ]:
        with pytest.raises(SparksError, match=message):
            measure_head_means(model, rows)


def test_every_wrapped_kind_is_tried():
    assert set(WRAPPED) <= set(KINDS)
