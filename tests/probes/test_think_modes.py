"""Switches of chat templates, markers, and rendered prompts as plain text."""

from __future__ import annotations

import pytest
from think_templates import DEEPSEEK, FLAGS, IGNORED, QWEN3, QWEN35, SMOLLM3
from tokenizers_made_here import CHAT, byte_level_tokenizer

from sparks.ground.errors import SparksError
from sparks.probes.pairs import PairEncoder
from sparks.probes.thinking_switch import as_plain_text, find_switch, shared_text, split_marker

ASK = [{"role": "user", "content": "What is 2 + 2?"}]
ASKED = "<s><|user|>What is 2 + 2?\n<|assistant|>"


@pytest.mark.parametrize(
    ("template", "name", "late", "on", "off"),
    [
        (QWEN3, "enable_thinking", True, ASKED, f"{ASKED}<think>\n\n</think>\n\n"),
        (QWEN35, "enable_thinking", True, f"{ASKED}<think>\n", f"{ASKED}<think>\n\n</think>\n\n"),
        (DEEPSEEK, "thinking", True, f"{ASKED}<think>", f"{ASKED}</think>"),
        (
            SMOLLM3, "enable_thinking", False,
            "<s><|system|>Mode: /think\n<|user|>What is 2 + 2?\n<|assistant|>",
            "<s><|system|>Mode: /no_think\n<|user|>What is 2 + 2?\n<|assistant|>"
            "<think>\n\n</think>\n",
        ),
        (
            FLAGS, "/think", False,
            "<s><|system|>/think\n<|user|>What is 2 + 2?\n<|assistant|>",
            "<s><|system|>/no_think\n<|user|>What is 2 + 2?\n<|assistant|><think></think>",
        ),
    ],
)  # fmt: skip
def test_switches_are_found_by_rendering(template, name, late, on, off):
    tokenizer = byte_level_tokenizer(chat=template)
    switch = find_switch(tokenizer, "model")
    assert switch.name == name
    assert switch.is_late(tokenizer) is late
    assert switch.render(tokenizer, ASK, "on") == on
    assert switch.render(tokenizer, ASK, "off") == off


def test_a_flag_joins_the_system_message_that_is_there():
    tokenizer = byte_level_tokenizer(chat=FLAGS)
    asked = [{"role": "system", "content": "Be brief."}, *ASK]
    text = find_switch(tokenizer, "model").render(tokenizer, asked, "off")
    assert text.startswith("<s><|system|>Be brief.\n/no_think\n<|user|>")
    assert asked[0]["content"] == "Be brief."


def test_a_variable_can_be_named():
    tokenizer = byte_level_tokenizer(chat=QWEN3.replace("enable_thinking", "ponder"))
    assert find_switch(tokenizer, "model", "ponder").name == "ponder"
    with pytest.raises(SparksError, match=r"of model has no thinking mode: .*--switch NAME"):
        find_switch(tokenizer, "model")
    with pytest.raises(SparksError, match=r"has no thinking mode: it takes none of muse;"):
        find_switch(tokenizer, "model", "muse")


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (None, "the tokenizer of model has no chat template, so no thinking mode"),
        (CHAT, "the chat template of model has no thinking mode: it takes none of enable_thinking"),
        (IGNORED, "names enable_thinking, but renders the same prompt with it True and False"),
    ],
)
def test_templates_without_a_mode_are_refused(template, match):
    with pytest.raises(SparksError, match=match):
        find_switch(byte_level_tokenizer(chat=template), "model")


def test_a_template_that_refuses_is_told():
    tokenizer = byte_level_tokenizer(chat=QWEN3 + "{{ raise_exception('not today') }}")
    with pytest.raises(SparksError, match="the chat template refuses its prompt: not today"):
        find_switch(tokenizer, "model")


@pytest.mark.parametrize(
    ("on", "off", "shared"),
    [
        ("ask: ", "ask: <think>\n\n</think>", "ask: "),
        ("ask: <think>\n", "ask: <think>\n\n</think>", "ask: "),
        ("ask: <think>", "ask: </think>", "ask: "),
        ("Mode: /think ask", "Mode: /no_think ask", "Mode: /"),
        ("same", "same", "same"),
        ("", "other", ""),
    ],
)
def test_shared_text_is_not_cut_within_a_tag(on, off, shared):
    assert shared_text(on, off) == shared == shared_text(off, on)


@pytest.mark.parametrize(
    ("text", "marker", "words"),
    [
        ("<think>\nOkay", "<think>\n", "Okay"),
        ("\n<think>\n\n</think>\n\nTo", "\n<think>\n\n</think>\n\n", "To"),
        ("<think><think>Okay", "<think><think>", "Okay"),
        (" Okay <think>", "", " Okay <think>"),
        ("</think>To", "", "</think>To"),
        ("<think>\n", "<think>\n", ""),
    ],
)
def test_own_words_stand_behind_the_marker(text, marker, words):
    assert split_marker(text) == (marker, words)


@pytest.mark.parametrize("bos", [True, False])
def test_a_rendered_prompt_gets_no_second_opening_token(bos):
    tokenizer = byte_level_tokenizer(chat=QWEN3, bos=bos, eos=bos)
    encoder = PairEncoder(tokenizer, max_suffix_tokens=4)
    rendered = find_switch(tokenizer, "model").render(tokenizer, ASK, "off")
    text = as_plain_text(encoder, tokenizer, rendered)
    wanted = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, enable_thinking=False)
    assert encoder.prompt_ids(text) == list(wanted["input_ids"])
    assert text == (rendered.removeprefix("<s>") if bos else rendered)


def test_an_opening_token_that_the_template_does_not_write_is_refused():
    tokenizer = byte_level_tokenizer(chat=QWEN3.removeprefix("<s>"), bos=True)
    encoder = PairEncoder(tokenizer, max_suffix_tokens=4)
    with pytest.raises(SparksError, match=r"puts '<s>' before every text, .* add_bos_token"):
        as_plain_text(encoder, tokenizer, "<|user|>What?")
