"""Control probes: recall and copying for any tokenizer, chosen by what the model gets right."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from command_line import call
from test_probe_building import CHAT, SMOLLM2, config, save_model, write
from tokenizers_made_here import CHAT_THINKING, byte_level_tokenizer, spaced_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparks.ground.config import LEAST_LOSS
from sparks.ground.errors import SparksError
from sparks.probes.building import Sampler, build_probes
from sparks.probes.controls import FACTS, WORDS, Reading, control_probes
from sparks.probes.pairs import PairEncoder
from sparks.probes.probes import CONTROL_GROUP, Probe, ProbeSet
from sparks.probes.settings import ProbeBuildingConfig

LONG = 80
"""Tokens of a continuation; the tokenizers made here spell most words."""


class Knowing:
    """A model that copies, and knows some facts."""

    knows = FACTS

    def __init__(self, tokenizer, *, longest=LONG) -> None:
        self.encoder = PairEncoder(tokenizer, max_suffix_tokens=longest)
        self.asked: list[tuple[str, str]] = []
        self.losses = itertools.count(1)
        self._tokenizer = tokenizer

    def readings(self, pairs) -> list[Reading]:
        found = []
        for pair in pairs:
            clean, corrupted = (pair.prefix + part for part in (pair.clean, pair.corrupted))
            texts = [self._tokenizer.decode(ids) for ids in (clean, corrupted)]
            self.asked.append((texts[0], texts[1]))
            ends = [
                self._next(ids, text) for ids, text in zip((clean, corrupted), texts, strict=True)
            ]
            found.append(Reading(float(next(self.losses)), *ends))
        return found

    def _next(self, ids: list[int], text: str) -> int:
        """The token that opens the right word; 0 where there is none."""
        answer = self.answer(text)
        whole = self._tokenizer(text + answer, add_special_tokens=False)["input_ids"]
        return whole[len(ids)] if answer else 0

    def answer(self, text: str) -> str:
        if "Repeat this list: " in text:
            words, begun = text.split("Repeat this list: ")[1].split(".", 1)
            copied = begun.split(">")[-1].strip(" \n,").split(", ")
            words = words.split(", ")
            return f" {words[len(copied)]}" if words[: len(copied)] == copied else ""
        facts = (
            (sentence.format(cue), table[cue])
            for sentence, table in self.knows.items()
            for cue in table
        )
        return next((f" {answer}" for said, answer in facts if text.endswith(said)), "")


def made(reader, count=6, **values):
    given = {"max_suffix_tokens": LONG} | values
    return control_probes(reader, count, **given)


def beginnings(probes) -> list[str]:
    return [probe.clean for probe in probes]


# -- what stands in the tables ---------------------------------------------------------------------


def test_the_tables_hold_what_can_be_told_apart():
    for sentence, table in FACTS.items():
        assert sentence.count("{}") == 1
        assert all(cue != answer for cue, answer in table.items())
        assert len(set(table.values())) == len(table)
    assert len(set(WORDS)) == len(WORDS) >= 40


# -- choosing --------------------------------------------------------------------------------------


def test_half_copies_and_half_recalls_and_ends_before_the_word():
    tokenizer = byte_level_tokenizer()
    reader = Knowing(tokenizer)
    found = made(reader)
    assert found.right == 6
    assert [probe.id for probe in found.probes] == [f"control-{n}" for n in range(1, 7)]
    assert {probe.group for probe in found.probes} == {CONTROL_GROUP}
    asked = [probe.prompt[-1]["content"].split()[0] for probe in found.probes]
    assert asked == ["Repeat", "Complete"] * 3
    assert {len(probe.prompt) for probe in found.probes} == {1}
    for probe in found.probes:
        prompt = reader.encoder.prompt_text(probe.prompt)
        assert reader.answer(prompt + probe.clean)
        assert reader.answer(prompt + probe.clean) != reader.answer(prompt + probe.corrupted)
    assert len(set(beginnings(found.probes))) == 6


@pytest.mark.parametrize("kind", ["copying", "recall"])
def test_one_kind_alone(kind):
    found = made(Knowing(byte_level_tokenizer()), kind=kind)
    word = {"copying": "Repeat this list: ", "recall": "Complete the sentence."}[kind]
    assert all(probe.prompt[0]["content"].startswith(word) for probe in found.probes)


def test_a_seed_gives_the_same_probes_and_another_seed_others():
    first, again, other = (
        made(Knowing(byte_level_tokenizer()), seed=seed).probes for seed in (0, 0, 1)
    )
    assert first == again
    assert not set(beginnings(first)) & set(beginnings(other))


def test_what_the_model_gets_wrong_comes_last_and_the_largest_loss_first():
    sentence = "The capital of {} is"
    reader = Knowing(byte_level_tokenizer())
    reader.knows = {sentence: dict(list(FACTS[sentence].items())[:10])}
    found = made(reader, kind="recall")
    known = [reader.answer(clean) for clean, _ in reader.asked]
    assert 0 < found.right == sum(map(bool, known)) < 6
    assert len(known) == 5 * 6
    places = {clean.rsplit(">", 1)[1]: place for place, (clean, _) in enumerate(reader.asked)}
    asked = [places[probe.clean] for probe in found.probes]
    assert all(known[place] for place in asked[: found.right])
    rest = asked[found.right :]
    assert rest == sorted(rest, reverse=True)  # later ones were given a larger loss


def test_the_same_word_behind_both_is_not_right():
    class Parrot(Knowing):
        def _next(self, ids, text):
            return 7  # whatever was said, and never the answer

    assert made(Parrot(byte_level_tokenizer())).right == 0

    class Sure(Knowing):
        def readings(self, pairs):
            found = super().readings(pairs)
            return [Reading(item.loss, item.clean_next, item.clean_next) for item in found]

    assert made(Sure(byte_level_tokenizer())).right == 0


@pytest.mark.parametrize("loss", [0.9 * LEAST_LOSS, float("nan")])
def test_nothing_to_attribute_is_refused(loss):
    class Flat(Knowing):
        def readings(self, pairs):
            return [Reading(loss, 1, 2) for _ in pairs]

    with pytest.raises(SparksError, match="only 0 of 6 control probes of kind both fit the model"):
        made(Flat(byte_level_tokenizer()))


def test_too_many_or_too_short_is_refused():
    reader = Knowing(byte_level_tokenizer(), longest=2)
    with pytest.raises(SparksError, match=r"only 0 of 6 .* into 2 of its tokens, or it predicts"):
        made(reader, max_suffix_tokens=2)
    assert reader.asked == []
    facts = sum(map(len, FACTS.values()))
    with pytest.raises(
        SparksError, match=rf"only \d+ of {facts + 1} control probes of kind recall"
    ):
        made(Knowing(byte_level_tokenizer()), facts + 1, kind="recall")


# -- any tokenizer ---------------------------------------------------------------------------------

TOKENIZERS = {
    "chat": byte_level_tokenizer(),
    "opened thinking": byte_level_tokenizer(chat=CHAT_THINKING),
    "text": byte_level_tokenizer(chat=None),
    "text with bos and eos": byte_level_tokenizer(chat=None, bos=True, eos=True),
    "spaced": spaced_tokenizer(),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("longest", [16, LONG])
def test_pairs_are_equally_long_and_uncut_with_any_tokenizer(name, longest):
    tokenizer = TOKENIZERS[name]
    reader = Knowing(tokenizer, longest=longest)
    kind = "both" if longest == LONG else "copying"  # spelled, facts are long
    probes = ProbeSet(made(reader, 6, kind=kind, max_suffix_tokens=longest).probes)
    tokens = probes.tokenize(tokenizer, max_suffix_tokens=longest)
    for probe, pair in zip(probes, tokens.pairs, strict=True):
        assert isinstance(probe.prompt, str) is (tokenizer.chat_template is None)
        for text, rest in ((probe.clean, pair.clean), (probe.corrupted, pair.corrupted)):
            assert pair.prefix + rest == reader.encoder.prompt_ids(probe.prompt, text)


def test_a_system_prompt_goes_before_the_question():
    found = made(Knowing(byte_level_tokenizer()), 2, system_prompt="Think.")
    assert [message["role"] for message in found.probes[0].prompt] == ["system", "user"]
    assert found.probes[0].prompt[0]["content"] == "Think."


# -- building --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), chat=CHAT)


SHORT = {"max_new_tokens": 40, "max_suffix_tokens": 40}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"control": -1}, "control must be a whole number, at least 0, got -1"),
        ({"control": True}, "control must be a whole number, at least 0, got True"),
        ({"control": 2, "control_kind": "rhyme"}, "control_kind must be one of both, copying, rec"),
        ({"data": None}, "no probes asked for: give problems with data, or control above 0"),
        ({"control_probes": "mine.jsonl"}, "control_probes needs control: how many of them to tak"),
    ],
)
def test_settings_are_checked(tmp_path, values, message):
    with pytest.raises(SparksError, match=message):
        config(values.pop("data", "data"), "model", tmp_path, **values)


def test_one_file_holds_both_groups(model, tmp_path):
    records = [{"problem": f"What is {n}?", "answer": f"It is {n}.", "group": "g"} for n in (1, 2)]
    data = write(tmp_path / "problems.jsonl", records)
    given = {"count": 2, "control": 4, "control_kind": "copying", **SHORT}
    built = build_probes(config(data, model, tmp_path, **given), progress=False)
    assert [probe.group for probe in built.probes] == ["g"] * 2 + [CONTROL_GROUP] * 4
    ids = [probe.id for probe in built.probes]
    assert ids == ["probe-1", "probe-2", *(f"control-{n}" for n in range(1, 5))]
    alone = build_probes(config(None, model, tmp_path, **given), progress=False)
    assert alone.probes.probes == built.probes.probes[2:]
    assert (alone.skipped, alone.control_right) == ((), built.control_right)
    without = build_probes(config(data, model, tmp_path, count=2, **SHORT), progress=False)
    assert without.probes.probes == built.probes.probes[:2]
    assert without.control_right is None


def test_own_control_probes_take_the_place_of_the_built_in_ones(model, tmp_path):
    own = [Probe("What is", f" {n}", f" {n + 1}", id=f"mine-{n}", group="trivia") for n in range(3)]
    path = ProbeSet(tuple(own)).save(tmp_path / "own.jsonl")
    given = {"control": 2, "control_probes": str(path)}
    built = build_probes(config(None, model, tmp_path, **given), progress=False)
    expected = [replace(probe, id="control-1", group=CONTROL_GROUP) for probe in own[:2]]
    expected[1] = replace(expected[1], id="control-2")
    assert built.probes.probes == tuple(expected)
    assert built.control_right is None
    with pytest.raises(SparksError, match=r"own.jsonl: 3 probes, control asks for 4"):
        build_probes(config(None, model, tmp_path, **given | {"control": 4}), progress=False)
    equal = ProbeSet((Probe("What is", " 4", " 4"),)).save(tmp_path / "equal.jsonl")
    bad = {"control": 1, "control_probes": str(equal)}
    with pytest.raises(SparksError, match=r"1 of 1 probes cannot be used: 'control-1' \(clean and"):
        build_probes(config(None, model, tmp_path, **bad), progress=False)


def test_what_the_model_predicts_is_read_behind_each_row(model, tmp_path):
    """Rows of unequal length in batches of two, against one row at a time."""
    settings = config(None, model, tmp_path, control=1, **SHORT)
    sampler = Sampler(model, settings)
    texts = [("a", " b c"), ("What is 2 + 2?", " The sum is 4."), ("Okay, so", " I think")]
    pairs = [sampler.encoder.pair(prompt, text, " No way at all") for prompt, text in texts]
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    for pair, reading in zip(pairs, sampler.readings(pairs), strict=True):
        with torch.no_grad():
            clean, corrupted = (
                network(torch.tensor([pair.prefix + part])).logits[0, -1].double()
                for part in (pair.clean, pair.corrupted)
            )
        p, q = clean.softmax(-1), corrupted.softmax(-1)
        assert reading.loss == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-4, abs=1e-5)
        assert (reading.clean_next, reading.corrupted_next) == (int(p.argmax()), int(q.argmax()))


def test_the_command_writes_them_and_tells_a_weak_control(model, tmp_path, capsys):
    out = tmp_path / "probes.jsonl"
    given = ("--max-suffix-tokens", 30, "--control", 3, "--control-kind", "copying")
    assert call("probes", "--model", model, "--output", out, *given) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(
        f"3 probes in {out}, 3 of them control (0 problems passed over), hash "
    )
    assert "control probes the model does not get the next word right: a weak cont" in captured.err
    assert "warning" not in captured.err  # control probes alone are not meant to find changes
    groups = [json.loads(line)["group"] for line in out.read_text().splitlines()]
    assert groups == [CONTROL_GROUP] * 3


# -- a real model ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="needs `python recipes/prepare_smollm2.py`")
def test_smollm2_recalls_and_copies():
    settings = ProbeBuildingConfig(model=str(SMOLLM2), output="", control=4)
    built = build_probes(settings, progress=False)
    assert built.control_right == 4
    sampler = Sampler(str(SMOLLM2), settings)
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    tokens = built.probes.tokenize(tokenizer, max_suffix_tokens=16)
    assert all(reading.loss > 0.5 for reading in sampler.readings(tokens.pairs))
