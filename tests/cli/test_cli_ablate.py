"""`sparks ablate`: what it writes is what `intervene` does; what it refuses, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import assert_refused, call, write_lines
from factories import STORY, make_run, write_run
from models import tiny_model
from tokenizers_made_here import byte_level_tokenizer
from transformers import AutoModelForCausalLM

from sparks.effects.head_means import measure_head_means, reference_rows
from sparks.effects.interventions import intervene

IDS = torch.tensor([[5, 9, 30, 12, 7]])
TEXTS = [{"problem": f"{n} + 1 = ?", "answer": str(n + 1)} for n in (3, 4)]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A model of the shape of the run beside it."""
    folder, tokenizer = tmp_path_factory.mktemp("home"), byte_level_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }} A:"
    tiny_model("llama-gqa", vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_run(folder / "run", make_run(STORY))
    write_lines(folder / "texts.jsonl", *map(json.dumps, TEXTS))
    return folder


def test_heads_by_rule_are_folded_into_the_weights(home, tmp_path, capsys):
    out = tmp_path / "new" / "ablated"
    arguments = ("--heads", "emergent", "--run", home / "run", "--output", out, "--scale", 0.5)
    assert call("ablate", home / "model", *arguments) == 0
    said = capsys.readouterr().out
    assert "2 heads scaled by 0.5: L1H1,L2H0" in said
    assert "emergent: run run, by the growth rule, step 40" in said
    model = AutoModelForCausalLM.from_pretrained(home / "model")
    with intervene(model, [(1, 1), (2, 0)], scale=0.5):
        assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(out)), logits(model))


def test_the_mean_and_a_matched_random_draw(home, tmp_path, capsys):
    arguments = ("--heads", "top:1", "--run", home / "run", "--mean", home / "texts.jsonl")
    call("ablate", home / "model", *arguments, "--matched-random", 2, "--output", tmp_path / "out")
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "sparks-intervention.json").read_text())
    assert f"1 heads set to their mean over {home / 'texts.jsonl'}" in said
    assert "matching top:1" in record["origin"]
    layer, head = record["heads"][1], record["heads"][3]
    model = AutoModelForCausalLM.from_pretrained(home / "model")
    rows = reference_rows(str(home / "texts.jsonl"), byte_level_tokenizer_with_template())
    with intervene(model, [(int(layer), int(head))], means=measure_head_means(model, rows)):
        found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
        assert torch.allclose(found, logits(model), atol=1e-5)


def byte_level_tokenizer_with_template():
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }} A:"
    return tokenizer


def test_reference_texts_are_prompts_with_their_answers(home, tmp_path):
    tokenizer = byte_level_tokenizer_with_template()
    rows = reference_rows(str(home / "texts.jsonl"), tokenizer, count=1)
    assert [tokenizer.decode(row) for row in rows] == ["3 + 1 = ? A:4"]
    probe = {"prompt": "What?", "clean": " Four", "corrupted": " It"}
    path = write_lines(tmp_path / "probes.jsonl", json.dumps(probe))
    found = reference_rows(str(path), tokenizer, max_tokens=6)
    assert tokenizer.decode(found[0]) == tokenizer.decode(tokenizer("What? Four")["input_ids"][:6])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--heads", "L9H0"], "no head L9H0: the model has layers 0..2 and heads 0..3"),
        (["--heads", "emergent"], "the rule 'emergent' needs a run to read heads from"),
        (["--heads", "L0H0", "--most", "2"], "--most needs --run"),
        (["--heads", "L0H0", "--by-position"], "--by-position belongs to --mean"),
        (["--heads", "L0H0", "--matched-random", "0"], "counts draws from 1, got 0"),
        (["--heads", "L0H0", "--scale", "nan"], "scale must be a finite number, got nan"),
        (["--heads", "L0H0", "--mean", "none.jsonl"], "cannot read problems none.jsonl"),
        (["--heads", ","], "',' names no heads"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(home, tmp_path, capsys, arguments, match):
    out = ("--output", tmp_path / "out")
    assert_refused(capsys, tmp_path, "ablate", home / "model", *arguments, *out, match=match)


def test_no_head_and_no_room_are_told_before_the_model_is_loaded(home, tmp_path, capsys):
    arguments = ("ablate", tmp_path / "no-model", "--heads")
    run = write_run(tmp_path / "still", make_run({0: ["L0H0"], 1: ["L0H0"]}))
    empty = ("born", "--run", run, "--output", tmp_path / "out")
    assert_refused(capsys, tmp_path, *arguments, *empty, match="no head is born in run still")
    full = ("L0H0", "--output", run)
    assert_refused(capsys, tmp_path, *arguments, *full, match="still is not empty: give another")
