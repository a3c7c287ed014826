"""Final answers found in texts written by hand, and checked."""

from __future__ import annotations

import threading

import pytest

from sparks.evaluation import checks
from sparks.evaluation.checks import (
    Verdict,
    boxed,
    final_answer,
    is_mathematics,
    judge,
    plain_words,
    same_mathematics,
)
from sparks.ground.errors import SparksError

STEPS = "We add 3 and 4 and get 7. Then 7 * 2 = 14.\n"


# -- finding the answer ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<think>\nIs it 3? No.\n</think>\n<answer>\n14\n</answer>", "14"),
        ("<answer>3</answer> no: <ANSWER> 14 </ANSWER>", "14"),
        (r"<answer>\boxed{14}</answer>", "14"),
        (STEPS + r"So it is \boxed{3}, no, \boxed{14}.", "14"),
        (r"$\boxed{\frac{1}{\sqrt{2}}}$", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{14} and \boxed{1", "14"),
        (r"\fbox {14}", "14"),
        (STEPS + "The answer is 14.", "14"),
        (STEPS + "**Answer:** 14", "14"),
        ("The final answer is: $14$. Bye.", "$14$. Bye"),
        (STEPS + "#### 14", "14"),
        ("The final answer to this arithmetic problem is 14.", "14"),
        ("The answer is 14, which is 7 * 2 = 14.", "14"),
        ("The answer is (3, 4) because 3 < 4", "(3, 4)"),
        ("My answer. It is 3.\nSo 14", "So 14"),
        ("The answer is 3.\nThe answer is\nhard.\nFinal answer: 14", "14"),
        (STEPS + "\n14.\n\n", "14"),
        ("<think>\nI think \\boxed{3}.\n</think>\n\n14", "14"),
        ("<think>\nIt is \\boxed{14}", None),
        ("<think>14</think>\n \n", None),
        (" \n", None),
    ],
)
def test_the_final_answer(text, found):
    assert final_answer(text) == found


def test_a_box_ends_where_its_braces_do():
    assert boxed(r"\boxed{ \{1, 2\} } x}") == r"\{1, 2\}"
    assert boxed("no box") is None


# -- mathematics -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ("14", "14"),
        ("14.0", "14"),
        ("1,000", "1000"),
        ("-.5", "-0.5"),
        ("**14**.", "14"),
        ("$18", "18"),
        (r"\$18", "18"),
        ("18 dollars", "18"),
        ("$14$", r"\(14\)"),
        ("1/2", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        (r"\sqrt{117}", r"3\sqrt{13}"),
        ("x=5", "5"),
        ("336", r"336^\circ"),
        ("Evelyn", r"\text{Evelyn}"),
        ("(3, 4)", r"\left( 3, 4 \right)"),
        ("100000000000000000001", "100,000,000,000,000,000,001"),
    ],
)
def test_equal_answers(found, answer):
    assert same_mathematics(found, answer)


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ("15", "14"),
        ("0.33", r"\frac{1}{3}"),
        ("Lynvee", r"\text{Evelyn}"),  # the same letters: as a product they would be equal
        ("100000000000000000001", "100000000000000000002"),  # equal as floats
        ("3 4", "34"),
        ("1" * 400 + "+1", "14"),
        ("", "14"),
        ("no idea", "14"),
        ("14 or 15", "14"),
    ],
)
def test_unequal_answers(found, answer):
    assert not same_mathematics(found, answer)


def test_without_a_stated_answer_the_last_expression_counts():
    assert judge("math", STEPS, ["14"]) == Verdict("14", True)
    assert judge("math", "She has 18 apples left.", ["18"]).correct
    assert judge("math", "I do not know.", ["14"]) == Verdict(None, False)
    assert judge("math", "", ["14"]) == Verdict(None, False)
    assert judge("math", r"\boxed{3}", ["14", "3"]).correct


@pytest.mark.parametrize("answer", ["", "???", r"\frac{", "=", "#"])
def test_what_is_no_mathematics(answer):
    assert not is_mathematics(answer)


@pytest.mark.parametrize("answer", ["14", r"\frac{1}{2}", r"\text{east}", "x^2 + 1", "p - q"])
def test_what_is_mathematics(answer):
    assert is_mathematics(answer)


def test_another_thread_can_check_too(caplog):
    found: list[Verdict] = []
    work = threading.Thread(
        target=lambda: found.append(judge("math", r"\boxed{\frac{2}{4}}", [r"\frac{1}{2}"]))
    )
    work.start()
    work.join()
    assert found == [Verdict(r"\frac{2}{4}", True)]


def test_an_expression_that_never_ends_is_wrong_in_time(monkeypatch):
    monkeypatch.setattr(checks, "_SECONDS", 1)
    assert not same_mathematics("9^{9^{9^{9}}}", "14")


def test_without_math_verify_whole_numbers_still_work(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "math_verify", None)
    assert same_mathematics("14.0", "14")
    with pytest.raises(SparksError, match=r"answers in mathematics need math_verify.*\[evaluate\]"):
        same_mathematics("x", r"\frac{14}{3}")


# -- words and letters -------------------------------------------------------------------------


def test_words_are_compared_by_the_rule_of_triviaqa():
    assert plain_words("The  Beatles!") == "beatles"
    assert plain_words("A_day, an hour") == "day hour"
    assert judge("exact", "The answer is the Beatles.", ["Beatles, The"]) == Verdict(
        "the Beatles", True
    )
    assert judge("exact", r"\boxed{\text{Abba}}", ["Beatles", "Abba"]).correct
    assert not judge("exact", "The Beatles or Abba", ["Beatles", "Abba"]).correct
    assert judge("exact", "**The Beatles**", ["x", "beatles"]).correct
    assert judge("exact", "I think:\nBeatles.", ["Beatles"]) == Verdict("Beatles", True)
    assert not judge("exact", "The", ["Beatles"]).correct
    assert not judge("exact", "...", ["!"]).correct  # nothing is left of either


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("-4", "4", False),
        ("\N{MINUS SIGN}4", "-4.", True),
        ("10-4", "10 4", True),  # a dash is none
        ("1.5", "15", False),
        (".5", "0.5", False),
        ("1,000", "1000", True),
        ("1,5", "15", False),
        ("J. S. Bach", "J S Bach", True),
    ],
)
def test_words_keep_what_makes_a_number_another_one(one, other, same):
    assert (plain_words(one) == plain_words(other)) is same
    assert judge("exact", one, [other]).correct is same
    assert judge("contains", f"So it is {one}", [other]).correct is same


def test_contains_looks_for_whole_words():
    assert judge("contains", "It was the Beatles, I think.", ["Beatles"]).correct
    assert judge("contains", "New York City", ["York city"]).correct
    assert not judge("contains", "The Beatlesque", ["Beatles"]).correct
    assert not judge("contains", "<think>Beatles</think> Abba", ["Beatles"]).correct


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        ("The answer is (B) because", "B"),
        ("Answer: B", "B"),
        ("**Answer: B**", "B"),
        ("A is wrong.\nB) water", "B"),
        ("the answer is Boron", None),
        ("I don't know", None),
        ("It is\nA reaction.", None),
        ("So\n(B)", "B"),
    ],
)
def test_the_letter_of_an_option(text, letter):
    assert judge("choice", text, ["B"]) == Verdict(letter, letter == "B")
