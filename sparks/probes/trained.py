"""Problems out of what a trainer holds: the rows of its training data, tokenised or not. No torch.

    rows                                    clean                     corrupted
    input_ids, labels                       the supervised part       what the model writes
    text                                    its second half           what the model writes
    prompt_ids, chosen_ids, rejected_ids    chosen                    rejected
    prompt_ids, completion_ids, label       desirable                 undesirable, of one prompt
    prompt, messages, problem, question     the reference answer      rejected, or what the model
                                                                      writes

Rows are drawn at random, under a seed, without repeats of a prompt. Token ids become the text that
the tokenizer reads back as these very ids, so that probes from tokenised rows stand in a file like
all others; a row whose text has other tokens is passed over.

Where every token of a row is supervised, the answer begins behind what the chat template opens an
answer with, and without one in the middle of the text, at most `_MOST_BEFORE` tokens in. A packed
row (`seq_lengths`) is taken apart first.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sparks.ground.errors import SparksError
from sparks.models.generation import decode, text_after
from sparks.probes.pairs import PairEncoder, TokenPair
from sparks.probes.probes import Probe
from sparks.probes.problems import ANSWER_KEYS, PROMPT_KEYS, Problem, problem_of
from sparks.probes.thinking_switch import as_plain_text

_MOST_ROWS = 4096
"""Rows that are looked at."""
_MOST_BEFORE = 32
_IGNORED = -100
"""Label of a token that is not trained."""
_COMPARED = "chosen against rejected"
_TRIAL = [{"role": "user", "content": "What is 2 + 2?"}]


class IdsToText:
    """Token ids as plain text that has these very tokens.

    Args:
        tokenizer: of the model; copied, never changed.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = copy.deepcopy(tokenizer)
        self._encoder = PairEncoder(self.tokenizer, max_suffix_tokens=1)

    def prompt(self, ids: list[int]) -> str:
        """The prompt with these tokens.

        Raises:
            SparksError: no text has them.
        """
        text = as_plain_text(self._encoder, self.tokenizer, decode(self.tokenizer, ids))
        if self._encoder.prompt_ids(text) != ids:
            raise SparksError("its text has other tokens than its row")
        return text

    def probe(self, pair: TokenPair) -> Probe:
        """The probe that becomes this pair.

        Raises:
            SparksError: no text does.
        """
        clean, corrupted = (
            text_after(self.tokenizer, pair.prefix, part) for part in (pair.clean, pair.corrupted)
        )
        probe = Probe(self.prompt(pair.prefix), clean, corrupted)
        encoder = PairEncoder(self.tokenizer, max_suffix_tokens=len(pair.clean))
        with suppress(SparksError):
            if encoder.pair(probe.prompt, clean, corrupted) == pair:
                return probe
        raise SparksError("no text has its tokens: give the probe as text")


class TrainingData:
    """The rows of a trainer as problems.

    Args:
        dataset: map-style or iterable; it is left as found.
        tokenizer: of the model; copied, never changed.
        length: tokens kept of an answer.
        seed: of the draw.
        answer_key: column of the reference answer, where it has no usual name.

    Raises:
        SparksError: there is no row, or none of its columns is known.
    """

    def __init__(
        self,
        dataset: Any,
        tokenizer: Any,
        *,
        length: int,
        seed: int = 0,
        answer_key: str | None = None,
    ) -> None:
        self._texts = IdsToText(tokenizer)
        self._length, self._answer_key = length, answer_key
        self._rows = _rows(dataset, seed)
        place, first = next(self._rows, ("", None))
        if not isinstance(first, Mapping):
            raise SparksError(
                "the training data are empty" if first is None
                else f"the rows of the training data are {type(first).__name__}, no dictionaries"
            )  # fmt: skip
        self._rows = itertools.chain([(place, first)], self._rows)
        self.columns = tuple(map(str, first))
        self.skipped: list[str] = []
        """A line for each row that gave no problem."""
        if answer_key is not None and answer_key not in first:
            raise SparksError(
                f"reference must be a column of the training data ({', '.join(self.columns)}), got "
                f"{answer_key!r}"
            )
        self.words, self._read = self._form(place, first)

    words: str
    """What stands against what; empty where the rows hold prompts alone."""

    @property
    def is_compared(self) -> bool:
        """The rows hold both answers."""
        return self.words == _COMPARED

    def _form(
        self, place: str, first: Mapping[str, Any]
    ) -> tuple[str, Callable[[], Iterator[Problem]]]:
        written = "what the model writes"
        if "completion_ids" in first:
            return f"desirable against undesirable, or {written}", self._judged
        if "prompt_ids" in first:
            return _COMPARED, self._compared
        if "input_ids" in first:
            return f"the supervised part against {written}", self._supervised
        if not any(first.get(key) for key in PROMPT_KEYS):
            if "text" in first:
                return f"the supervised part against {written}", self._supervised
            raise SparksError(
                f"the rows of the training data have {', '.join(self.columns) or 'no columns'}, of "
                f"which none is a prompt"
            )
        problem = self._problem_of(place, first)
        if problem.rejected is not None:
            return _COMPARED, self._asked
        if problem.answer is None:
            return "", self._asked
        named = next((key for key in (self._answer_key, *ANSWER_KEYS) if key in first), "answer")
        return f"{named} against {written}", self._asked

    def problems(self) -> Iterator[Problem]:
        """One for each row that has a prompt of its own, and a line in `skipped` for the others.

        Raises:
            SparksError: a row breaks a rule (names it).
        """
        seen = set[str]()
        for problem in self._read():
            if (prompt := repr(problem.prompt)) in seen:
                self.skipped.append(f"{problem.place}: a prompt that another row has, too")
            else:
                seen.add(prompt)
                yield problem

    def _asked(self) -> Iterator[Problem]:
        return (self._problem_of(place, row) for place, row in self._rows)

    def _problem_of(self, place: str, row: Any) -> Problem:
        try:
            return problem_of(place, row, answer_key=self._answer_key)
        except SparksError as error:
            raise SparksError(f"{place}: {error}") from error

    # -- tokenised rows ----------------------------------------------------------------------

    def _compared(self) -> Iterator[Problem]:
        for place, row in self._rows:
            names = ("prompt_ids", "chosen_ids", "rejected_ids")
            if missing := [name for name in names if name not in row]:
                raise SparksError(f"{place}: no {missing[0]}, it has {', '.join(map(str, row))}")
            yield from self._problem(place, *(_ids(row[name]) for name in names))

    def _judged(self) -> Iterator[Problem]:
        """Both kinds of answers to a prompt where both are met; else the desirable one alone."""
        waiting: dict[tuple[int, ...], tuple[str, dict[bool, list[int]]]] = {}
        for place, row in self._rows:
            prompt = _ids(row["prompt_ids"])
            _, answers = waiting.setdefault(tuple(prompt), (place, {}))
            is_new = len(answers) < 2
            answers.setdefault(bool(row["label"]), _ids(row["completion_ids"]))
            if is_new and len(answers) == 2:
                yield from self._problem(place, prompt, answers[True], answers[False])
        for prompt_ids, (place, answers) in waiting.items():
            if list(answers) == [True]:
                yield from self._problem(place, list(prompt_ids), answers[True])

    def _supervised(self) -> Iterator[Problem]:
        opening = _opening(self._texts.tokenizer)
        for place, row in self._rows:
            ids = _ids(row["input_ids"]) if "input_ids" in row else self._ids_of(row["text"])
            labels = _ids(row["labels"]) if row.get("labels") is not None else ids
            trained = [label != _IGNORED for label in labels]
            for start, end in _parts(row.get("seq_lengths"), len(ids)):
                span = _answer(ids[start:end], trained[start:end], opening)
                if span is None:
                    self.skipped.append(f"{place}: no supervised part behind a prompt")
                else:
                    first, last = (start + at for at in span)
                    yield from self._problem(place, ids[start:first], ids[first:last])

    def _ids_of(self, text: str) -> list[int]:
        return list(self._texts.tokenizer(text)["input_ids"])

    def _problem(
        self,
        place: str,
        prompt: list[int],
        answer: Sequence[int],
        rejected: Sequence[int] | None = None,
    ) -> Iterator[Problem]:
        """The problem with these tokens; none, and a line in `skipped`, where no text has them."""
        try:
            text = self._texts.prompt(prompt)
        except SparksError as error:
            self.skipped.append(f"{place}: {error}")
            return
        yield Problem(
            place,
            text,
            self._behind(prompt, answer),
            rejected=None if rejected is None else self._behind(prompt, rejected),
        )

    def _behind(self, prompt: list[int], ids: Sequence[int]) -> str:
        return text_after(self._texts.tokenizer, prompt, list(ids[: self._length]))


def _rows(dataset: Any, seed: int) -> Iterator[tuple[str, Any]]:
    """(place, row): of a map-style data set at random, of another in order."""
    streamed = any(base.__name__ == "IterableDataset" for base in type(dataset).__mro__)
    if hasattr(dataset, "__len__") and not streamed:
        count = len(dataset)
        drawn: Iterable[int] = random.Random(seed).sample(range(count), min(count, _MOST_ROWS))
        found: Iterable[tuple[int, Any]] = ((number, dataset[number]) for number in drawn)
    else:
        # A streamed data set knows where it stands: that of the trainer must not move.
        found = enumerate(itertools.islice(copy.deepcopy(dataset), _MOST_ROWS))
    return ((f"row {number + 1} of the training data", row) for number, row in found)


def _ids(values: Any) -> list[int]:
    """Of a list, an array or a tensor."""
    return [int(value) for value in values]


def _opening(tokenizer: Any) -> list[int]:
    """Tokens that the chat template opens an answer with; none without one."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    with suppress(Exception):  # a template is a program of its own and raises what it likes
        without, opened = (
            tokenizer.apply_chat_template(_TRIAL, add_generation_prompt=add, tokenize=False)
            for add in (False, True)
        )
        if opened.startswith(without):
            return list(tokenizer(opened[len(without) :], add_special_tokens=False)["input_ids"])
    return []


def _parts(lengths: Any, total: int) -> list[tuple[int, int]]:
    """Start and end of each text in a row."""
    ends = list(itertools.accumulate(_ids(lengths))) if lengths is not None else [total]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _answer(
    ids: Sequence[int], trained: Sequence[bool], opening: Sequence[int]
) -> tuple[int, int] | None:
    """Where the answer begins and ends; None where nothing is trained behind a prompt.

    A first token that is not trained is no prompt: the model predicts nothing there.
    """
    begins = (at for at in range(2, len(ids)) if trained[at] and not trained[at - 1])
    if not any(trained[1:]):
        return None
    if not trained[1] and (start := next(begins, None)) is not None:
        end = next((at for at in range(start, len(ids)) if not trained[at]), len(ids))
        return start, end
    width = len(opening)
    for start in range(width, len(ids)) if width else ():
        if list(ids[start - width : start]) == list(opening):
            return start, len(ids)
    return min(len(ids) // 2, _MOST_BEFORE), len(ids)
