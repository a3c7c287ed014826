"""Probes: the file, its faults, and the way from text to token pairs."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from places import ROOT
from tokenizers_made_here import CHAT_THINKING, CHAT_WITHOUT_SYSTEM, byte_level_tokenizer

from sparks.ground.errors import SparksError
from sparks.probes.probes import Probe, ProbeSet, TokenizedProbes, TokenPair

SMOLLM2 = ROOT / ".cache" / "smollm2-135m-instruct"
ASK = [{"role": "user", "content": "What is 2 + 2?"}]
GOOD = {
    "prompt": "What is 2 + 2?",
    "clean": " The answer is 4.",
    "corrupted": " To determine the sum",
}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


def one(tokenizer, prompt, clean, corrupted, limit=16, **more) -> TokenPair:
    probes = ProbeSet((Probe(prompt, clean, corrupted),))
    (pair,) = probes.tokenize(tokenizer, max_suffix_tokens=limit, **more).pairs
    return pair


# -- TokenPair ---------------------------------------------------------------------------------


def test_token_pair_takes_positions_and_names_and_an_empty_prefix():
    pair = TokenPair([], [1], [2])
    assert pair == TokenPair(prefix=[], clean=[1], corrupted=[2])
    assert len(TokenPair([5, 6], [1, 2], [1, 3])) == 4
    with pytest.raises(FrozenInstanceError):
        pair.clean = [3]


def test_token_pair_keeps_plain_numbers_of_its_own():
    ids = [7, 8]
    pair = TokenPair(np.array([1, 2]), (3,), np.array([4]))
    assert pair == TokenPair([1, 2], [3], [4])
    assert json.dumps(pair.prefix) == "[1, 2]"
    pair = TokenPair(ids, [1], [2])
    ids.append(9)
    assert pair.prefix == [7, 8]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (([], [1, 2], [3]), "same number of tokens, got 2 and 1: cut both"),
        (([1], [], []), "at least one token, got none"),
        (([], [1, 2], [1, 2]), r"must differ, both are \[1, 2\]"),
        (([1.0], [1], [2]), r"prefix must be a list of whole numbers, got \[1.0\]"),
        (([], "ab", [1, 2]), "clean must be a list of whole numbers, got 'ab'"),
        (([], [1], 2), "corrupted must be a list of whole numbers, got 2"),
        (([-1], [1], [2]), r"prefix must hold token ids of at least 0, got \[-1\]"),
        (([True], [1], [2]), r"prefix must hold token ids of at least 0, got \[True\]"),
    ],
)
def test_token_pair_refuses(values, message):
    with pytest.raises(SparksError, match=message) as caught:
        TokenPair(*values)
    assert "\n" not in str(caught.value)


# -- the file ----------------------------------------------------------------------------------


def test_a_file_reads_back_equal(tmp_path):
    odd = 'line\u2028separator, half \u00e9, \U0001f642, "quotes"\nand a new line'
    probes = ProbeSet.from_records(
        [
            GOOD | {"group": "sums"},
            {"prompt": ASK, "clean": odd, "corrupted": "", "id": "odd"},
            Probe("p", "a", "b"),
        ]
    )
    assert [probe.id for probe in probes] == ["probe-1", "odd", "probe-3"]
    path = probes.save(tmp_path / "new folder" / "probes.jsonl")
    again = ProbeSet.load(path)
    assert again == probes
    assert len(again) == 3
    assert again.hash == probes.hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [item.name for item in path.parent.iterdir()] == ["probes.jsonl"]


def test_a_file_may_have_blank_lines_a_mark_and_foreign_line_ends(tmp_path):
    path = tmp_path / "probes.jsonl"
    text = "\ufeff" + json.dumps(GOOD) + "\r\n\r\n" + json.dumps(GOOD)
    path.write_bytes(text.encode())
    assert [probe.id for probe in ProbeSet.load(path)] == ["probe-1", "probe-2"]
    assert list(ProbeSet.load(path))[1].prompt == GOOD["prompt"]


def changed(**values):
    record = GOOD | values
    return json.dumps({key: value for key, value in record.items() if value is not ...})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "probes.jsonl: empty, no probes: give one JSON object a line"),
        (["", "  "], "probes.jsonl: empty"),
        (["{'prompt': 1}"], r"probes.jsonl:1: not JSON \(.*\): give one JSON object a line"),
        ([changed(), "{"], "probes.jsonl:2: not JSON"),
        (["[" * 100_000], "probes.jsonl:1: not JSON"),
        (["[]"], "probes.jsonl:1: a probe must be a JSON object with prompt, clean, .* got list"),
        (["7"], "probes.jsonl:1: a probe must be a JSON object .* got int"),
        (["{}"], "probes.jsonl:1: prompt, clean, corrupted missing: .* this one has no keys"),
        (
            ["", changed(clean=...)],
            "probes.jsonl:2: clean missing: a probe needs prompt, clean, co",
        ),
        ([changed(), changed(corupted="x")], "probes.jsonl:2: unknown key 'corupted'; known: pro"),
        ([changed(clean=4)], "probes.jsonl:1: clean must be text, got 4"),
        ([changed(corrupted=None)], "probes.jsonl:1: corrupted must be text, got None"),
        ([changed(prompt=4)], "probes.jsonl:1: prompt must be text or a list of messages, got int"),
        ([changed(prompt=ASK[0])], "prompt must be text or a list of messages, got dict"),
        ([changed(prompt=[])], "prompt must hold at least one message, got an empty list"),
        ([changed(prompt=["hi"])], r"prompt\[0\] must have the keys role and content, got str"),
        ([changed(prompt=[{"role": "user"}])], r"prompt\[0\] must have the keys .* got role"),
        (
            [changed(prompt=[*ASK, {"role": "robot", "content": "x"}])],
            r"prompt\[1\].role must be one of system, .* got 'robot'",
        ),
        (
            [changed(prompt=[{"role": [], "content": "x"}])],
            r"prompt\[0\].role must be one of .* got \[\]",
        ),
        (
            [changed(prompt=[{"role": "user", "content": None}])],
            r"prompt\[0\].content must be text, got None",
        ),
        (
            [changed(prompt=[*ASK, {"role": "assistant", "content": "4"}])],
            "prompt must end before the answer, its last message is the assistant's",
        ),
        ([changed(id=3)], "probes.jsonl:1: id must be text, got 3"),
        ([changed(id="a\nb")], r"id must be one line of printable text, got 'a\\nb'"),
        ([changed(group="\x1b[2J")], "group must be one line of printable text"),
        ([changed(clean="\ud800")], "clean holds half a surrogate pair at 0"),
        (
            [changed(id="a"), "", changed(id="a")],
            "probes.jsonl:3: id 'a' is already that of .*probes.jsonl:1",
        ),
        (
            [changed(id="probe-2"), changed()],
            "probes.jsonl:2: id 'probe-2' is already that of .*probes.jsonl:1",
        ),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, lines, message):
    path = tmp_path / "probes.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(SparksError, match=message) as caught:
        ProbeSet.load(path)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(SparksError, match=r"cannot read probes .*none.jsonl: No such file"):
        ProbeSet.load(tmp_path / "none.jsonl")
    with pytest.raises(SparksError, match=r": a folder, no plain file"):
        ProbeSet.load(tmp_path)
    (tmp_path / "latin").write_bytes("prüfen".encode("latin-1"))
    with pytest.raises(SparksError, match=r"latin: not UTF-8 text \(.* at byte 2\)"):
        ProbeSet.load(tmp_path / "latin")
    probes = ProbeSet.from_records([GOOD])
    with pytest.raises(SparksError, match=r"cannot write .*latin/probes.jsonl: "):
        probes.save(tmp_path / "latin" / "probes.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SparksError, match=r"cannot write .*folder: Is a directory"):
        probes.save(tmp_path / "folder")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["folder", "latin"]


def test_records_are_named_by_their_number():
    with pytest.raises(SparksError, match="record 2: clean missing"):
        ProbeSet.from_records([GOOD, {"prompt": "x", "corrupted": "y"}])
    with pytest.raises(SparksError, match="at least one probe, got none"):
        ProbeSet.from_records([])
    with pytest.raises(SparksError, match="probe 2: id 'a' is already that of probe 1"):
        ProbeSet((Probe("p", "a", "b", "a"), Probe("q", "a", "b", "a")))
    with pytest.raises(SparksError, match=r"probe 2: must be a Probe, got dict: .*from_records"):
        ProbeSet((Probe("p", "a", "b"), GOOD))


def test_a_probe_keeps_its_own_messages():
    messages = [dict(ASK[0])]
    probe = Probe(messages, "a", "b")
    messages[0]["content"] = "changed"
    messages.append({"role": "assistant", "content": "x"})
    assert probe.prompt == ASK


# -- from text to tokens -----------------------------------------------------------------------


def test_a_chat_prompt_is_rendered_and_the_rest_is_cut_to_the_shorter_one(tokenizer):
    pair = one(tokenizer, ASK, "The answer is 4.", "To")
    text = "<s><|user|>What is 2 + 2?\n<|assistant|>"
    assert pair.prefix == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(pair.prefix) == text
    assert len(pair.clean) == len(pair.corrupted) == len(tokenizer("To")["input_ids"])
    assert tokenizer.decode(pair.corrupted) == "To"
    full = tokenizer(text + "The answer is 4.", add_special_tokens=False)["input_ids"]
    assert (pair.prefix + pair.clean) == full[: len(pair)]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_max_suffix_tokens_bounds_the_rest(tokenizer, limit):
    pair = one(tokenizer, ASK, "Okay, so I have this problem", "To determine the sum of", limit)
    assert len(pair.clean) == len(pair.corrupted) == limit


def test_tokens_merge_over_the_seam(tokenizer):
    # The prompt ends in the space that opens the token " The" (and " To") in real text.
    prompt, clean, corrupted = "What is 2 + 2? ", "The answer is 4.", "To determine the sum"
    alone = tokenizer(prompt)["input_ids"]
    pair = one(tokenizer, prompt, clean, corrupted)
    assert pair.prefix == alone[:-1]
    for rest, text in ((pair.clean, clean), (pair.corrupted, corrupted)):
        whole = tokenizer(prompt + text)["input_ids"]
        assert pair.prefix + rest == whole[: len(pair)]
        assert tokenizer.decode(rest).startswith(" T")
    # Merging changes the tokens: without it this test would say nothing.
    assert alone + tokenizer(clean)["input_ids"] != tokenizer(prompt + clean)["input_ids"]


def test_the_prefix_never_grows_into_the_continuations(tokenizer):
    pair = one(tokenizer, ASK, "Okay, so I have", "Okay, I need to")
    assert tokenizer.decode(pair.prefix).endswith("<|assistant|>")
    assert pair.clean[:2] == pair.corrupted[:2]


@pytest.mark.parametrize(
    ("clean", "expected"),
    [
        ("<think>\nOkay, so I have", "Okay, so I have"),
        ("  \n<think>\nOkay, so I have", "Okay, so I have"),
        ("<think>Okay, so I have", "Okay, so I have"),
        ("<think>\n\nOkay, so I have", "\nOkay, so I have"),
        ("Okay, so I have", "Okay, so I have"),
        ("Okay <think>\nso", "Okay <think>\nso"),
    ],
)
def test_a_think_that_the_template_opens_is_not_repeated(clean, expected):
    tokenizer = byte_level_tokenizer(chat=CHAT_THINKING)
    pair = one(tokenizer, ASK, clean, "To determine the sum of two numbers, we add them.", 99)
    assert tokenizer.decode(pair.prefix).endswith("<|assistant|><think>\n")
    assert tokenizer.decode(pair.prefix + pair.clean).endswith("<|assistant|><think>\n" + expected)


def test_a_think_that_no_template_opens_stays(tokenizer):
    pair = one(tokenizer, ASK, "<think>\nOkay, I need", "To determine the sum of two", 99)
    assert tokenizer.decode(pair.clean).startswith("<think>\n")


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("bos", [False, True])
def test_a_text_prompt_gets_what_the_tokenizer_puts_in_front_and_nothing_behind(bos, eos):
    tokenizer = byte_level_tokenizer(bos=bos, eos=eos)
    pair = one(tokenizer, **GOOD)
    front = [tokenizer.bos_token_id] * bos
    assert pair.prefix == front + tokenizer(GOOD["prompt"], add_special_tokens=False)["input_ids"]
    assert tokenizer.eos_token_id not in pair.clean + pair.corrupted
    empty = one(tokenizer, "", "The answer", "To determine")
    assert empty.prefix == front
    chat = one(tokenizer, ASK, "The answer", "To determine")
    assert chat.prefix.count(tokenizer.bos_token_id) == 1  # the template's own
    assert tokenizer.eos_token_id not in chat.clean


def test_pairs_that_cannot_be_used_are_all_named(tokenizer):
    probes = ProbeSet.from_records(
        [
            GOOD | {"id": "good"},
            GOOD | {"id": "no clean", "clean": ""},
            GOOD | {"id": "no corrupted", "corrupted": ""},
            GOOD | {"id": "same", "corrupted": GOOD["clean"]},
            GOOD | {"id": "same start", "corrupted": " The answer is 5."},
            GOOD | {"id": "long", "prompt": "What is this? " * 20},
        ]
    )
    with pytest.raises(SparksError) as caught:
        probes.tokenize(tokenizer, max_suffix_tokens=2, max_context=60)
    text = str(caught.value)
    assert text.startswith("5 of 6 probes cannot be used: 'no clean' (clean is empty); ")
    assert "'no corrupted' (corrupted is empty); " in text
    assert "'same' (clean and corrupted are equal in their first 2 tokens); " in text
    assert "'same start' (clean and corrupted are equal in their first 2 tokens); " in text
    assert "tokens long, the model's context holds 60); mend or remove them" in text
    assert "'good'" not in text
    assert "\n" not in text


def test_a_think_alone_is_empty_where_the_template_opens_it():
    with pytest.raises(SparksError, match=r"'probe-1' \(clean is empty\)"):
        one(byte_level_tokenizer(chat=CHAT_THINKING), ASK, "<think>\n", "To")


def test_the_context_bounds_prefix_and_rest(tokenizer):
    length = len(one(tokenizer, **GOOD))
    assert len(one(tokenizer, **GOOD, max_context=length)) == length
    with pytest.raises(SparksError, match=f"{length} tokens long, .* holds {length - 1}"):
        one(tokenizer, **GOOD, max_context=length - 1)


def test_chat_prompts_need_a_template_that_takes_them():
    with pytest.raises(SparksError, match="probe 'probe-1' has chat messages, but the tokenizer "):
        one(byte_level_tokenizer(chat=None), ASK, "a", "b")
    assert one(byte_level_tokenizer(chat=None), "text", " a", " b")
    tokenizer = byte_level_tokenizer(chat=CHAT_WITHOUT_SYSTEM)
    prompt = [{"role": "system", "content": "Think."}, *ASK]
    with pytest.raises(SparksError, match=r"template refuses its prompt: no system role\); mend"):
        one(tokenizer, prompt, "a", "b")


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_max_suffix_tokens_is_checked(tokenizer, value):
    with pytest.raises(SparksError, match="max_suffix_tokens must be a whole number, at least 1"):
        one(tokenizer, **GOOD, limit=value)


def test_the_tokenizer_is_left_as_found_whatever_its_state():
    plain, busy = byte_level_tokenizer(), byte_level_tokenizer()
    busy.backend_tokenizer.enable_padding(length=64, pad_token="<pad>", direction="left")
    busy.backend_tokenizer.enable_truncation(max_length=3)
    busy.padding_side = "left"
    before = busy.backend_tokenizer.to_str()
    pair = one(busy, **GOOD)
    assert busy.backend_tokenizer.to_str() == before
    assert pair == one(plain, **GOOD)
    # A plain call would have reset it: without that, this test would say nothing.
    busy("x")
    assert busy.backend_tokenizer.to_str() != before


# -- tokenised sets ----------------------------------------------------------------------------


def test_the_hash_follows_tokens_ids_and_groups_but_not_the_roles(tokenizer):
    def tokenized(**values):
        probes = ProbeSet.from_records([GOOD | values])
        return probes.tokenize(tokenizer, max_suffix_tokens=values.pop("limit", 4))

    base = tokenized()
    assert base.hash == tokenized().hash
    assert len(base.hash) == 64
    others = [
        tokenized(id="other"),
        tokenized(group="other"),
        tokenized(clean=" Okay, so"),
        tokenized(prompt="What is 3 + 5?"),
        TokenizedProbes(base.pairs * 2, base.ids * 2, base.groups * 2),
    ]
    assert len({base.hash, *(other.hash for other in others)}) == 6
    # Text beyond the cut does not count.
    assert base.hash == tokenized(clean=GOOD["clean"] + " Let me think about this").hash
    swapped = base.swapped()
    assert swapped.pairs[0] == TokenPair(
        base.pairs[0].prefix, base.pairs[0].corrupted, base.pairs[0].clean
    )
    assert (swapped.hash, swapped.ids, swapped.groups) == (base.hash, base.ids, base.groups)
    assert swapped.swapped() == base


def test_a_tokenised_set_must_be_whole():
    with pytest.raises(SparksError, match="must be equally many, got 1, 2 and 1"):
        TokenizedProbes((TokenPair([], [1], [2]),), ("a", "b"), ("",))


def test_probes_need_neither_torch_nor_transformers():
    code = (
        "import sys, sparks.probes.probes, sparks.probes.building\n"
        "found = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(found)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# -- a real tokenizer --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="needs `python recipes/prepare_smollm2.py`")
def test_smollm2_renders_and_reads_text_as_in_training():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    pair = one(tokenizer, ASK, "<think>\nOkay, I need to add.", "The sum of 2 and 2 is 4.")
    text = tokenizer.decode(pair.prefix)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n")
    assert len(pair.clean) == len(pair.corrupted) == 11
    assert tokenizer.decode(pair.clean) == "<think>\nOkay, I need to add."
    assert tokenizer.decode(pair.corrupted) == "The sum of 2 and 2 is 4"
    for sample in ("héllo 你好 🙂\t\ttabs", "<|im_start|>user\nhi<|im_end|>\n", "  x = 1\n    y"):
        assert tokenizer.decode(tokenizer(sample)["input_ids"]) == sample
    # Digits stand alone, and the blank line before one stays one token.
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n12")["input_ids"]) == [
        "a",
        "ĊĊ",
        "1",
        "2",
    ]
