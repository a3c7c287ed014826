"""Attention heads by name: `L5H1` is head 1 of layer 5, both counted from 0. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sparks.ground.errors import SparksError

Head = tuple[int, int]
"""Layer and head."""

_NAME = re.compile(r"L(\d+)H(\d+)\Z", re.IGNORECASE)


def head_name(head: Head) -> str:
    """Such as `L5H1`."""
    return f"L{head[0]}H{head[1]}"


def names(heads: Iterable[Head]) -> str:
    """Such as `L5H1,L7H2`: what `parse_heads` reads."""
    return ",".join(map(head_name, heads))


def is_head_list(text: str) -> bool:
    """Whether the first word of `text` looks like the name of a head."""
    words = re.split(r"[,\s]+", text.strip())
    return bool(re.match(r"L\d", words[0], re.IGNORECASE))


def parse_heads(text: str) -> tuple[Head, ...]:
    """The heads in `L5H1,L7H2`; commas or blanks stand between them.

    Raises:
        SparksError: it is no text, there is none, or a word is no name of a head.
    """
    if not isinstance(text, str):
        raise SparksError(
            f"parse_heads reads text such as 'L5H1,L7H2', got {text!r}: pairs of layer and head "
            f"are heads already"
        )
    words = [word for word in re.split(r"[,\s]+", text) if word]
    found = []
    for word in words:
        match = _NAME.match(word)
        if match is None:
            raise SparksError(
                f"{word!r} is no attention head: write layer and head as in L5H1,L7H2, both "
                f"counted from 0"
            )
        found.append((int(match[1]), int(match[2])))
    return check_heads(found)


def check_heads(
    heads: Iterable[Sequence[int]], *, num_layers: int | None = None, num_heads: int | None = None
) -> tuple[Head, ...]:
    """The heads, each once, in order of layer and head.

    Args:
        heads: pairs of layer and head.
        num_layers: of the model; None checks nothing.
        num_heads: attention heads of a layer; None checks nothing.

    Raises:
        SparksError: there is none, one is no pair of whole numbers, or the model does not have it.
    """
    found = {_pair(head) for head in heads}
    if not found:
        raise SparksError("no heads: name at least one, as in L5H1,L7H2")
    for layer, head in sorted(found):
        if (num_layers is not None and layer >= num_layers) or (
            num_heads is not None and head >= num_heads
        ):
            raise SparksError(
                f"no head {head_name((layer, head))}: the model has layers 0..{num_layers - 1} "  # type: ignore[operator]
                f"and heads 0..{num_heads - 1}"  # type: ignore[operator]
            )
    return tuple(sorted(found))


def _pair(head: Sequence[int]) -> Head:
    try:
        layer, index = (int(number) for number in head)
    except (TypeError, ValueError) as error:
        raise SparksError(
            f"a head must be a pair of layer and head, got {head!r}: as in (5, 1)"
        ) from error
    if min(layer, index) < 0:
        raise SparksError(f"layer and head count from 0, got {(layer, index)}")
    return layer, index
