"""Exact interventions on edges: the oracle of the attribution, and the faithfulness of a circuit.

The clean prompt is run, but along each patched edge u -> v, destination v reads the residual stream
with what u writes now replaced by what u wrote in the corrupted run. Everything downstream is
computed again from there (path patching; "Thinking Sparks!", https://arxiv.org/abs/2509.25758,
section "Circuit").

In steps, for one prompt at full length (no shared prefix, no cache):
1. run clean and corrupted; keep the clean output distribution and the corrupted writes z'_u;
2. run clean again. As the run goes on, keep every write z_u of it. Where v is about to read x, let
   it read x + sum over patched u of (z'_u - z_u), through v's own norm and projection, and nobody
   else;
3. L = KL(clean || patched), at the last position or as a mean over the continuation.

A query, key or value head is patched by its slice of the projection's output, computed again from
the residual stream that it alone reads. A head's write is `o_proj` of its own slice, the others
held at 0; behind a norm, divided by the r that the norm has in this run, times its gain. Slow and
plain on purpose: it shares no step with `attribution.eap_ig`, which it judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparks.ground.config import Positions, check_choice
from sparks.ground.errors import SparksError
from sparks.models.anatomy import Anatomy, Layer
from sparks.models.anatomy_proof import take_apart
from sparks.models.graph import Graph
from sparks.models.guard import undisturbed
from sparks.models.hooks import hooks, on_input, on_output
from sparks.probes.pairs import TokenPair, check_pair

Patch = Literal["corrupted", "zero"]

Edges = Sequence[tuple[str, str]] | np.ndarray | Tensor
"""Names `(source, destination)`, or a boolean mask [sources, destinations]. Mask entries where no
edge exists are ignored, so that `~kept` is everything outside a circuit `kept`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchResult:
    """What patching some edges does to the output."""

    loss: float
    """L = KL(clean || patched), nats."""
    loss_corrupted: float
    """KL(clean || corrupted), nats: L with every edge patched to its corrupted value."""
    num_edges: int
    """Edges patched."""
    logits: Float[Tensor, "targets vocab"]
    """Output of the patched run where L looks, float32, on the CPU."""

    @property
    def faithfulness(self) -> float:
        """1 - loss / loss_corrupted: 1 where patching changed nothing, 0 where it did it all."""
        return 1 - self.loss / self.loss_corrupted


def patch_edges(
    model: nn.Module,
    pair: TokenPair,
    edges: Edges,
    *,
    positions: Positions = "last",
    patch: Patch = "corrupted",
) -> PatchResult:
    """Run the clean prompt of `pair` with `edges` patched.

    Args:
        model: a Hugging Face causal language model, PEFT-wrapped or not. Left exactly as found.
        pair: token ids.
        edges: names such as `("L0H1", "L2KV0.k")`, or a mask. For the faithfulness of a circuit,
            the mask of everything outside it.
        positions: L at the `last` position, or its mean over `all` positions of the continuation.
        patch: read the source's `corrupted` value, or `zero`.

    Raises:
        SparksError: an edge has an unknown name or does not exist, a mask has another shape, an
            argument is outside its choices, the pair does not fit the model, or the model is not
            known.
    """
    return EdgePatcher(model, pair, positions=positions, patch=patch).patch(edges)


class EdgePatcher:
    """`patch_edges` many times on one pair: the clean and the corrupted run are made once.

    Valid as long as the weights of the model stay as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        pair: TokenPair,
        *,
        positions: Positions = "last",
        patch: Patch = "corrupted",
    ) -> None:
        check_choice("positions", positions, get_args(Positions))
        check_choice("patch", patch, get_args(Patch))
        self._model, self._pair = model, pair
        self._targets = 1 if positions == "last" else len(pair.clean)
        with undisturbed(model), torch.no_grad():
            self._anatomy = take_apart(model)
            check_pair(
                pair,
                "pair",
                vocab_size=self._anatomy.vocab_size,
                max_positions=self._anatomy.max_positions,
            )
            self._clean, _ = self._run(pair.clean, None)
            corrupted, writes = self._run(pair.corrupted, None)
        self._values = writes if patch == "corrupted" else torch.zeros_like(writes)
        self._loss_corrupted = _divergence(self._clean, corrupted)

    @property
    def graph(self) -> Graph:
        """Names and order of sources and destinations."""
        return self._anatomy.graph

    def patch(self, edges: Edges) -> PatchResult:
        """Run the clean prompt with `edges` patched; as `patch_edges`."""
        mask = _edge_mask(self.graph, edges)
        with undisturbed(self._model), torch.no_grad():
            logits, _ = self._run(self._pair.clean, mask)
        return PatchResult(
            loss=_divergence(self._clean, logits),
            loss_corrupted=self._loss_corrupted,
            num_edges=int(mask.sum()),
            logits=logits.float().cpu(),
        )

    def _run(
        self, continuation: list[int], mask: Bool[np.ndarray, "sources destinations"] | None
    ) -> tuple[Float[Tensor, "targets vocab"], Float[Tensor, "sources pos d_model"]]:
        """Logits where L looks, and what every source wrote."""
        anatomy = self._anatomy
        ids = torch.tensor([self._pair.prefix + continuation], device=anatomy.device)
        shape = (anatomy.graph.num_sources, ids.shape[1], anatomy.d_model)
        own = next(anatomy.embedding.parameters()).dtype
        dtype = torch.promote_types(own, torch.float32)  # sums of narrow numbers are not narrow
        run = _Run(anatomy, torch.zeros(shape, device=anatomy.device, dtype=dtype))
        if mask is not None:
            run.mask, run.values = mask, self._values
        with hooks() as handles:
            run.install(handles)
            attend = torch.ones_like(ids)
            out = anatomy.call(input_ids=ids, attention_mask=attend, use_cache=False)
        return out.logits[0, -self._targets :], run.writes


@dataclass(eq=False)
class _Run:
    """The hooks of one run: keep what is written, change what is read."""

    anatomy: Anatomy
    writes: Float[Tensor, "sources pos d_model"]
    mask: Bool[np.ndarray, "sources destinations"] | None = None
    values: Float[Tensor, "sources pos d_model"] | None = None
    attention_in: dict[int, Tensor] = field(default_factory=dict)

    def install(self, handles: list[RemovableHandle]) -> None:
        graph, last = self.anatomy.graph, self.anatomy.graph.num_destinations - 1
        handles.append(self.anatomy.on_embed_write(self._writer(0)))
        for index, layer in enumerate(self.anatomy.layers):
            handles += layer.on_attention_read(self._attention_reader(index))
            for module in layer.projection_modules:
                handles.append(on_output(module, self._projection(index, layer, module)))
            handles += [
                on_input(layer.output, self._heads_writer(index, layer)),
                *layer.on_mlp_read(partial(self.read, column=graph.mlp_column(index))),
                on_output(layer.mlp_writer, self._writer(graph.mlp_row(index), layer.scale)),
            ]
        handles.append(on_input(self.anatomy.final_norm, partial(self.read, column=last)))

    def read(self, x: Float[Tensor, "1 pos d_model"], *, column: int) -> Tensor | None:
        """What destination `column` reads instead of the residual stream `x`; None if it is `x`."""
        if self.mask is None or self.values is None or not self.mask[:, column].any():
            return None
        rows = np.flatnonzero(self.mask[:, column])
        moved = (self.values[rows] - self.writes[rows]).sum(0)
        return (x.to(moved.dtype) + moved).to(x.dtype)

    def _attention_reader(self, index: int) -> Any:
        return lambda x: self.attention_in.__setitem__(index, x)

    def _projection(self, index: int, layer: Layer, module: nn.Module) -> Any:
        """Put the patched heads' slices of a projection's output in place."""

        def see(output: Tensor) -> Tensor:
            output = output.clone()
            column = self.anatomy.graph.attention_columns(index).start
            for item in layer.projections:
                for head in range(item.heads):
                    x = self.read(self.attention_in[index], column=column)
                    column += 1
                    if item.module is not module or x is None:
                        continue
                    features = item.place(head)
                    # `.forward`: the hooks belong to the run itself.
                    again = module.forward(layer.normed(x))
                    output[..., features] = again[..., features]
            return output

        return see

    def _writer(self, row: int, scale: float = 1.0) -> Any:
        def see(output: Tensor) -> None:
            self.writes[row] = scale * output[0]

        return see

    def _heads_writer(self, index: int, layer: Layer) -> Any:
        graph = self.anatomy.graph

        def see(mixed: Tensor) -> None:
            alone = torch.zeros_like(mixed).repeat(graph.num_heads, 1, 1)
            for head, part in enumerate(mixed[0].chunk(graph.num_heads, -1)):
                size = part.shape[-1]
                alone[head, :, head * size : (head + 1) * size] = part
            bias = layer.output.forward(torch.zeros_like(mixed)).to(self.writes.dtype)
            written = layer.output.forward(alone) - bias
            if (norm := layer.norm_after) is not None:
                written = written * norm.gain / norm.scale(written.sum(0))
            start = graph.sources_before_attention(index)
            self.writes[start : start + graph.num_heads] = layer.scale * written

        return see


def _edge_mask(graph: Graph, edges: Edges) -> Bool[np.ndarray, "sources destinations"]:
    if isinstance(edges, Tensor):
        edges = edges.cpu().numpy()
    if isinstance(edges, np.ndarray):
        if edges.shape != graph.edge_mask.shape or edges.dtype != np.bool_:
            raise SparksError(
                f"an edge mask must be boolean of shape {list(graph.edge_mask.shape)} (sources, "
                f"destinations), got {edges.dtype} of shape {list(edges.shape)}"
            )
        return edges & graph.edge_mask
    rows = {name: index for index, name in enumerate(graph.sources)}
    columns = {name: index for index, name in enumerate(graph.destinations)}
    mask = np.zeros_like(graph.edge_mask)
    for edge in edges:
        if not isinstance(edge, tuple) or len(edge) != 2:
            raise SparksError(f"an edge is (source, destination) by name, got {edge!r}")
        source, destination = edge
        if source not in rows or destination not in columns:
            kind, name = ("destination", destination) if source in rows else ("source", source)
            known = graph.sources if kind == "source" else graph.destinations
            raise SparksError(
                f"edges: the model has no {kind} {name!r}: they are named {known[0]}, {known[1]}, "
                f"... {known[-2]}, {known[-1]}"
            )
        if not graph.edge_mask[rows[source], columns[destination]]:
            raise SparksError(
                f"edges: {source} -> {destination} does not exist: {destination} reads before "
                f"{source} writes"
            )
        mask[rows[source], columns[destination]] = True
    return mask


def _divergence(clean: Tensor, other: Tensor) -> float:
    """KL(clean || other), nats, mean over positions; in float64: small ones are differences."""
    log_clean, log_other = (logits.double().log_softmax(-1) for logits in (clean, other))
    return float((log_clean.exp() * (log_clean - log_other)).sum(-1).mean())
