"""pass@k, success@k and their intervals, against brute force and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sparks.evaluation.pass_at_k import mean_with_interval, pass_at, pass_values, success_at
from sparks.evaluation.results import Evaluation, ProblemResult, default_ks
from sparks.ground.errors import SparksError
from sparks.views.text.evaluation import render


def drawn(correct: list[bool], k: int) -> float:
    """Share of all sets of k samples that hold a right one."""
    sets = list(itertools.combinations(correct, k))
    return sum(map(any, sets)) / len(sets)


@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_pass_at_k_is_the_mean_over_all_sets_of_k_samples(samples):
    for right, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        correct = [index < right for index in range(samples)]
        assert pass_values(np.array([right]), samples, k)[0] == pytest.approx(drawn(correct, k))


def test_pass_at_k_of_many_samples_is_exact():
    """As 1 - C(n-c, k) / C(n, k) in whole numbers, which floats could not hold."""
    for right, k in [(1, 5000), (3, 9000), (9000, 2), (10000, 1), (0, 10000)]:
        exact = 1 - math.comb(10000 - right, k) / math.comb(10000, k)
        assert pass_values(np.array([right]), 10000, k)[0] == pytest.approx(exact, abs=1e-12)


def test_pass_at_1_is_the_mean_over_samples():
    right = np.array([0, 1, 3, 4])
    assert pass_at(right, 4, 1).value == pytest.approx(8 / 16)


def test_success_at_k_takes_the_first_samples_in_order():
    correct = np.array([[False, False, True], [True, False, False], [False, False, False]])
    assert [success_at(correct, k).value for k in (1, 2, 3)] == pytest.approx([1 / 3, 1 / 3, 2 / 3])


@pytest.mark.parametrize("k", [0, 4, True, 1.0])
def test_a_k_that_the_samples_cannot_tell_is_refused(k):
    with pytest.raises(SparksError, match=r"k must be a whole number from 1 to .*\(3\), got"):
        pass_at(np.array([1]), 3, k)
    with pytest.raises(SparksError, match="sample more, or ask for a smaller k"):
        success_at(np.ones((2, 3), dtype=bool), k)


# -- intervals ---------------------------------------------------------------------------------


def test_yes_and_no_have_wilsons_interval():
    """Wilson 1927, worked out here from its quadratic: (p - x)^2 = z^2 x (1 - x) / n."""
    values = np.array([1.0] * 7 + [0.0] * 3)
    found = mean_with_interval(values, grades=1)
    z, n, p = 1.959963984540054, 10, 0.7
    roots = np.roots([1 + z * z / n, -(2 * p + z * z / n), p * p])
    assert (found.low, found.high) == pytest.approx(sorted(roots))
    assert found.value == pytest.approx(p)


def test_where_all_problems_agree_the_interval_stays_open():
    for value in (0.0, 1.0):
        found = mean_with_interval(np.full(20, value), grades=8)
        assert found.value == value
        assert 0.1 < found.high - found.low < 0.3


def test_pass_at_1_holds_the_truth_in_most_evaluations():
    """Problems of a population whose mean chance is 0.4; 16 samples each."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        chances = rng.beta(0.8, 1.2, size=40)
        found = pass_at(rng.binomial(16, chances), 16, 1)
        held.append(found.low <= 0.4 <= found.high)
    assert 0.92 <= np.mean(held) <= 0.99


def test_no_problems_have_no_mean():
    assert math.isnan(mean_with_interval(np.zeros(0), grades=1).value)


# -- evaluations -------------------------------------------------------------------------------


def result(name: str, *correct: bool, **more) -> ProblemResult:
    texts = tuple("yes" if right else "no" for right in correct)
    return ProblemResult(name, f"Is it {name}?", "yes", correct, texts, **more)


EVALUATION = Evaluation(
    "task\x1b[31m",
    {"samples": 4, "temperature": 0.6, "top_p": 0.95, "top_k": None, "max_new_tokens": 32,
     "seed": 0, "greedy": False, "thinking": True},
    (
        result("a", True, False, True, False, found=("y", "n", None, "n"), tokens=(1, 2, 3, 32),
               truncated=(False, False, False, True)),
        result("b", False, False, False, False, found=("n",) * 4, tokens=(10,) * 4,
               truncated=(False,) * 4),
        result("c", True, True, True, True, found=("y",) * 4, tokens=(10,) * 4,
               truncated=(False,) * 4),
    ),
    model="owner/model",
    intervention="L0H1 set to 0",
    seconds=2.0,
)  # fmt: skip


def test_an_evaluation_adds_up():
    assert EVALUATION.samples == 4
    assert EVALUATION.correct.tolist() == [0.5, 0, 1]
    assert EVALUATION.pass_at().value == pytest.approx(0.5)
    assert EVALUATION.pass_at(2).value == pytest.approx((5 / 6 + 0 + 1) / 3)
    assert EVALUATION.success_at(1).value == pytest.approx(2 / 3)
    assert (EVALUATION.truncated, EVALUATION.unparsed, EVALUATION.tokens) == (1, 1, 118)
    frame = EVALUATION.metrics()
    assert frame[["metric", "k"]].values.tolist() == [
        [metric, k] for metric in ("pass", "success") for k in (1, 2, 4)
    ]
    assert (frame.low <= frame.value).all()
    assert (frame.value <= frame.high).all()
    assert EVALUATION.frame()[["id", "right", "share"]].values.tolist() == [
        ["a", 2, 0.5], ["b", 0, 0.0], ["c", 4, 1.0],
    ]  # fmt: skip


def test_problems_with_other_numbers_of_samples_are_refused():
    with pytest.raises(SparksError, match=r"equally many samples, got \[1, 2\]"):
        Evaluation("t", {}, (result("a", True), result("b", True, False)))


@pytest.mark.parametrize(("samples", "ks"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_the_usual_ks(samples, ks):
    assert default_ks(samples) == ks


def test_the_page():
    page = render(EVALUATION, width=90)
    assert page.splitlines()[:5] == [
        r"task\x1b[31m: 3 problems, 4 samples each",
        "model  owner/model",
        "intervention  L0H1 set to 0",
        "control  none: random heads may do as much; sparks effects measures both",
        "sampling  temperature 0.6, top-p 0.95, thinking on, max tokens 32, seed 0, transformers",
    ]
    assert "\nk  pass@k" in page
    assert "\n1  50% (" in page
    assert "6 of 12 right, 1 cut at 32 tokens (8.33%), 1 without a final answer" in page
    assert "2.0 s, 118 tokens (10 an answer), 59 tokens/s" in page
    assert "\x1b[" not in page
    assert "\n2  61.1% (" in render(EVALUATION, [2], width=90)
    with pytest.raises(SparksError, match="got 5"):
        render(EVALUATION, [5])
