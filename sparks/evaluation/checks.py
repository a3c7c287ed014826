"""Finding the final answer in what a model wrote, and checking it. No torch.

1. What stands behind the last `</think>` counts; thinking that never ends gives no answer.
2. The answer: the last `<answer>...</answer>`; else the last `\\boxed{...}`; else what follows the
   last "answer is", "answer to ... is", "answer:" or `####` on its line; else what the check finds
   in the text: math takes math-verify's last expression, choice a letter that opens the last line,
   exact the last line, contains the whole text.
3. The check, against the right answer and what counts as well (aliases):
   math: equal as numbers or by math-verify (https://github.com/huggingface/Math-Verify); answers
   that are words are compared as words.
   exact: equal after case, punctuation, articles and white space are gone (TriviaQA, Joshi et al.
   2017, https://arxiv.org/abs/1705.03551).
   contains: the right answer's words follow each other somewhere in the text, after the same.
   choice: the letter of an option.

math-verify limits its own time by signals, which only the main thread can take: elsewhere there is
no limit, and answers of more than 300 characters are compared as text alone.
"""

from __future__ import annotations

import re
import string
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Literal

from sparks.ground.optional import import_optional

CheckName = Literal["math", "exact", "contains", "choice"]

_SECONDS = 5
_LONGEST = 300  # characters of an answer that math-verify is asked about
_NUMBER = re.compile(r"[+-]?(\d+|\d{1,3}(,\d{3})+)?(\.\d+)?")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_SAID = re.compile(
    r"(?:\banswer(?:\b[^.:=\n]{0,80}?\bis\b|\s*[:=])[ \t]*:?|####)[ \t]*(.+)", re.IGNORECASE
)
_REASON = re.compile(r"[,;]?\s+(?:because|since|which|where|so)\b")
_LETTER = re.compile(r"(?:^|[^A-Za-z'])([A-H])(?![A-Za-z'])")
_LETTER_FIRST = re.compile(r"^\W*([A-H])(?:\W*$|[).:])")
_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_IN_NUMBERS = (
    (re.compile(r"(?<![\w.])[-\N{MINUS SIGN}](?=\.?\d)"), " minus"),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<!\w)\.(?=\d)|(?<=\d)\.(?=\d)"), "point"),
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Verdict:
    """What a check says of one text."""

    found: str | None
    """The final answer in it; None where there is none."""
    correct: bool


def judge(check: CheckName, text: str, answers: Sequence[str]) -> Verdict:
    """Whether the final answer of a text is one of `answers`.

    Args:
        check: how it is compared.
        text: what the model wrote, with the `<think>` that its template opened.
        answers: the right answer, and what counts as well.

    Raises:
        SparksError: math-verify is needed and not installed.
    """
    body = after_thinking(text)
    if body is None or not body.strip():
        return Verdict(None, False)
    if check == "contains":
        words = f" {plain_words(body)} "
        right = any(f" {plain_words(answer)} " in words for answer in answers)
        return Verdict(stated_answer(body) or last_line(body), right)
    found = stated_answer(body)
    if check == "math":
        return _judge_math(found, body, answers)
    if check == "choice":
        letter = _letter(last_line(body), _LETTER_FIRST) if found is None else _letter(found)
        return Verdict(letter, letter is not None and letter in answers)
    found = last_line(body) if found is None else found
    wanted = {plain_words(answer) for answer in answers}
    return Verdict(found, bool(plain_words(found)) and plain_words(found) in wanted)


# -- finding -----------------------------------------------------------------------------------


def after_thinking(text: str) -> str | None:
    """What stands behind the thinking; None where it never ends."""
    if "</think>" in text:
        return text.rpartition("</think>")[2]
    return None if "<think>" in text else text


def stated_answer(body: str) -> str | None:
    """The answer in its tags, in a box, or behind "answer is"; None where none is stated."""
    if tagged := _TAGGED.findall(body):
        inner = tagged[-1].strip()
        return boxed(inner) or inner
    if (box := boxed(body)) is not None:
        return box
    said = _SAID.findall(body)
    return _trimmed(_REASON.split(said[-1])[0]) or None if said else None


def final_answer(text: str) -> str | None:
    """The stated answer behind the thinking, else its last line; None where there is nothing."""
    body = after_thinking(text)
    if body is None or not body.strip():
        return None
    found = stated_answer(body)
    return last_line(body) if found is None else found


def boxed(text: str) -> str | None:
    r"""Content of the last whole `\boxed{...}` or `\fbox{...}`; None where there is none."""
    for match in reversed(list(re.finditer(r"\\f?boxed\s*\{|\\fbox\s*\{", text))):
        depth = 1
        for place in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return text[match.end() : place].strip()
    return None


def last_line(text: str) -> str:
    """The last line that is not blank."""
    lines = [line for line in text.splitlines() if line.strip()]
    return _trimmed(lines[-1]) if lines else ""


def _trimmed(text: str) -> str:
    """Without emphasis and the full stop at the end."""
    return text.replace("**", "").strip().removesuffix(".").strip()


def _letter(text: str, pattern: re.Pattern[str] = _LETTER) -> str | None:
    """The letter of an option: the first that stands by itself."""
    match = pattern.search(_COMMAND.sub(r"\1", text).replace("$", " "))
    return match[1] if match else None


def plain_words(text: str) -> str:
    """Lower case, without punctuation and articles, one space between words (TriviaQA's rule).

    What makes a number another one is no punctuation: a sign and a decimal point become letters,
    and the commas of thousands go.
    """
    text = _COMMAND.sub(r"\1", text).lower()
    for pattern, word in _IN_NUMBERS:
        text = pattern.sub(word, text)
    text = "".join(" " if letter in string.punctuation + "‘’´`" else letter for letter in text)
    return " ".join(_ARTICLES.sub(" ", text).split())


# -- mathematics -------------------------------------------------------------------------------


def _judge_math(found: str | None, body: str, answers: Sequence[str]) -> Verdict:
    if found is None:
        last = _parsed(body)
        if not last:
            return Verdict(None, False)
        return Verdict(str(last[-1]), any(_equal(_of(answer), last) for answer in answers))
    return Verdict(found, any(same_mathematics(found, answer) for answer in answers))


def same_mathematics(found: str, answer: str) -> bool:
    """Whether two answers are equal: as text, as numbers, or as mathematics.

    Raises:
        SparksError: math-verify is needed and not installed.
    """
    one, other = bare(found), bare(answer)
    if one == other:
        return True
    if (a := _number(one)) is not None and (b := _number(other)) is not None:
        return a == b
    if _is_words(other):  # math-verify would multiply the letters
        return plain_words(one) == plain_words(other)
    if len(one) > _LONGEST:
        return False
    right = _of(answer)
    if _equal(right, _parsed(_as_latex(one))):
        return True
    # "18 dollars" is a product of letters as LaTeX, and 18 as text.
    return bool(re.search(r"[A-Za-z]{3}", one)) and _equal(right, _parsed(one))


def is_mathematics(answer: str) -> bool:
    """Whether the math check can compare with a right answer.

    Raises:
        SparksError: math-verify is needed and not installed.
    """
    plain = bare(answer)
    return _number(plain) is not None or _is_words(plain) or bool(_of(answer))


def bare(text: str) -> str:
    r"""An answer without the marks around a formula: `$`, `\(`, `\[`, emphasis, a full stop."""
    text = _trimmed(text).replace("\\$", "").replace("\\!", "")
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening):
            text = text[len(opening) : -len(closing)].strip()
    return text.removeprefix("$").strip()


def _number(text: str) -> Decimal | None:
    if not _NUMBER.fullmatch(text) or not any(letter.isdigit() for letter in text):
        return None
    return Decimal(text.replace(",", ""))


def _is_words(text: str) -> bool:
    """Words and nothing else: `\\text{Evelyn}`, `east`."""
    inner = _COMMAND.sub(r"\1", text)
    return bool(re.fullmatch(r"[A-Za-z][A-Za-z'\- ]*", inner)) and bool(
        re.search(r"[A-Za-z]{3}", inner)
    )


@cache
def _of(answer: str) -> list[Any]:
    """A right answer as math-verify reads it."""
    return _parsed(_as_latex(bare(answer))) or _parsed(answer)


def _parsed(text: str) -> list[Any]:
    """Expressions, without what is left as a string; empty where there is none."""
    math_verify = _math_verify()
    found = math_verify.parse(text, parsing_timeout=_limit())
    return found if any(not isinstance(item, str) for item in found) else []


def _equal(right: list[Any], found: list[Any]) -> bool:
    if not right or not found:
        return False
    return bool(_math_verify().verify(right, found, timeout_seconds=_limit()))


def _as_latex(text: str) -> str:
    r"""Marked as LaTeX where it is not yet: bare `\frac{1}{2}` would be read as words."""
    return text if "$" in text or "\\boxed" in text else f"${text}$"


def _limit() -> int | None:
    main = threading.current_thread() is threading.main_thread()
    return _SECONDS if main else None


def _math_verify() -> Any:
    return import_optional("math_verify", users="answers in mathematics", extra="evaluate")
