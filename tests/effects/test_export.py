"""Exported checkpoints: their logits are the hooked model's, and nothing is half written."""

from __future__ import annotations

import json

import pytest
import torch
from families import tiny_family
from models import KINDS, tiny_model
from test_interventions import HEADS, IDS, logits
from tokenizers_made_here import byte_level_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparks.effects import export
from sparks.effects.export import RECORD, export_model
from sparks.effects.head_means import measure_head_means
from sparks.effects.interventions import intervene
from sparks.ground.errors import SparksError

CAN_HOLD_A_MEAN = (
    "llama-gqa", "llama-mqa", "llama-mha", "llama-biases", "llama-odd", "llama-narrow", "qwen3",
    "smollm3-nope", "starcoder2", "lora-llama",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_computes_what_the_hooked_model_does(kind, tmp_path, assert_close):
    model = tiny_model(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with intervene(model, HEADS, scale=0.3):
        hooked = logits(model)
    found = export_model(model, HEADS, tmp_path / "out", scale=0.3, origin="by hand")
    loaded = AutoModelForCausalLM.from_pretrained(found.path, dtype="auto")
    assert type(loaded).__name__.endswith("ForCausalLM")
    assert_close("same", logits(loaded), hooked)
    assert found.difference < 5e-6
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    record = json.loads((found.path / RECORD).read_text())
    assert (record["heads"], record["scale"]) == ("L0H1,L2H0,L2H2", 0.3)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_goes_into_a_bias_where_there_can_be_one(kind, tmp_path, assert_close):
    model = tiny_model(kind)
    means = measure_head_means(model, IDS.tolist())
    if kind not in CAN_HOLD_A_MEAN:
        with pytest.raises(SparksError, match="has no bias behind its heads"):
            export_model(model, HEADS, tmp_path / "out", means=means)
        assert not list(tmp_path.iterdir())
        return
    with intervene(model, HEADS, scale=0.25, means=means):
        hooked = logits(model)
    found = export_model(model, HEADS, tmp_path / "out", scale=0.25, means=means)
    loaded = AutoModelForCausalLM.from_pretrained(found.path)
    assert_close("same", logits(loaded), hooked)
    assert float((hooked - logits(model)).norm()) > 0.1


def test_a_narrow_type_and_shared_embeddings_stay_as_they_are(tmp_path, assert_close):
    model = tiny_model("llama-gqa", dtype=torch.bfloat16, tie_word_embeddings=True)
    found = export_model(model, HEADS, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(found.path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    with intervene(model, HEADS):
        assert_close("bfloat16", logits(loaded), logits(model))


def test_the_tokenizer_goes_with_it_and_a_full_folder_is_not_touched(tmp_path):
    model, tokenizer = tiny_model("llama-gqa"), byte_level_tokenizer()
    export_model(model, HEADS, tmp_path / "out", tokenizer=tokenizer)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded("ab c")["input_ids"] == tokenizer("ab c")["input_ids"]
    with pytest.raises(SparksError, match="out is not empty: give another folder, or --overwrite"):
        export_model(model, HEADS, tmp_path / "out")
    again = export_model(model, [(1, 0)], tmp_path / "out", overwrite=True)
    assert json.loads((again.path / RECORD).read_text())["heads"] == "L1H0"
    (tmp_path / "file").touch()
    with pytest.raises(SparksError, match="file is a file: give another folder"):
        export_model(model, HEADS, tmp_path / "file", overwrite=True)


def test_a_checkpoint_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    whole = export._folded
    monkeypatch.setattr(export, "_folded", lambda m, heads, *rest: whole(m, heads[:1], *rest))
    with pytest.raises(SparksError, match="would not compute what the hooked model does"):
        export_model(tiny_model("llama-gqa"), HEADS, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_mean_by_position_is_refused(tmp_path):
    model = tiny_model("llama-gqa")
    means = measure_head_means(model, IDS.tolist(), by_position=True)
    with pytest.raises(SparksError, match="a mean by position cannot be folded into weights"):
        export_model(model, HEADS, tmp_path / "out", means=means)
    assert not list(tmp_path.iterdir())


def test_weights_that_cannot_be_edited_are_refused(tmp_path):
    class Packed(torch.nn.Linear):
        pass

    model = tiny_model("llama-gqa")
    output = model.model.layers[1].self_attn.o_proj
    output.__class__ = Packed
    with pytest.raises(SparksError, match="o_proj of layer 1 is Packed, whose weights cannot be"):
        export_model(model, HEADS, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "cohere2",
        "falcon, 40B",
        "gemma2",
        "gpt2",
        "gpt_neox",
        "granite, scaled",
        "mixtral",
        "qwen2_vl",
    ],
)
def test_other_families_fold_too(name, tmp_path, assert_close):
    """Norms behind, weights that lie the other way round (GPT-2), a vision-language model."""
    model, heads = tiny_family(name), [(0, 1), (1, 3)]
    means = measure_head_means(model, IDS.tolist()) if name in ("gpt2", "gpt_neox") else None
    with intervene(model, heads, scale=0.3, means=means):
        hooked = logits(model)
    found = export_model(model, heads, tmp_path / "out", scale=0.3, means=means)
    loaded = type(model).from_pretrained(found.path).eval()
    assert_close("same", logits(loaded), hooked)
    assert float((hooked - logits(model)).norm() / hooked.norm()) > 1e-4
