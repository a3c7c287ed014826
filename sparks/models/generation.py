"""Batched sampling with transformers' `generate`: what probe building and evaluation share.

1. Rows of token ids are padded on the left, under a mask, so that each row is continued as alone.
2. The settings are ours alone: while it samples, they stand in place of the model's own generation
   config, from which transformers would fill in what is not set (top-k, penalties); afterwards the
   model has its own again. Keys and values are cached, whatever `config.use_cache` says.
3. A draw is named by a text; the global random states are left as found.

Torch and transformers are imported only while sampling.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Continuation:
    """What was sampled behind a row."""

    ids: list[int]
    """Tokens, without the one that ended them."""
    ended: bool
    """A stop token ended it, not `max_new_tokens`."""


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer, by the model's generation config and the tokenizer."""
    known = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    stops = set(known if isinstance(known, list) else [known]) | {tokenizer.eos_token_id}
    return sorted(stops - {None})


def generation_settings(
    stops: Sequence[int],
    *,
    max_new_tokens: int,
    greedy: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
) -> Any:
    """A `GenerationConfig` that leaves nothing to the model's own.

    Args:
        stops: tokens that end an answer.
        max_new_tokens: an answer is cut after so many.
        greedy: the likeliest token; the rest says nothing then.
        temperature: of the sampling.
        top_p: nucleus.
        top_k: sample among so many tokens; None takes all.
    """
    from transformers import GenerationConfig

    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k or 0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stops) or None,
        pad_token_id=next(iter(stops), 0),  # masked, any known id does
        use_cache=True,
        do_sample=not greedy,
        **({} if greedy else sampling),
    )


def continuations(
    model: Any, rows: Sequence[Sequence[int]], settings: Any, seed: str
) -> list[Continuation]:
    """What the model writes behind each row.

    Args:
        model: a Hugging Face causal language model; PEFT around it counts.
        rows: token ids, at least one each.
        settings: of `generation_settings`.
        seed: names the random draw.

    Raises:
        RuntimeError: as torch does: no memory, no number in the logits.
    """
    import torch

    from sparks.models.anatomy import own_settings

    if not rows:
        return []
    device = model.get_input_embeddings().weight.device
    width = max(map(len, rows))
    pad = settings.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), _own_settings(model, settings):
        torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7]))
        output = model.generate(input_ids=ids, attention_mask=mask, **own_settings(model))
    stops = settings.eos_token_id or []
    return [until_stop(answer, stops) for answer in output[:, width:].tolist()]


def until_stop(ids: list[int], stops: Sequence[int]) -> Continuation:
    """Tokens up to the first stop token."""
    kept = list(itertools.takewhile(lambda token: token not in stops, ids))
    return Continuation(kept, ended=len(kept) < len(ids))


@contextmanager
def _own_settings(model: Any, settings: Any) -> Iterator[None]:
    """`settings` in place of the model's generation config, also of the model inside PEFT."""
    found = [model, getattr(model, "get_base_model", lambda: model)()]
    before = [(item, item.generation_config) for item in found]
    try:
        for item in found:
            item.generation_config = settings
        yield
    finally:
        for item, own in before:
            item.generation_config = own


def is_out_of_memory(error: RuntimeError) -> bool:
    """Torch says that there is no memory left, on a GPU or a CPU."""
    import torch

    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in text for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def text_after(tokenizer: Any, prompt: list[int], answer: list[int]) -> str:
    """Text of answer tokens as it stands behind the prompt, without half a character at its end."""
    before, whole = decode(tokenizer, prompt), decode(tokenizer, prompt + answer)
    # Some tokenizers drop the space that opens a text: hence the difference of two.
    text = whole[len(before) :] if whole.startswith(before) else decode(tokenizer, answer)
    return text.rstrip("\ufffd")


def decode(tokenizer: Any, ids: list[int]) -> str:
    """Text of token ids, special tokens too, as it is."""
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)
