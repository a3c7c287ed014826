"""What heads give on average over a reference set: the values of a mean ablation.

1. Reference texts become rows of token ids: a file of probes gives its prompts with their clean
   beginnings; a file of problems, or a hub data set, gives prompts with their answers.
2. The rows of token ids are run through the model, padded on the right.
3. The input of each `o_proj` holds what the layer's heads computed, side by side; it is summed over
   all positions of all rows, and where asked for each position by itself.

A position that no row reaches takes the mean over all positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from sparks.ground.errors import SparksError, reason
from sparks.ground.files import read_jsonl
from sparks.models.anatomy import Anatomy
from sparks.models.anatomy_proof import take_apart
from sparks.models.guard import undisturbed
from sparks.models.hooks import hooks, on_input
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


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadMeans:
    """Mean outputs of all heads before `o_proj`, float32, on the CPU."""

    overall: Float[Tensor, "layers heads head_dim"]
    """Over all positions of all rows."""
    by_position: Float[Tensor, "pos layers heads head_dim"] | None = None
    """Over all rows, for each position counted from the first token; None where not asked for."""
    num_rows: int
    num_tokens: int


def measure_head_means(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    *,
    by_position: bool = False,
    batch_size: int = 8,
    progress: bool = False,
) -> HeadMeans:
    """The heads' mean outputs over rows of token ids. The model is left as found.

    Args:
        model: a Hugging Face causal language model; PEFT around it counts.
        rows: token ids of the reference texts.
        by_position: keep the mean of each position too.
        batch_size: rows at a time.
        progress: show a bar.

    Raises:
        SparksError: no rows, an empty one, a token or a length that the model does not take, an
            unknown architecture, no memory, or means that are not finite.
    """
    with undisturbed(model), torch.no_grad():
        anatomy = take_apart(model)
        _check(rows, anatomy)
        graph, width = anatomy.graph, max(map(len, rows))
        shape = (width, graph.num_layers, graph.num_heads, anatomy.layers[0].query.head_dim)
        sums = torch.zeros(shape, dtype=torch.float64)
        counts = torch.zeros(width, dtype=torch.float64)
        for start in tqdm(
            range(0, len(rows), batch_size), desc="means", unit="batch", disable=not progress
        ):
            seen, mask = _run(anatomy, rows[start : start + batch_size])
            sums[: len(seen)] += seen
            counts[: len(seen)] += mask
    total = sums.sum(0) / counts.sum()
    if not total.isfinite().all():
        raise SparksError("the means of the heads are not finite: the model gives NaN or inf")
    positions = (sums / counts[:, None, None, None]).float() if by_position else None
    return HeadMeans(
        overall=total.float(),
        by_position=positions,
        num_rows=len(rows),
        num_tokens=int(counts.sum()),
    )


def _check(rows: Sequence[Sequence[int]], anatomy: Anatomy) -> None:
    if not rows:
        raise SparksError("the mean needs reference texts, got none")
    for number, row in enumerate(rows, start=1):
        if not row:
            raise SparksError(f"reference text {number} is empty in tokens")
        if max(row) >= anatomy.vocab_size:
            raise SparksError(
                f"reference text {number}: token ids must be 0..{anatomy.vocab_size - 1}, found "
                f"{max(row)}: was it tokenised for another model?"
            )
        if anatomy.max_positions is not None and len(row) > anatomy.max_positions:
            raise SparksError(
                f"reference text {number}: {len(row)} tokens, more than the model's context of "
                f"{anatomy.max_positions}: shorten it"
            )


def _run(anatomy: Anatomy, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Sums over rows, [pos layers heads head_dim], and how many rows reach each position."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    layers: list[Tensor] = []

    def keep(mixed: Tensor) -> None:
        weighed = mixed.double() * mask.to(mixed.device)[:, :, None]
        layers.append(weighed.sum(0).unflatten(-1, (anatomy.graph.num_heads, -1)).cpu())

    with hooks() as handles:
        handles += [on_input(layer.output, keep) for layer in anatomy.layers]
        where: dict[str, Any] = {"device": anatomy.device}
        try:
            anatomy.call(
                input_ids=ids.to(**where), attention_mask=mask.to(**where), use_cache=False
            )
        except RuntimeError as error:  # no memory left
            raise SparksError(
                f"cannot run the model on the reference texts ({reason(error)}): lower batch_size, "
                f"or give shorter ones"
            ) from error
    return torch.stack(layers, dim=1), mask.sum(0).double()
