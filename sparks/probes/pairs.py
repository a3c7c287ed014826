"""Token pairs: what the attribution reads, and how text becomes one. No torch.

The prompt and each continuation are joined AS TEXT and tokenised together, so that tokens merge
over the seam as in real use. What prompt, prompt + clean and prompt + corrupted share from the
left (never more than the prompt) is the prefix; both rests are cut to the shorter one and to
`max_suffix_tokens`.

Source: "Thinking Sparks!", https://arxiv.org/abs/2509.25758: same problem, two beginnings of an
answer, equally many tokens.
"""

from __future__ import annotations

import copy
import hashlib
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparks.ground.config import at_least, check_value
from sparks.ground.errors import SparksError, reason

Message = dict[str, str]
"""`{"role": ..., "content": ...}`."""

_THINK = "<think>"


@dataclass(frozen=True)
class TokenPair:
    """Token ids of one probe: what both prompts share, then a clean and a corrupted continuation.

    Raises:
        SparksError: the continuations differ in length, are empty or equal, or an id is no whole
            number of at least 0.
    """

    prefix: list[int]
    """Tokens that both prompts share; may be empty."""
    clean: list[int]
    corrupted: list[int]
    """As many tokens as `clean`, at least one."""

    def __post_init__(self) -> None:
        for name in ("prefix", "clean", "corrupted"):
            object.__setattr__(self, name, _token_ids(name, getattr(self, name)))
        if len(self.clean) != len(self.corrupted):
            raise SparksError(
                f"clean and corrupted must have the same number of tokens, got {len(self.clean)} "
                f"and {len(self.corrupted)}: cut both to the shorter one"
            )
        if not self.clean:
            raise SparksError("clean and corrupted must hold at least one token, got none")
        if self.clean == self.corrupted:
            raise SparksError(
                f"clean and corrupted must differ, both are {self.clean}: equal continuations "
                f"leave nothing to attribute"
            )

    def __len__(self) -> int:
        """Tokens of either prompt: prefix and one continuation."""
        return len(self.prefix) + len(self.clean)


@dataclass(frozen=True)
class TokenizedProbes:
    """Token pairs of a probe set, as the attribution reads them."""

    pairs: tuple[TokenPair, ...]
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    """Group of every probe; `""` where none was given."""
    hash: str = ""
    """sha256 (hex) of token ids, ids and groups; computed where it is not given."""

    def __post_init__(self) -> None:
        if not len(self.pairs) == len(self.ids) == len(self.groups):
            raise SparksError(
                f"pairs, ids and groups must be equally many, got {len(self.pairs)}, "
                f"{len(self.ids)} and {len(self.groups)}"
            )
        if not self.hash:
            tokens = [[pair.prefix, pair.clean, pair.corrupted] for pair in self.pairs]
            object.__setattr__(self, "hash", _sha256([tokens, self.ids, self.groups]))

    def __len__(self) -> int:
        return len(self.pairs)

    def swapped(self) -> TokenizedProbes:
        """The same probes with clean and corrupted exchanged, under the SAME hash.

        The hash names the set that was measured; a snapshot records beside it which way round
        (`SnapshotMeta.roles_swapped`), so both stand on one timeline.
        """
        pairs = tuple(TokenPair(pair.prefix, pair.corrupted, pair.clean) for pair in self.pairs)
        return replace(self, pairs=pairs)


class PairEncoder:
    """Turns probes into token pairs, on a copy of a tokenizer.

    A plain call resets the padding and truncation of a fast tokenizer, and a trainer would write
    that into its next checkpoint: hence the copy.
    """

    def __init__(
        self, tokenizer: Any, *, max_suffix_tokens: int, max_context: int | None = None
    ) -> None:
        check_value("max_suffix_tokens", max_suffix_tokens, int, at_least(1))
        self._tokenizer = copy.deepcopy(tokenizer)
        self._max_suffix_tokens = max_suffix_tokens
        self._max_context = max_context

    @property
    def has_chat_template(self) -> bool:
        """The tokenizer can render chat messages."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    def prompt_text(self, prompt: str | Sequence[Message]) -> str:
        """The prompt as the model reads it: chat messages rendered, with the generation prompt.

        Raises:
            SparksError: the chat template refuses the messages.
        """
        if isinstance(prompt, str):
            return prompt
        try:
            return self._tokenizer.apply_chat_template(
                list(prompt), add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template is a program of its own and raises what it likes
            raise SparksError(f"the chat template refuses its prompt: {reason(error)}") from error

    def prompt_ids(self, prompt: str | Sequence[Message], answer: str = "") -> list[int]:
        """Token ids of the prompt, with the beginning of an answer behind it where one is given.

        Raises:
            SparksError: the chat template refuses the messages.
        """
        return self._ids(self.prompt_text(prompt) + answer, isinstance(prompt, str))

    def pair(self, prompt: str | Sequence[Message], clean: str, corrupted: str) -> TokenPair:
        """Token ids of a prompt and two beginnings of its answer.

        A beginning that repeats the `<think>` which the prompt ends with loses it.

        Raises:
            SparksError: the pair is empty, equal or too long, or the template refuses the prompt.
        """
        text = self.prompt_text(prompt)
        opened = opened_thinking(text)
        first, second = _unrepeated(opened, clean), _unrepeated(opened, corrupted)
        if not first or not second:
            raise SparksError(f"{'corrupted' if first else 'clean'} is empty")
        # A chat template writes the special tokens that it wants itself.
        special = isinstance(prompt, str)
        start, one, other = (self._ids(text + part, special) for part in ("", first, second))
        shared = _shared_length(start, one, other)
        length = min(len(one) - shared, len(other) - shared, self._max_suffix_tokens)
        end = shared + length
        if length < 1:
            raise SparksError("clean or corrupted is empty in tokens")
        if one[:end] == other[:end]:
            raise SparksError(f"clean and corrupted are equal in their first {length} tokens")
        if self._max_context is not None and end > self._max_context:
            raise SparksError(f"{end} tokens long, the model's context holds {self._max_context}")
        return TokenPair(one[:shared], one[shared:end], other[shared:end])

    def _ids(self, text: str, special: bool) -> list[int]:
        plain = self._encode(text, special=False)
        if not special:
            return plain
        # Keep what the tokenizer puts in front (<s>), drop what it appends (</s>): more follows.
        full = self._encode(text, special=True)
        for start in range(len(full) - len(plain) + 1) if plain else ():
            if full[start : start + len(plain)] == plain:
                return full[: start + len(plain)]
        return full

    def _encode(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def opened_thinking(prompt: str) -> str:
    """The `<think>` with the white space after it that a prompt ends with; `""` if it does not."""
    bare = prompt.rstrip()
    return prompt[len(bare) - len(_THINK) :] if bare.endswith(_THINK) else ""


def _unrepeated(opened: str, beginning: str) -> str:
    """`beginning` without the `<think>` and the white space that the prompt already gives."""
    body = beginning.lstrip()
    if not opened or not body.startswith(_THINK):
        return beginning
    body = body[len(_THINK) :]
    return body[_shared_length(opened[len(_THINK) :], body) :]


def _shared_length(*sequences: Sequence[object]) -> int:
    length = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def _token_ids(name: str, values: Any) -> list[int]:
    try:
        ids = [-1 if isinstance(value, bool) else operator.index(value) for value in values]
    except TypeError as error:
        raise SparksError(f"{name} must be a list of whole numbers, got {values!r}") from error
    if min(ids, default=0) < 0:
        raise SparksError(f"{name} must hold token ids of at least 0, got {values!r}")
    return ids


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


def check_pair(pair: TokenPair, name: str, *, vocab_size: int, max_positions: int | None) -> None:
    """Check that a model can read `pair`.

    Args:
        pair: what it is given.
        name: which one it is, for the message.
        vocab_size: of the model.
        max_positions: longest sequence of the model, tokens; None where it does not say.

    Raises:
        SparksError: a token outside the vocabulary, or more tokens than the model's context.
    """
    if not isinstance(pair, TokenPair):
        raise SparksError(f"{name}: must be a TokenPair, got {type(pair).__name__}")
    ids = [*pair.prefix, *pair.clean, *pair.corrupted]
    if max(ids) >= vocab_size:
        raise SparksError(
            f"{name}: token ids must be 0..{vocab_size - 1}, found {max(ids)}: were the probes "
            f"tokenised for another model?"
        )
    if max_positions is not None and len(pair) > max_positions:
        raise SparksError(
            f"{name}: {len(pair)} tokens, more than the model's context of {max_positions}: "
            f"shorten its prompt"
        )
