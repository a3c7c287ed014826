"""Texts that the mean of a mean ablation is taken over, as token ids. No torch.

A file of probes gives its prompts with their clean beginnings; a file of problems, or a hub data
set, gives prompts with their answers.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from sparks.ground.errors import SparksError
from sparks.ground.files import read_jsonl
from sparks.probes.pairs import PairEncoder
from sparks.probes.probes import ProbeSet
from sparks.probes.problems import read_problems


def reference_rows(
    data: str, tokenizer: Any, *, count: int = 64, max_tokens: int | None = None
) -> list[list[int]]:
    """Token ids of the first `count` texts, cut to `max_tokens`.

    Args:
        data: a JSONL file of probes or problems, or a hub data set of problems.
        tokenizer: a Hugging Face tokenizer; it is copied, never changed.
        count: texts to take.
        max_tokens: longest text, tokens; None cuts nothing.

    Raises:
        SparksError: the file cannot be read, is empty, or a record breaks a rule.
    """
    encoder = PairEncoder(tokenizer, max_suffix_tokens=1)
    texts = (
        ((probe.prompt, probe.clean) for probe in ProbeSet.load(data))
        if _holds_probes(data)
        else ((problem.prompt, problem.answer or "") for problem in read_problems(data))
    )
    rows = []
    for prompt, answer in islice(texts, count):
        if not isinstance(prompt, str) and not encoder.has_chat_template:
            raise SparksError(
                f"{data} has chat messages, but the tokenizer has no chat template: give texts "
                f"under the key `prompt`"
            )
        rows.append(encoder.prompt_ids(prompt, answer)[:max_tokens])
    if not rows:
        raise SparksError(f"{data}: no texts to take a mean over")
    return rows


def _holds_probes(data: str) -> bool:
    if not Path(data).exists():
        return False
    _, first = next(iter(read_jsonl(data, what="reference texts")), ("", None))
    return isinstance(first, dict) and {"clean", "corrupted"} <= set(first)
