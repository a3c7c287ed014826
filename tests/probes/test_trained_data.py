"""What a trainer holds, read as problems: every form of rows that TRL makes."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers_made_here import CHAT, byte_level_tokenizer, spaced_tokenizer
from torch.utils.data import IterableDataset

from sparks.ground.errors import SparksError
from sparks.probes.pairs import PairEncoder, TokenPair
from sparks.probes.trained import IdsToText, TrainingData

CHATTY = byte_level_tokenizer(chat=CHAT)
PLAIN = byte_level_tokenizer(chat=None, bos=True)
ANSWER = "<think>\nOkay, I need to find the answer."


def rendered(question: str, answer: str = "", tokenizer: Any = CHATTY) -> list[int]:
    return tokenizer(f"<s><|user|>{question}\n<|assistant|>{answer}", add_special_tokens=False)[
        "input_ids"
    ]


def read(rows: Any, tokenizer: Any = CHATTY, **settings: Any) -> tuple[TrainingData, list[Any]]:
    data = TrainingData(rows, tokenizer, **{"length": 8} | settings)
    return data, list(data.problems())


def prompt_ids(problem: Any, tokenizer: Any = CHATTY) -> list[int]:
    return PairEncoder(tokenizer, max_suffix_tokens=4).prompt_ids(problem.prompt)


def supervised(question: str, answer: str = ANSWER, *, masked: bool = True) -> dict[str, Any]:
    prompt, ids = rendered(question), rendered(question, answer)
    return {
        "input_ids": ids,
        "labels": ([-100] * len(prompt) + ids[len(prompt) :]) if masked else ids,
    }


# -- supervised ------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
def test_the_supervised_part_is_the_answer(masked):
    # Without a mask, the answer is behind what the chat template opens one with.
    data, (problem,) = read([supervised("What is 2 + 2?", masked=masked)])
    assert data.words == "the supervised part against what the model writes"
    assert prompt_ids(problem) == rendered("What is 2 + 2?")
    assert problem.rejected is None
    assert ANSWER.startswith(problem.answer)
    assert len(CHATTY(problem.answer)["input_ids"]) == 8


def test_the_first_of_several_answers_is_taken_to_its_end():
    one, two = supervised("What is 2 + 2?", " So 4."), supervised("What is 3 + 5?", " So 8.")
    row = {name: one[name] + two[name] for name in one}
    _, (problem,) = read([row], length=99)
    assert problem.answer == " So 4."
    assert prompt_ids(problem) == rendered("What is 2 + 2?")


def test_packed_rows_are_taken_apart():
    parts = [supervised(f"What is {n} + 2?") for n in range(3)]
    row = {name: [*itertools.chain(*(part[name] for part in parts))] for name in parts[0]}
    row["seq_lengths"] = [len(part["input_ids"]) for part in parts]
    _, problems = read([row])
    assert [prompt_ids(problem) for problem in problems] == [
        rendered(f"What is {n} + 2?") for n in range(3)
    ]


def test_text_without_a_chat_is_parted_in_the_middle():
    text = "What is this? Okay, so I have this problem. To determine the sum of two numbers, we add"
    ids = PLAIN(text)["input_ids"]
    rows = [{"input_ids": ids}, {"input_ids": ids, "labels": [-100, *ids[1:]]}, {"text": text}]
    for row in rows:
        _, (problem,) = read([row], PLAIN)
        assert prompt_ids(problem, PLAIN) == ids[: len(ids) // 2]
        assert text.endswith(problem.answer) or problem.answer in text
    _, (long,) = read([{"input_ids": ids * 9}], PLAIN)
    assert len(prompt_ids(long, PLAIN)) == 32


def test_rows_that_give_nothing_are_named():
    half = CHATTY("\U0001f642")["input_ids"][:1]
    rows = [
        {"input_ids": half * 9, "labels": None},
        {"input_ids": [1, 5, 6], "labels": [-100] * 3},
        supervised("What is 2 + 2?"),
        supervised("What is 2 + 2?", " So."),
    ]
    data, problems = read(rows, seed=1)
    assert len(problems) == 1
    assert sorted(line.partition(": ")[2] for line in data.skipped) == [
        "a prompt that another row has, too",
        "its text has other tokens than its row",
        "no supervised part behind a prompt",
    ]
    assert all(line.startswith("row ") for line in data.skipped)


# -- preferences -----------------------------------------------------------------------------------


def test_chosen_against_rejected():
    prompt = rendered("What is 2 + 2?")
    good, bad = (CHATTY(text)["input_ids"] for text in (" So 4.", " So 5."))
    row = {"prompt_ids": prompt, "chosen_ids": good, "rejected_ids": torch.tensor(bad)}
    data, (problem,) = read([row])
    assert data.is_compared
    assert (problem.answer, problem.rejected) == (" So 4.", " So 5.")
    text = {"prompt": "What is 2 + 2?", "chosen": " So 4.", "rejected": " So 5."}
    data, (problem,) = read([text])
    assert data.is_compared
    assert (problem.answer, problem.rejected) == (" So 4.", " So 5.")
    with pytest.raises(
        SparksError, match="row 1 of the training data: no chosen_ids, it has promp"
    ):
        read([{"prompt_ids": prompt}])


def test_desirable_answers_meet_undesirable_ones_to_their_prompt():
    answers = {True: " So 4.", False: " So 5."}
    rows = [
        {
            "prompt_ids": rendered(f"What is {n} + 2?"),
            "completion_ids": CHATTY(answers[label])["input_ids"],
            "label": label,
        }
        for n, labels in enumerate([(True, False), (True,), (False,), (False, True, True)])
        for label in labels
    ]
    for seed in range(3):  # in whatever order they are drawn
        _, problems = read(rows, seed=seed)
        found = {
            re.search(r"\d", problem.prompt)[0]: (problem.answer, problem.rejected)
            for problem in problems
        }
        pair = (" So 4.", " So 5.")
        assert found == {"0": pair, "3": pair, "1": (" So 4.", None)}


# -- prompts ---------------------------------------------------------------------------------------


def test_reference_answers_have_usual_names_or_are_named():
    row = {"prompt": "What is 2 + 2?", "gold": " It is 4.", "solution": " So 4."}
    data, (problem,) = read([row])
    assert (data.words, problem.answer) == ("solution against what the model writes", " So 4.")
    data, (problem,) = read([row], answer_key="gold")
    assert (data.words, problem.answer) == ("gold against what the model writes", " It is 4.")
    assert problem.record == row
    data, (problem,) = read([{"prompt": "What is 2 + 2?"}])
    assert (data.words, problem.answer) == ("", None)


def test_a_seed_draws_the_rows():
    rows = [{"prompt": f"What is {n}?"} for n in range(50)]
    first, again, other = (
        [problem.prompt for problem in read(rows, seed=seed)[1]] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert sorted(first) == sorted(other) == sorted(row["prompt"] for row in rows)


def test_a_stream_is_read_in_order_and_left_where_it_was():
    stream = Dataset.from_list(
        [{"prompt": f"What is {n}?"} for n in range(5)]
    ).to_iterable_dataset()
    before = stream.state_dict()
    _, problems = read(stream)
    assert [problem.prompt for problem in problems] == [f"What is {n}?" for n in range(5)]
    assert stream.state_dict() == before

    class Counted(IterableDataset):
        def __iter__(self):
            return iter([{"prompt": "What is 2?"}])

        def __len__(self):
            return 1

    assert len(read(Counted())[1]) == 1


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "the training data are empty"),
        ([{"pixels": 1}], "the rows of the training data have pixels, of which none is a prompt"),
        ([{}], "the rows of the training data have no columns, of which none is a prompt"),
        (["text"], "the rows of the training data are str, no dictionaries"),
        ([{"prompt": "Q"}, {"prompt": 5}], "row 2 of the training data: prompt must be text or a"),
    ],
)
def test_data_that_cannot_be_read_are_told(rows, match):
    with pytest.raises(SparksError, match=match):
        read(rows)


# -- token ids as text -----------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [CHATTY, PLAIN, spaced_tokenizer()])
def test_a_pair_becomes_a_probe_with_its_tokens(tokenizer):
    ids = tokenizer("What is 3 + 5? The sum of 3 and 5 is 8.")["input_ids"]
    other = tokenizer("What is 3 + 5? Let me think about this step by step.")["input_ids"]
    shared = next(at for at in range(len(ids)) if ids[at] != other[at])
    pair = TokenPair(ids[:shared], ids[shared : shared + 4], other[shared : shared + 4])
    probe = IdsToText(tokenizer).probe(pair)
    encoder = PairEncoder(tokenizer, max_suffix_tokens=4)
    assert encoder.pair(probe.prompt, probe.clean, probe.corrupted) == pair
