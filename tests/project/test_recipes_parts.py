"""What the recipes share: rewards, and the answers of a teacher."""

from __future__ import annotations

import sys

import pytest
from datasets import Dataset
from places import ROOT

sys.path.insert(0, str(ROOT / "recipes"))

from common import rewards, traces

from sparks import SparksError

# -- rewards ---------------------------------------------------------------------------------------

FORM = "<think>\nHm.\n</think>\n<answer>\n{}\n</answer>"


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (FORM.format(4), 1),
        (FORM.format(4) + "\n", 1),
        ("<answer>\n4\n</answer>", 0),
        ("<think>Hm.</think>\n<answer>\n4\n</answer>", 0),
        (FORM.format(4) + FORM.format(4), 0),
        ("So: " + FORM.format(4), 0),
        (FORM.format("<think>\nAgain.\n</think>"), 0),
    ],
)
def test_the_form(text, reward):
    assert rewards.format_reward([[{"role": "assistant", "content": text}]]) == [reward]


@pytest.mark.parametrize(
    ("answer", "solution", "reward"),
    [
        ("4", "4", 1),
        ("-04", "-4", 1),
        ("5", "4", 0),
        ("3 × 5", "3 × 5", 1),
        ("0.5", r"\frac{1}{2}", 1),
        (r"\frac{2}{4}", "0.5", 1),
        (r"$\boxed{\frac{1}{2}}$", r"\frac{1}{2}", 1),
        ("about a half", r"\frac{1}{2}", 0),
        (r"\sqrt{8}", r"2\sqrt{2}", 1),
    ],
)
def test_the_answer(answer, solution, reward):
    completions = [[{"role": "assistant", "content": FORM.format(answer)}]]
    assert rewards.accuracy_reward(completions, solution=[solution]) == [reward]


def test_an_answer_outside_its_tags_is_none():
    assert not rewards.is_right("The answer is 4.", "4")


# -- teacher traces --------------------------------------------------------------------------------

HEADER = {"teacher": "t", "max_new_tokens": 4, "temperature": 1.0, "top_p": 1.0, "seed": 0}


class Teacher:
    """Answers `count`, the running number of its answers; stops after `patience` batches."""

    eos_token_id = pad_token_id = 0

    def __init__(self, monkeypatch, patience: int = 99) -> None:
        self.asked: list[str] = []
        self.patience = patience
        monkeypatch.setattr(traces, "answers", self.answer)

    def answer(self, model, tokenizer, prompts, sampling) -> list[str]:
        if self.patience == 0:
            raise KeyboardInterrupt
        self.patience -= 1
        self.asked += [prompt[0]["content"] for prompt in prompts]
        return [f"<answer>{int(prompt[0]['content']) % 3}</answer>" for prompt in prompts]


def numbers(count: int) -> Dataset:
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": str(n)}], "solution": "1"} for n in range(count)]
    )


def test_traces_go_on_where_they_were_and_keep_what_is_right(tmp_path, monkeypatch):
    path, rows = tmp_path / "made" / "traces.jsonl", numbers(7)
    teacher = Teacher(monkeypatch, patience=2)
    with pytest.raises(KeyboardInterrupt):
        traces.write_traces(path, HEADER, rows, None, teacher, batch_size=2)
    assert not path.exists()
    partial = path.with_name("traces.jsonl.partial")
    partial.write_text(partial.read_text("utf-8") + '{"prompt": [{"ro', "utf-8")  # killed
    teacher = Teacher(monkeypatch)
    traces.write_traces(path, HEADER, rows, None, teacher, batch_size=2)
    assert teacher.asked == ["4", "5", "6"]
    assert not partial.exists()
    found = traces.read_traces(path, HEADER)
    assert [row["prompt"][0]["content"] for row in found] == ["1", "4"]
    assert set(found.column_names) == {"prompt", "completion"}


def test_traces_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "traces.jsonl"
    traces.write_traces(path, HEADER, numbers(1), None, Teacher(monkeypatch), batch_size=2)
    with pytest.raises(SparksError, match="traces with teacher='t', now it is 'u': delete it, or"):
        traces.read_traces(path, HEADER | {"teacher": "u"})
    with pytest.raises(SparksError, match="none of the teacher's 1 answers is right"):
        traces.read_traces(path, HEADER)
    path.write_text("{\n", "utf-8")
    with pytest.raises(SparksError, match="no file of traces"):
        traces.read_traces(path, HEADER)
