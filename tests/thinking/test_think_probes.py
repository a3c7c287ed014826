"""Probes of both modes, from tiny random chat models."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from think_models import save_thinking_model, write_problems
from think_templates import DEEPSEEK, IGNORED, QWEN35, SMOLLM3
from transformers import AutoTokenizer

from sparks.ground.errors import SparksError
from sparks.probes.pairs import PairEncoder
from sparks.thinking.probes import build_think_probes
from sparks.thinking.settings import ThinkConfig

WORDS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_thinking_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path):
    return write_problems(tmp_path / "problems.jsonl")


def build(model, data, **values):
    given = {"data": data, "count": 4, "max_new_tokens": 24, "batch_size": 3} | values
    return build_think_probes(
        model, ThinkConfig(**given), max_suffix_tokens=WORDS, device="cpu", progress=False
    )


def tokenized(model, probes, extra=0):
    tokenizer = AutoTokenizer.from_pretrained(model)
    return probes.tokenize(tokenizer, max_suffix_tokens=WORDS + extra)


def test_beginnings_are_what_the_model_writes_under_each_mode(model, data):
    built = build(model, data)
    assert (built.switch, built.contrast) == ("enable_thinking", "beginnings")
    for probe in built.on:
        assert probe.prompt.startswith("<s><|user|>What is ")
        assert probe.prompt.endswith(" + 2?\n<|assistant|>")
        assert probe.corrupted.startswith("<think>\n\n</think>\n\n")
        assert not probe.clean.startswith("<think>")
    assert [p.id for p in built.on] == [p.id for p in built.off]
    on, off = tokenized(model, built.on), tokenized(model, built.off)
    assert off.pairs == on.swapped().pairs


def test_own_words_come_from_each_mode_s_own_prompt(model, data):
    """The likeliest tokens behind the rendered prompt, from the model itself."""
    from transformers import AutoModelForCausalLM

    built = build(model, data, greedy=True, batch_size=1)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    for probe in built.on:
        question = probe.prompt.partition("<|user|>")[2].partition("\n")[0]
        for thinking, beginning in ((True, probe.clean), (False, probe.corrupted)):
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                enable_thinking=thinking,
                return_tensors="pt",
                return_dict=True,
            )["input_ids"]
            with torch.no_grad():
                first = int(loaded(input_ids=ids).logits[0, -1].argmax())
            rest = beginning.removeprefix("<think>\n\n</think>\n\n")
            assert rest.encode().startswith(
                tokenizer.decode([first]).encode().rstrip(b"\xef\xbf\xbd")
            )


def test_a_pair_holds_as_many_own_words_as_asked_for_behind_the_longer_marker(model, data):
    built = build(model, data)
    tokenizer = AutoTokenizer.from_pretrained(model)
    marker = len(tokenizer("<think>\n\n</think>\n\n")["input_ids"])
    assert built.marker_tokens == marker
    pairs = tokenized(model, built.on, extra=built.marker_tokens).pairs
    assert max(len(pair.clean) for pair in pairs) == marker + WORDS
    encoder = PairEncoder(tokenizer, max_suffix_tokens=99)
    for probe, pair in zip(built.on, pairs, strict=True):
        assert pair.prefix == encoder.prompt_ids(probe.prompt)
        assert tokenizer.decode(pair.corrupted).startswith("<think>\n\n</think>\n\n")


def test_contrast_words_keeps_the_marker_out_of_what_is_swapped(model, data):
    built = build(model, data, contrast="words")
    assert (built.contrast, built.marker_tokens) == ("words", 0)
    for on, off in zip(built.on, built.off, strict=True):
        assert off.prompt == f"{on.prompt}<think>\n\n</think>\n\n"
        assert (on.clean, on.corrupted) == (off.corrupted, off.clean)
        assert "think>\n\n" not in on.clean + on.corrupted
    tokenized(model, built.off)


def test_a_mode_that_is_told_before_the_answer_takes_words(tmp_path, data):
    model = save_thinking_model(tmp_path / "model", chat=SMOLLM3)
    built = build(model, data)
    assert built.contrast == "words"
    for on, off in zip(built.on, built.off, strict=True):
        assert on.prompt.startswith("<s><|system|>Mode: /think\n")
        assert off.prompt.startswith("<s><|system|>Mode: /no_think\n")
        assert off.prompt.endswith("<think>\n\n</think>\n")
        assert (on.clean, on.corrupted) == (off.corrupted, off.clean)
    with pytest.raises(
        SparksError, match=r"contrast must be words for .* got beginnings: its temp"
    ):
        build(model, data, contrast="beginnings")


@pytest.mark.parametrize(
    ("chat", "clean", "corrupted"),
    [
        (DEEPSEEK, "<think>", "</think>"),
        (QWEN35, "<think>\n", "<think>\n\n</think>\n\n"),
    ],
)
def test_an_opened_thought_stands_once(tmp_path, data, chat, clean, corrupted):
    model = save_thinking_model(tmp_path / "model", chat=chat)
    built = build(model, data)
    for probe in built.on:
        assert probe.prompt.endswith("<|assistant|>")
        assert probe.clean.startswith(clean)
        assert not probe.clean.removeprefix(clean).lstrip().startswith("<think>")
        assert probe.corrupted.startswith(corrupted)
    words = build(model, data, contrast="words")
    assert all(probe.prompt.endswith(clean) for probe in words.on)
    assert all(probe.prompt.endswith(corrupted) for probe in words.off)


def test_a_tokenizer_with_an_opening_token_gives_the_same_tokens(tmp_path, model, data):
    other = save_thinking_model(tmp_path / "model", bos=True)
    assert (
        tokenized(other, build(other, data).on).pairs
        == tokenized(model, build(model, data).on).pairs
    )


def test_the_same_seed_gives_the_same_probes_and_leaves_random_states_alone(model, data):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = build(model, data)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])
    assert build(model, data).on.hash == first.on.hash
    assert build(model, data, seed=1).on.hash != first.on.hash


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chat", "match"),
    [
        (None, "has no chat template, so no thinking mode to turn on and off"),
        ("{{ messages[0]['content'] }}", "has no thinking mode: it takes none of enable_thinking"),
        (IGNORED, "names enable_thinking, but renders the same prompt with it True and False"),
    ],
)
def test_models_without_modes_are_refused(tmp_path, data, chat, match):
    model = save_thinking_model(tmp_path / "model", chat=chat)
    with pytest.raises(SparksError, match=match):
        build(model, data)


@pytest.mark.parametrize("contrast", ["beginnings", "words"])
def test_a_model_that_writes_the_same_under_both_modes_is_refused(tmp_path, data, contrast):
    model = save_thinking_model(tmp_path / "model", says="answer")
    with pytest.raises(
        SparksError, match="writes the same words with thinking on and off, in all 12"
    ):
        build(model, data, contrast=contrast, greedy=True)


def test_a_model_that_writes_nothing_is_told(tmp_path, data):
    model = save_thinking_model(tmp_path / "model", says="</s>")
    with pytest.raises(
        SparksError, match=r"only 0 of 4 .* thinking on the model writes no words of"
    ):
        build(model, data, greedy=True)


def test_problems_as_plain_text_are_refused(tmp_path, model):
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"prompt": "What is 2 + 2?"}) + "\n")
    with pytest.raises(
        SparksError, match=r"text.jsonl:1: the prompt is text, .* the key `problem`"
    ):
        build(model, str(path))


def test_a_problem_that_is_too_long_makes_room_for_the_next(tmp_path, model):
    path = tmp_path / "long.jsonl"
    rows = [{"problem": "What is 2 + 2? " * 40}, *({"problem": f"{n} + 2?"} for n in range(8))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    built = build(model, str(path))
    assert len(built.on) == 4
    assert "long.jsonl:1: a prompt of" in built.skipped[0]


def test_missing_data_and_wrong_settings_are_told(model, tmp_path):
    with pytest.raises(SparksError, match="no problems: say with --data"):
        build(model, None)
    with pytest.raises(SparksError, match="contrast must be one of auto, beginnings, words, got"):
        ThinkConfig(contrast="marker")
    for values, match in (
        ({"count": 0}, "count must be a whole number"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
    ):
        with pytest.raises(SparksError, match=match):
            ThinkConfig(**values)
    with pytest.raises(SparksError, match="max_new_tokens must be at least max_suffix_tokens"):
        build(model, write_problems(tmp_path / "p.jsonl"), max_new_tokens=2)
