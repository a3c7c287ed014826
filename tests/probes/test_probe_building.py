"""Probes built from problems, with tiny random models."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from places import ROOT
from tokenizers_made_here import (
    CHAT,
    CHAT_THINKING,
    CHAT_WITHOUT_SYSTEM,
    byte_level_tokenizer,
    spaced_tokenizer,
)
from transformers import LlamaConfig, LlamaForCausalLM

from sparks.ground.errors import SparksError
from sparks.probes.building import (
    build_probes,
    text_after,
    write_probes,
)
from sparks.probes.probes import ProbeSet
from sparks.probes.problems import read_problems
from sparks.probes.settings import ProbeBuildingConfig

SMOLLM2 = ROOT / ".cache" / "smollm2-135m-instruct"
SYSTEM = {"role": "system", "content": "Think."}
ASK = {"role": "user", "content": "What is 2 + 2?"}
REPLY = {"role": "assistant", "content": "The answer is 4."}


def save_model(folder, *, chat=CHAT, seed=0, broken=False) -> str:
    tokenizer = byte_level_tokenizer(chat=chat)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=1.0,
    )
    model = LlamaForCausalLM(config)
    if broken:
        model.lm_head.weight.data.fill_(float("nan"))
    # Settings of the model that must not count.
    model.generation_config.do_sample = True
    model.generation_config.top_k = 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def problems(tmp_path):
    records = [{"problem": f"What is {n} + 2?", "answer": f"The sum is {n + 2}."} for n in range(9)]
    return write(tmp_path / "problems.jsonl", records)


def write(path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def config(data, model, tmp_path, **values) -> ProbeBuildingConfig:
    given = {"count": 3, "max_new_tokens": 8, "max_suffix_tokens": 4, "batch_size": 2} | values
    return ProbeBuildingConfig(
        data=data, model=model, output=str(tmp_path / "out" / "probes.jsonl"), **given
    )


# -- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count must be a whole number, at least 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be a whole number, at least 1, got 1.5"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number"),
        ({"max_new_tokens": 3}, r"max_new_tokens must be at least max_suffix_tokens \(4\), got 3"),
        ({"temperature": 0}, "temperature must be above 0, got 0: use greedy"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, got 1.1"),
    ],
)
def test_settings_are_checked(tmp_path, values, message):
    with pytest.raises(SparksError, match=message):
        config("data", "model", tmp_path, **values)


# -- problems ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "prompt", "answer"),
    [
        ({"problem": "Q", "answer": "A"}, [{"role": "user", "content": "Q"}], "A"),
        ({"question": "Q", "answer": 42}, [{"role": "user", "content": "Q"}], "42"),
        ({"problem": "Q", "solution": "S", "answer": "A"}, [{"role": "user", "content": "Q"}], "S"),
        ({"prompt": "Q", "completion": "C", "solution": "S"}, "Q", "C"),
        ({"prompt": [SYSTEM, ASK], "completion": [REPLY]}, [SYSTEM, ASK], REPLY["content"]),
        ({"messages": [ASK, REPLY], "solution": "S"}, [ASK], REPLY["content"]),
        ({"messages": [ASK], "solution": "S"}, [ASK], "S"),
        (
            {"messages": None, "problem": "Q", "answer": None},
            [{"role": "user", "content": "Q"}],
            "",
        ),
        ({"messages": [ASK, {"role": "assistant"}]}, [ASK], ""),
        ({"prompt": "Q"}, "Q", None),
    ],
)
def test_problems_are_read_in_every_form(tmp_path, record, prompt, answer):
    data = write(tmp_path / "data.jsonl", [record | {"group": "kind"}])
    (problem,) = read_problems(data)
    assert (problem.prompt, problem.answer, problem.group) == (prompt, answer, "kind")
    assert problem.place == f"{data}:1"


def test_a_system_prompt_takes_the_place_of_the_problems_own(tmp_path):
    other = {"role": "system", "content": "Be brief."}
    data = write(tmp_path / "data.jsonl", [{"prompt": [other, ASK]}, {"problem": "Q"}])
    first, second = read_problems(data, system_prompt="Think.")
    assert first.prompt == [SYSTEM, ASK]
    assert second.prompt == [SYSTEM, {"role": "user", "content": "Q"}]
    data = write(tmp_path / "text.jsonl", [{"prompt": "Q"}])
    with pytest.raises(SparksError, match=r"text.jsonl:1: a system prompt needs chat prompts"):
        next(read_problems(data, system_prompt="Think."))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"answer": "A"}, "data.jsonl:1: no prompt: a problem needs one of messages, prompt, prob"),
        ({"problem": "", "answer": "A"}, "no prompt: .* this one has problem, answer"),
        ([1], "data.jsonl:1: a problem must be a JSON object, got list"),
        ({"problem": 5, "answer": "A"}, "problem must be text or a list of messages, got int"),
        ({"problem": "Q", "answer": {"a": 1}}, "the answer in answer must be text, got {'a': 1}"),
        ({"problem": "Q", "answer": True}, "the answer in answer must be text, got True"),
        ({"messages": "Q", "answer": "A"}, "messages must be a list of messages, got text"),
        ({"prompt": [ASK, REPLY], "answer": "A"}, "prompt must end before the answer"),
    ],
)
def test_a_bad_problem_is_refused_in_one_line(tmp_path, record, message):
    data = write(tmp_path / "data.jsonl", [record])
    with pytest.raises(SparksError, match=message) as caught:
        next(read_problems(data))
    assert "\n" not in str(caught.value)


# -- building ----------------------------------------------------------------------------------


def test_reference_answers_are_clean_and_own_beginnings_corrupted(problems, model, tmp_path):
    built = write_probes(config(problems, model, tmp_path), progress=False)
    assert built.skipped == ()
    assert [probe.id for probe in built.probes] == ["probe-1", "probe-2", "probe-3"]
    assert [probe.clean for probe in built.probes] == [f"The sum is {n}." for n in (2, 3, 4)]
    tokenizer = byte_level_tokenizer()
    assert all(probe.corrupted for probe in built.probes)
    assert ProbeSet.load(tmp_path / "out" / "probes.jsonl") == built.probes
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["probes.jsonl"]
    built.probes.tokenize(tokenizer, max_suffix_tokens=4, max_context=128)


def test_a_seed_reproduces_the_probes_and_leaves_the_random_states(problems, model, tmp_path):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = build_probes(config(problems, model, tmp_path), progress=False).probes
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    torch.manual_seed(2)
    assert build_probes(config(problems, model, tmp_path), progress=False).probes == first
    other = build_probes(config(problems, model, tmp_path, seed=1), progress=False).probes
    assert other != first


def test_the_draw_is_over_all_tokens_and_new_for_every_batch(problems, model, tmp_path):
    # So hot that every token is as likely as any other: what is drawn is the draw alone.
    hot = {"temperature": 1e9, "top_p": 1.0, "batch_size": 1}
    other = save_model(tmp_path / "other", seed=4)
    one, two = (
        [
            probe.corrupted
            for probe in build_probes(
                config(problems, name, tmp_path, **hot), progress=False
            ).probes
        ]
        for name in (model, other)
    )
    assert one == two  # not so among the 50 likeliest of each model, transformers' default
    assert len(set(one)) == 3


def test_greedy_takes_the_likeliest_tokens(problems, model, tmp_path):
    built = build_probes(config(problems, model, tmp_path, greedy=True), progress=False)
    again = build_probes(config(problems, model, tmp_path, greedy=True, seed=5), progress=False)
    assert built == again
    sampled = build_probes(config(problems, model, tmp_path), progress=False)
    # The model's own top_k = 1 would make both equal.
    assert [p.corrupted for p in sampled.probes] != [p.corrupted for p in built.probes]
    tokenizer = byte_level_tokenizer()
    network = LlamaForCausalLM.from_pretrained(model)
    probe = built.probes.probes[0]
    text = f"<s><|user|>{probe.prompt[0]['content']}\n<|assistant|>"
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([ids, network(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert probe.corrupted == tokenizer.decode(ids[0, start:]).split("</s>")[0].rstrip("\ufffd")


def test_a_long_answer_is_cut_to_the_tokens_that_are_kept(model, tmp_path):
    answer = "Okay, so I have this problem. To determine the sum of two numbers, we add them."
    data = write(tmp_path / "data.jsonl", [{"problem": "Q", "answer": answer}])
    built = build_probes(config(data, model, tmp_path, count=1), progress=False)
    (probe,) = built.probes
    assert answer.startswith(probe.clean)
    assert len(byte_level_tokenizer()(probe.clean)["input_ids"]) == 8


def test_problems_without_a_usable_pair_are_replaced_and_named(model, tmp_path):
    records = [
        {"problem": "What is 1 + 2?", "answer": ""},
        {"problem": "What is 2 + 2?", "answer": "Okay", "group": "kept"},
        {"problem": "What is this? " * 50, "answer": "Okay"},
        {"problem": "What is 3 + 2?", "answer": "Okay", "group": "kept too"},
        {"problem": "What is 4 + 2?", "answer": "Okay"},
    ]
    data = write(tmp_path / "data.jsonl", records)
    built = build_probes(config(data, model, tmp_path, count=2), progress=False)
    assert [probe.prompt[0]["content"] for probe in built.probes] == [
        "What is 2 + 2?",
        "What is 3 + 2?",
    ]
    assert [probe.group for probe in built.probes] == ["kept", "kept too"]
    first, second = built.skipped
    assert first == f"{data}:1: clean is empty"
    assert second.startswith(f"{data}:3: a prompt of ")
    assert second.endswith("leaves no room for 8 in 128")
    built = build_probes(config(data, model, tmp_path, count=2, group="all"), progress=False)
    assert {probe.group for probe in built.probes} == {"all"}


@pytest.mark.parametrize(("tokens", "fits"), [(120, True), (121, False)])
def test_a_prompt_must_leave_room_for_what_is_sampled(model, tmp_path, tokens, fits):
    prompt = "What" + " is" * (tokens - 1)
    assert len(byte_level_tokenizer()(prompt)["input_ids"]) == tokens
    data = write(tmp_path / "data.jsonl", [{"prompt": prompt, "answer": " Okay"}])
    settings = config(data, model, tmp_path, count=1)
    if fits:
        assert len(build_probes(settings, progress=False).probes) == 1
    else:
        with pytest.raises(SparksError, match="prompt of 121 tokens leaves no room for 8 in 128"):
            build_probes(settings, progress=False)


def test_problems_are_read_from_every_kind_of_file_and_saved_data_set(tmp_path):
    records = [{"problem": f"What is {n} + 2?", "answer": f"{n + 2}"} for n in range(3)]
    data = Dataset.from_list(records)
    (tmp_path / "list.json").write_text(json.dumps(records))
    write(tmp_path / "lines.json", records)
    data.to_parquet(tmp_path / "data.parquet")
    data.save_to_disk(tmp_path / "saved")
    DatasetDict(train=data, test=data.select([2])).save_to_disk(tmp_path / "splits")
    (tmp_path / "files").mkdir()
    write(tmp_path / "files" / "train.jsonl", records)
    for name in ("list.json", "lines.json", "data.parquet", "saved", "splits", "files"):
        found = list(read_problems(str(tmp_path / name)))
        assert [problem.answer for problem in found] == ["2", "3", "4"], name
        assert found[0].place.startswith(str(tmp_path / name))
    assert len(list(read_problems(str(tmp_path / "splits"), split="test"))) == 1
    for name, match in (
        ("splits", r"splits has no split 'dev', it has train, test\Z"),
        ("none.parquet", "cannot read problems .*none.parquet: No such file"),
    ):
        with pytest.raises(SparksError, match=match):
            list(read_problems(str(tmp_path / name), split="dev"))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(SparksError, match=r"cannot load data set .*torn.parquet': ") as caught:
        list(read_problems(str(tmp_path / "torn.parquet")))
    assert "\n" not in str(caught.value)


def test_a_rejected_answer_is_corrupted_without_the_model(model, tmp_path):
    record = {"prompt": [ASK], "chosen": [REPLY], "rejected": [{**REPLY, "content": "It is 5."}]}
    data = write(tmp_path / "data.jsonl", [record])
    (probe,) = build_probes(config(data, model, tmp_path, count=1), progress=False).probes
    assert (probe.clean, probe.corrupted) == (REPLY["content"], "It is 5.")


@pytest.mark.parametrize("offline", [False, True])
def test_a_hub_data_set_is_streamed_or_taken_from_the_cache(monkeypatch, offline):
    asked = []

    def load(*place, **how):
        asked.append((place, how))
        return [{"problem": "Q", "answer": "A"}] * 2

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    first, second = read_problems("owner/name", subset="default", split="test")
    assert asked == [(("owner/name", "default"), {"split": "test", "streaming": not offline})]
    assert (first.place, second.place) == ("owner/name row 1", "owner/name row 2")
    monkeypatch.setattr("datasets.load_dataset", lambda *place, **how: [])
    with pytest.raises(SparksError, match="owner/name: no problems in split 'train'"):
        build_probes(ProbeBuildingConfig(data="owner/name", model="", output=""), progress=False)


def test_two_models(problems, model, tmp_path):
    trained = save_model(tmp_path / "trained", chat=CHAT_THINKING, seed=9)
    built = build_probes(config(problems, model, tmp_path, clean_model=trained), progress=False)
    own = build_probes(config(problems, model, tmp_path), progress=False)
    # What a template opens is part of the text, so that it stands for itself elsewhere.
    assert all(probe.clean.startswith("<think>\n") for probe in built.probes)
    assert len({probe.clean for probe in built.probes}) == 3
    assert [p.corrupted for p in built.probes] == [p.corrupted for p in own.probes]
    # One model against itself: different draws on both sides, so pairs still differ.
    same = build_probes(config(problems, model, tmp_path, clean_model=model), progress=False)
    assert all(probe.clean != probe.corrupted for probe in same.probes)
    data = write(tmp_path / "unanswered.jsonl", [{"problem": "Q"}])
    assert build_probes(config(data, model, tmp_path, count=1, clean_model=trained), progress=False)
    with pytest.raises(
        SparksError, match=r"unanswered.jsonl:1: no reference answer: give one of co"
    ):
        build_probes(config(data, model, tmp_path, count=1), progress=False)


def test_too_few_problems_write_nothing(problems, model, tmp_path):
    settings = config(problems, model, tmp_path, count=10)
    with pytest.raises(
        SparksError, match=r"only 9 of 10 probes from .*: 0 problems were passed ov"
    ):
        write_probes(settings, progress=False)
    assert not (tmp_path / "out").exists()
    data = write(tmp_path / "empty.jsonl", [{"problem": "Q", "answer": ""}] * 2)
    with pytest.raises(
        SparksError, match=r"only 0 of 3 .* 2 .*, the first of them .*empty.jsonl:1"
    ):
        write_probes(config(data, model, tmp_path), progress=False)
    assert not (tmp_path / "out").exists()


def test_building_gives_up_on_data_that_never_fits(model, tmp_path):
    data = write(tmp_path / "data.jsonl", [{"problem": "Q", "answer": ""}] * 300)
    with pytest.raises(
        SparksError, match=r"only 0 of 3 probes .*: 1[0-9][0-9] problems were passed"
    ):
        build_probes(config(data, model, tmp_path, batch_size=50), progress=False)


def test_templates_that_do_not_fit(problems, tmp_path):
    plain = save_model(tmp_path / "plain", chat=None)
    with pytest.raises(SparksError, match=r"problems.jsonl:1: chat messages, but the tokenizer of"):
        build_probes(config(problems, plain, tmp_path), progress=False)
    data = write(tmp_path / "text.jsonl", [{"prompt": "What is 2 + 2?", "answer": " The sum"}])
    built = build_probes(config(data, plain, tmp_path, count=1), progress=False)
    assert built.probes.probes[0].prompt == "What is 2 + 2?"
    strict = save_model(tmp_path / "strict", chat=CHAT_WITHOUT_SYSTEM)
    with pytest.raises(SparksError, match=r"9 problems .* template refuses its prompt: no system"):
        build_probes(config(problems, strict, tmp_path, system_prompt="Think."), progress=False)


def test_faults_are_found_before_the_work(problems, model, tmp_path):
    with pytest.raises(SparksError, match=r"cannot read problems .*none.jsonl: No such file"):
        build_probes(config(str(tmp_path / "none.jsonl"), "no-model", tmp_path), progress=False)
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(SparksError, match=r"cannot write .*out/probes.jsonl: Not a directory"):
        write_probes(config(problems, "no-model", tmp_path), progress=False)
    (tmp_path / "out").unlink()
    (tmp_path / "out" / "probes.jsonl").mkdir(parents=True)
    with pytest.raises(SparksError, match="it is a folder, give a file name"):
        write_probes(config(problems, "no-model", tmp_path), progress=False)


def test_what_the_hub_does_not_give_is_one_line(problems, model, tmp_path):
    for name in ("no-such-owner/no-such-model", str(tmp_path / "no-folder")):
        match = r"cannot load checkpoint .* \(no such folder here; as a hub id, \w+: "
        with pytest.raises(SparksError, match=match) as caught:
            build_probes(config(problems, name, tmp_path), progress=False)
        assert "\n" not in str(caught.value)
    with pytest.raises(SparksError, match="cannot load data set 'no-such-owner/data': ") as caught:
        build_probes(config("no-such-owner/data", model, tmp_path), progress=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(SparksError, match=r"cannot load checkpoint .*no-such-device"):
        build_probes(config(problems, model, tmp_path, device="no-such-device"), progress=False)


def test_a_model_with_weights_that_are_no_numbers(problems, tmp_path):
    broken = save_model(tmp_path / "broken", broken=True)
    with pytest.raises(SparksError, match=r"cannot sample from .*broken: .*; check its weights"):
        build_probes(config(problems, broken, tmp_path), progress=False)


def test_the_space_that_opens_an_answer_is_kept():
    tokenizer = spaced_tokenizer()
    prompt = tokenizer("What is this")["input_ids"]
    whole = tokenizer("What is this problem")["input_ids"]
    assert whole[: len(prompt)] == prompt
    assert text_after(tokenizer, prompt, whole[len(prompt) :]) == " problem"
    assert tokenizer.decode(whole[len(prompt) :]) == "problem"  # what it would be otherwise


def test_half_a_character_is_left_out():
    tokenizer = byte_level_tokenizer()
    ids = tokenizer("so \U0001f642")["input_ids"]
    assert text_after(tokenizer, [], ids) == "so \U0001f642"
    assert text_after(tokenizer, [], ids[:-1]) == "so "


# -- a real model -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="needs `python recipes/prepare_smollm2.py`")
def test_smollm2_answers_in_english(tmp_path):
    problem = {"problem": "What is the capital of France?", "answer": "<think>\nOkay, I recall"}
    data = write(tmp_path / "data.jsonl", [problem])
    built = build_probes(
        ProbeBuildingConfig(data=data, model=str(SMOLLM2), output="", count=1, greedy=True),
        progress=False,
    )
    (probe,) = built.probes
    assert probe.corrupted == "The capital of France is Paris."
