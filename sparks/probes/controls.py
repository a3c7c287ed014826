"""Control probes: plain recall and copying, which post-training for reasoning need not change.

1. Recall: "The capital of France is" against "The capital of Italy is", from the tables below.
   Copying: the beginning of a list that the prompt asks to repeat against that of another list.
2. Both beginnings have the same number of tokens, uncut, and end just before the word that is
   recalled or copied: L compares what the model predicts there.
3. The model is asked: those come first whose likeliest next token it gets right after clean, and
   does not write after corrupted as well. Where they do not suffice, others follow, those of the
   largest L first; below `LEAST_LOSS` there is nothing to attribute.

Deterministic by seed and model. No data, no hub, no torch: the model is a `Reader`.

Source: "Thinking Sparks!", https://arxiv.org/abs/2509.25758, whose control circuit is TriviaQA;
copying as in the repeated sequences of Olsson et al. 2022, https://arxiv.org/abs/2209.11895.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from sparks.ground.config import LEAST_LOSS, ControlKind
from sparks.ground.errors import SparksError
from sparks.probes.pairs import Message, PairEncoder, TokenPair
from sparks.probes.probes import CONTROL_GROUP, Probe

_ROUNDS = 5
_TRIES = 2000  # candidates whose tokens are looked at: with some tokenizers none fits
_LIST_LENGTH = 6
_COPIED = (2, 3, 1)
"""Words of the list that a beginning already holds, in turn."""

FACTS: dict[str, dict[str, str]] = {
    "The capital of {} is": {
        "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo",
        "Russia": "Moscow", "Germany": "Berlin", "Greece": "Athens", "England": "London",
        "China": "Beijing", "Portugal": "Lisbon", "Ireland": "Dublin", "Norway": "Oslo",
        "Sweden": "Stockholm", "Austria": "Vienna", "Poland": "Warsaw", "Canada": "Ottawa",
        "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Iran": "Tehran", "Iraq": "Baghdad",
        "Turkey": "Ankara", "Hungary": "Budapest", "Belgium": "Brussels", "Denmark": "Copenhagen",
    },
    "The opposite of {} is": {
        "hot": "cold", "big": "small", "old": "new", "left": "right", "day": "night", "up": "down",
        "good": "bad", "fast": "slow", "rich": "poor", "open": "closed", "true": "false",
        "black": "white", "high": "low", "strong": "weak", "long": "short", "light": "dark",
        "happy": "sad", "early": "late", "full": "empty", "hard": "soft", "wet": "dry",
        "east": "west", "north": "south", "first": "last", "war": "peace", "love": "hate",
    },
    "The plural of {} is": {
        "child": "children", "foot": "feet", "man": "men", "woman": "women", "mouse": "mice",
        "tooth": "teeth", "goose": "geese", "dog": "dogs", "cat": "cats", "house": "houses",
        "tree": "trees", "city": "cities", "leaf": "leaves", "wolf": "wolves", "knife": "knives",
        "box": "boxes", "baby": "babies", "book": "books", "bird": "birds", "car": "cars",
    },
    "After {} comes": {
        "Monday": "Tuesday", "Tuesday": "Wednesday", "Wednesday": "Thursday", "Thursday": "Friday",
        "Friday": "Saturday", "Saturday": "Sunday", "January": "February", "March": "April",
        "April": "May", "May": "June", "June": "July", "July": "August", "August": "September",
        "September": "October", "October": "November", "November": "December",
    },
}  # fmt: skip
"""Beginning of a sentence -> what stands in it -> the word that completes it."""

WORDS = [
    "river", "stone", "cloud", "horse", "lamp", "glass", "king", "tree", "boat", "salt", "milk",
    "field", "music", "paper", "road", "hand", "fish", "ship", "corn", "wolf", "door", "rain",
    "gold", "neck", "moon", "bread", "sand", "cow", "wind", "fire", "leaf", "bird", "ring",
    "bell", "snow", "wood", "hill", "box", "key", "hat", "egg", "map", "ball", "cup", "rope",
    "wool", "seed", "tail", "nest", "pond",
]  # fmt: skip
"""Words of the lists to copy: short, each one token in most vocabularies."""


@dataclass(frozen=True)
class Reading:
    """What a model makes of a token pair."""

    loss: float
    """L, nats: KL(clean || corrupted) of the next-token distributions behind the pair."""
    clean_next: int
    """Likeliest token behind the clean continuation."""
    corrupted_next: int


class Reader(Protocol):
    """A model that control probes are made for."""

    encoder: PairEncoder

    def readings(self, pairs: Sequence[TokenPair]) -> list[Reading]:
        """What it predicts behind each pair."""
        ...


@dataclass(frozen=True)
class Controls:
    """Control probes, those first whose next word the model gets right."""

    probes: tuple[Probe, ...]
    right: int
    """Probes whose next word the model gets right."""


@dataclass(frozen=True)
class _Candidate:
    """A probe in parts, before it is known whether its tokens fit."""

    prompt: str
    shared: str
    """What both beginnings open with."""
    clean: str
    corrupted: str
    answer: str
    """The word that comes behind clean."""

    def probe(self, *, chat: bool, system_prompt: str | None) -> Probe:
        """With text prompts `shared` is the prompt's: some tokenizers make it long."""
        if not chat:
            prompt = f"{self.prompt}\n{self.shared}"
            return Probe(prompt, self.clean, self.corrupted, group=CONTROL_GROUP)
        system: list[Message] = (
            [{"role": "system", "content": system_prompt}] if system_prompt else []
        )
        messages = [*system, {"role": "user", "content": self.prompt}]
        clean, corrupted = ((self.shared + text).lstrip() for text in (self.clean, self.corrupted))
        return Probe(messages, clean, corrupted, group=CONTROL_GROUP)


def control_probes(
    model: Reader,
    count: int,
    *,
    kind: ControlKind = "both",
    seed: int = 0,
    max_suffix_tokens: int,
    system_prompt: str | None = None,
) -> Controls:
    """`count` control probes for a model, as chat messages where it has a chat template.

    Args:
        model: gives the tokens, and what is predicted behind them.
        count: how many, half of them of each kind if `kind` is `both`.
        kind: copying, recall or both.
        seed: of the drawing.
        max_suffix_tokens: pairs fit in uncut.
        system_prompt: system message of chat prompts.

    Raises:
        SparksError: too few fit the tokenizer and have an L of at least `LEAST_LOSS`.
    """
    choices: list[_Choice] = []
    for name, drawn in (("copying", _copying), ("recall", _recall)):
        if kind in (name, "both"):
            choices.append(_Choice(model, max_suffix_tokens, system_prompt))
            choices[-1].draw(drawn(seed), count)
    turns = itertools.zip_longest(*(choice.right for choice in choices))
    found = [probe for turn in turns for probe in turn if probe is not None][:count]
    right = len(found)
    rest = sorted((item for choice in choices for item in choice.rest), key=lambda item: -item[0])
    found += [probe for _, probe in rest[: count - right]]
    if len(found) < count:
        raise SparksError(
            f"only {len(found)} of {count} control probes of kind {kind} fit the model: the others "
            f"do not fit into {max_suffix_tokens} of its tokens, or it predicts the same behind "
            f"both beginnings; ask for fewer, or give your own with control_probes"
        )
    numbered = (replace(probe, id=f"control-{n}") for n, probe in enumerate(found, start=1))
    return Controls(tuple(numbered), right)


class _Choice:
    """Candidates that a model was asked about: those it gets right, and the others with their L."""

    def __init__(self, model: Reader, max_suffix_tokens: int, system_prompt: str | None) -> None:
        self.right: list[Probe] = []
        self.rest: list[tuple[float, Probe]] = []
        self._seen: set[tuple[str, str]] = set()
        self._model = model
        self._max_suffix_tokens = max_suffix_tokens
        self._system_prompt = system_prompt

    def draw(self, candidates: Iterator[_Candidate], count: int) -> None:
        """Ask about `count` candidates at a time until so many are right, or `_ROUNDS` are over."""
        tried = itertools.islice(candidates, _TRIES)
        fitting = (fit for item in tried if (fit := self._fit(item)) is not None)
        for _ in range(_ROUNDS):
            batch = list(itertools.islice(fitting, count))
            if not batch or len(self.right) >= count:
                return
            readings = self._model.readings([pair for _, pair, _ in batch])
            for (probe, _, answer), reading in zip(batch, readings, strict=True):
                self._judge(probe, answer, reading)

    def _judge(self, probe: Probe, answer: int | None, reading: Reading) -> None:
        if not reading.loss >= LEAST_LOSS:  # a loss that is no number, too
            return
        if reading.clean_next == answer != reading.corrupted_next:
            self.right.append(probe)
        else:
            self.rest.append((reading.loss, probe))

    def _fit(self, candidate: _Candidate) -> tuple[Probe, TokenPair, int | None] | None:
        """Probe, tokens and the token that is right behind clean; None where tokens do not fit."""
        if (candidate.shared, candidate.clean) in self._seen:
            return None
        encoder = self._model.encoder
        probe = candidate.probe(chat=encoder.has_chat_template, system_prompt=self._system_prompt)
        clean, corrupted, answered = (
            encoder.prompt_ids(probe.prompt, text)
            for text in (probe.clean, probe.corrupted, probe.clean + candidate.answer)
        )
        if len(clean) != len(corrupted):
            return None
        try:
            pair = encoder.pair(probe.prompt, probe.clean, probe.corrupted)
        except SparksError:
            return None
        if len(pair) != len(clean):  # cut: the word behind it would be another
            return None
        self._seen.add((candidate.shared, candidate.clean))
        # Where the word merges with what stands before it, no single token is right.
        joined = len(answered) > len(clean) and answered[: len(clean)] == clean
        return probe, pair, answered[len(clean)] if joined else None


# -- candidates --------------------------------------------------------------------------------


def _recall(seed: int) -> Iterator[_Candidate]:
    """Every fact against others of its table, the tables in turn."""
    rng = random.Random(f"recall {seed}")
    tables = [_facts(rng, sentence, table) for sentence, table in FACTS.items()]
    for turn in itertools.zip_longest(*tables):
        yield from (item for item in turn if item is not None)


def _facts(rng: random.Random, sentence: str, table: dict[str, str]) -> Iterator[_Candidate]:
    before, after = sentence.split("{}")
    cues = rng.sample(list(table), len(table))
    for shift in range(1, len(cues)):  # each round gives every cue another partner
        for place, cue in enumerate(cues):
            other = cues[(place + shift) % len(cues)]
            clean, corrupted = (f"{' ' if before else ''}{word}{after}" for word in (cue, other))
            yield _Candidate(
                prompt="Complete the sentence.",
                shared=before.rstrip(),
                clean=clean,
                corrupted=corrupted,
                answer=f" {table[cue]}",
            )


def _copying(seed: int) -> Iterator[_Candidate]:
    """Random lists against others, without end."""
    rng = random.Random(f"copying {seed}")
    for number in itertools.count():
        copied = _COPIED[number % len(_COPIED)]
        drawn = rng.sample(WORDS, _LIST_LENGTH + copied)
        words, others = drawn[:_LIST_LENGTH], drawn[_LIST_LENGTH:]
        yield _Candidate(
            prompt=f"Repeat this list: {', '.join(words)}.",
            shared="",
            clean=", ".join(words[:copied]) + ",",
            corrupted=", ".join(others) + ",",
            answer=f" {words[copied]}",
        )
