"""The model runs behind an attribution: shared prefix, the two endpoints, the path between.

A batch holds pairs whose continuations have one length; prefixes may differ. A prefix is run once
without gradients; its keys and values serve every later run. What the prefixes of many pairs begin
with (a system prompt, a template) is run once for all of them (`shared_prefixes`); behind it the
rests are padded on the left. The model is only ever called at its root, with its attention as it
is.

Rows on the path are *packed* where that is possible: several continuations of one pair lie side by
side in one sequence, under a mask that lets each see the prefix and itself alone. A long prefix is
then copied once a sequence, not once a row; hooks see packed tensors, callers never do.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from sparks.ground.config import Positions
from sparks.ground.errors import SparksError
from sparks.models.anatomy import Anatomy, forward_names
from sparks.models.families import CHECKED_ARCHITECTURES
from sparks.models.hooks import hooks, on_input, on_output
from sparks.probes.pairs import TokenPair

GRADIENT_SCALE = 1024.0
"""What gradients are multiplied by until they are summed in float32: float16 has no room for small
ones. A power of two, so that nothing is rounded."""


_PACKABLE = ("sdpa", "eager")
"""Attention kernels that take any mask; flash attention does not."""
_LEAST_SHARED = 8
"""Tokens below which a shared beginning is not worth a run of its own."""

_KeysValues = list[tuple[Tensor, Tensor]]
"""A layer an item, each [pairs, heads, tokens, head_dim]."""


class _PrefixLayer(DynamicLayer):
    """Keys and values of the prefix, a pair a row, lent to every sequence and never changed."""

    def __init__(self, keys: Tensor, values: Tensor, sequences_per_pair: int) -> None:
        super().__init__()
        self.prefix = keys, values
        self.keys, self.values = keys, values  # their length is read by the mask
        self.dtype, self.device = keys.dtype, keys.device
        self.sequences_per_pair = sequences_per_pair
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.prefix
        return self._extend(keys, key_states), self._extend(values, value_states)

    def _extend(self, prefix: Tensor, new: Tensor) -> Tensor:
        count = self.sequences_per_pair
        lent = prefix[:, None].expand(-1, count, -1, -1, -1)
        return torch.cat([lent, new.unflatten(0, (-1, count))], dim=-2).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """The tokens that the prefixes of some pairs begin with, run once (`shared_prefixes`)."""

    tokens: int = 0
    """0: each pair runs all of its prefix."""
    layers: _KeysValues = field(default_factory=list)
    """Of one row."""
    group: int = 0
    """Pairs of one number have one and the same; 0 where nothing is shared."""


def shared_prefixes(anatomy: Anatomy, pairs: Sequence[TokenPair]) -> list[SharedPrefix]:
    """What each pair shares with others, where that pays. The model runs in its present mode."""
    found = [SharedPrefix()] * len(pairs)
    # Rests are padded behind what is shared: a mask of its own kind.
    longest = max(len(pair.prefix) for pair in pairs) + max(len(pair.clean) for pair in pairs)
    if not _takes_any_mask(anatomy, longest):
        return found
    prefixes = [pair.prefix for pair in pairs]
    for number, (members, count) in enumerate(alike(prefixes), start=1):
        ids = torch.tensor([prefixes[members[0]][:count]], device=anatomy.device)
        positions = torch.arange(count, device=anatomy.device)[None]
        layers = _keys_and_values(anatomy, ids, torch.ones_like(ids), positions, [])
        for index in members:
            found[index] = SharedPrefix(count, layers, number)
    return found


def alike(prefixes: Sequence[list[int]]) -> list[tuple[list[int], int]]:
    """Sets of prefixes that begin alike: their indices, and how many tokens they share.

    Probes of two templates make two sets: one is split at the first token that differs where its
    parts spare at least twice the tokens. Fewer, larger sets fill batches better.
    """

    def best(members: list[int]) -> tuple[int, list[tuple[list[int], int]]]:
        rows = [prefixes[index] for index in members]
        count = common_length(rows)
        pays = len(members) > 1 and count >= _LEAST_SHARED
        spared, whole = (count * (len(members) - 1), [(members, count)]) if pays else (0, [])
        behind: dict[int | None, list[int]] = {}
        for index, row in zip(members, rows, strict=True):
            behind.setdefault(row[count] if count < len(row) else None, []).append(index)
        if len(members) < 2 or len(behind) < 2:
            return spared, whole
        parts = [best(part) for part in behind.values()]
        together = sum(tokens for tokens, _ in parts)
        if together > 2 * spared:
            return together, [found for _, sets in parts for found in sets]
        return spared, whole

    return best(list(range(len(prefixes))))[1]


def common_length(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with alike."""
    lowest, highest = min(rows), max(rows)  # in the order of words: what these share all share
    same = (one == other for one, other in zip(lowest, highest, strict=False))
    return sum(itertools.takewhile(bool, same))


def _takes_any_mask(anatomy: Anatomy, tokens: int) -> bool:
    """Attention over `tokens` follows whatever mask it is given."""
    names = ("sliding_window", "attention_chunk_size", "window_size")
    windows = [getattr(anatomy.config, name, None) for name in names]
    return (
        getattr(anatomy.config, "_attn_implementation", None) in _PACKABLE
        # Tests have shown of these alone that they take any mask.
        and anatomy.model_type in CHECKED_ARCHITECTURES
        and not getattr(anatomy.config, "alibi", False)  # counts positions by a plain mask
        # A window counts what is masked too.
        and not any(window is not None and window < tokens for window in windows)
    )


def _keep(anatomy: Anatomy, targets: int | Tensor) -> dict[str, int | Tensor]:
    """The option that spares logits where nobody looks."""
    return {"logits_to_keep": targets} if "logits_to_keep" in forward_names(anatomy.root) else {}


@torch.no_grad()
def _keys_and_values(
    anatomy: Anatomy, ids: Tensor, mask: Tensor, positions: Tensor, before: _KeysValues
) -> _KeysValues:
    """Keys and values of `before` and of `ids` behind it; `mask` is that of both."""
    cache = DynamicCache(before)  # without a config: a sliding window must drop nothing
    anatomy.call(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **_keep(anatomy, 1),
    )
    # Rows of padding alone attend to nothing and may hold nan, which no later mask would undo.
    padded = (mask == 0)[:, None, :, None]
    layers: list[Any] = cache.layers
    return [
        (layer.keys.masked_fill(padded, 0), layer.values.masked_fill(padded, 0)) for layer in layers
    ]


@dataclass(frozen=True, eq=False)
class Endpoints:
    """What the clean and the corrupted run differ in. Float32; Delta = corrupted - clean."""

    embed_clean: Float[Tensor, "pairs pos d_model"]
    """Embeddings z, in the model's own type."""
    embed_corrupted: Float[Tensor, "pairs pos d_model"]
    delta_embed: Float[Tensor, "pairs pos d_model"]
    delta_stream: Float[Tensor, "pairs pos d_model"]
    """Difference of what layer 0 reads: the embeddings' own, but where the model scales them."""
    delta_heads: list[Float[Tensor, "pairs pos heads_times_dim"]]
    """Difference of what the heads computed (`Layer.on_heads_write`), a layer an item."""
    delta_mlps: list[Float[Tensor, "pairs pos d_model"]]
    """Before the layer's `scale`."""
    p_clean: Float[Tensor, "pairs targets vocab"]
    """The clean run's output distribution at the positions that L looks at."""
    loss_corrupted: Float[Tensor, " pairs"]
    """L at the corrupted end: KL(clean || corrupted), nats."""
    precision: str
    """Type of the residual stream; under autocast, also that of the blocks."""

    def only(self, rows: list[int]) -> Endpoints:
        """Those of some pairs of the batch."""
        return Endpoints(
            embed_clean=self.embed_clean[rows],
            embed_corrupted=self.embed_corrupted[rows],
            delta_embed=self.delta_embed[rows],
            delta_stream=self.delta_stream[rows],
            delta_heads=[tensor[rows] for tensor in self.delta_heads],
            delta_mlps=[tensor[rows] for tensor in self.delta_mlps],
            p_clean=self.p_clean[rows],
            loss_corrupted=self.loss_corrupted[rows],
            precision=self.precision,
        )


@dataclass(eq=False)
class Trace:
    """Activations of a run on the path, and the gradients of L with respect to some of them."""

    embeds: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    attention_in: list[Tensor] = field(default_factory=list)
    """What each layer's attention reads from the residual stream, before its norm."""
    projected: list[list[Tensor]] = field(default_factory=list)
    """Outputs of each layer's projection modules (three, or one where they are fused)."""
    mlp_in: list[Tensor] = field(default_factory=list)
    """What each MLP reads, before its norm: a view that only the norm hangs on, so that the
    gradient with respect to it is the MLP's alone."""
    final_in: list[Tensor] = field(default_factory=list)
    """The same for the final norm; one item."""
    mixed: list[Tensor] = field(default_factory=list)
    """Inputs of each `o_proj`; where a norm stands behind it, what that writes."""
    mlp_out: list[Tensor] = field(default_factory=list)


class Passes:
    """Runs one batch of pairs through one model; the prefix of each begins with `shared`."""

    def __init__(
        self,
        anatomy: Anatomy,
        pairs: Sequence[TokenPair],
        positions: Positions,
        shared: SharedPrefix | None = None,
    ) -> None:
        shared = shared or SharedPrefix()
        self.anatomy = anatomy
        self.num_pairs = len(pairs)
        self.suffix = len(pairs[0].clean)
        self.targets = 1 if positions == "last" else self.suffix
        self._ids_clean = self._ids([pair.clean for pair in pairs])
        self._ids_corrupted = self._ids([pair.corrupted for pair in pairs])
        longest, begun = max(len(pair.prefix) for pair in pairs), shared.tokens
        # Padding goes to the left: the prefix then ends where the continuation starts.
        pads = [longest - len(pair.prefix) for pair in pairs]
        self._ids_prefix = self._ids(
            [
                pair.prefix[:begun] + [0] * pad + pair.prefix[begun:]
                for pad, pair in zip(pads, pairs, strict=True)
            ]
        )
        self._mask = self._ids(
            [[1] * begun + [0] * pad + [1] * (longest - begun - pad + self.suffix) for pad in pads]
        )
        self._positions = (self._mask.cumsum(-1) - 1).clamp_min(0)
        self._prefix = self._run_prefix(shared)

    def _ids(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self.anatomy.device)

    def only(self, rows: list[int]) -> Passes:
        """The passes of some pairs of the batch; the prefix is not run again."""
        some = copy(self)
        some.num_pairs = len(rows)
        for name in ("_ids_clean", "_ids_corrupted", "_ids_prefix", "_mask", "_positions"):
            setattr(some, name, getattr(self, name)[rows])
        some._prefix = [(keys[rows], values[rows]) for keys, values in self._prefix]
        return some

    @property
    def device(self) -> torch.device:
        """Where the batch lies."""
        return self._ids_clean.device

    # -- prefix ------------------------------------------------------------------------------

    @property
    def prefix_bytes(self) -> int:
        """Keys and values of the shared prefix."""
        return sum(k.nbytes + v.nbytes for k, v in self._prefix)

    def _run_prefix(self, shared: SharedPrefix) -> _KeysValues:
        begun, longest = shared.tokens, self._ids_prefix.shape[1]
        every = self.num_pairs, -1, -1, -1
        lent = [(keys.expand(every), values.expand(every)) for keys, values in shared.layers]
        if longest == begun:
            return lent
        return _keys_and_values(
            self.anatomy,
            self._ids_prefix[:, begun:],
            self._mask[:, :longest],
            self._positions[:, begun:longest],
            lent,
        )

    def _cache(self, sequences_per_pair: int) -> Cache | None:
        if not self._prefix:
            return None
        return Cache(layers=[_PrefixLayer(k, v, sequences_per_pair) for k, v in self._prefix])

    def _call(self, rows_per_pair: int, packed: int = 1, **inputs: Tensor) -> Tensor:
        """Logits [rows, targets, vocab] of continuations laid out pair by pair.

        `packed` neighbours share a sequence; it divides `rows_per_pair`.
        """
        count = rows_per_pair // packed
        positions = self._positions[:, -self.suffix :].repeat(1, packed)
        ends: int | Tensor = packed * self.targets
        if packed > 1 and self.targets == 1:
            ends = torch.arange(1, packed + 1, device=self.device) * self.suffix - 1
        out = self.anatomy.call(
            **{
                key: value.unflatten(0, (-1, packed)).flatten(1, 2) for key, value in inputs.items()
            },
            attention_mask=self._attention_mask(packed).repeat_interleave(count, 0),
            position_ids=positions.repeat_interleave(count, 0),
            past_key_values=self._cache(count),
            use_cache=False,
            **_keep(self.anatomy, ends),
        )
        return out.logits[:, -packed * self.targets :].unflatten(1, (packed, -1)).flatten(0, 1)

    # -- packing -----------------------------------------------------------------------------

    @property
    def most_packed(self) -> int:
        """Rows that may share a sequence: few enough that the prefix stays most of what is read."""
        if not _takes_any_mask(self.anatomy, self._mask.shape[1]) or not _keep(self.anatomy, 1):
            return 1
        return 1 + self._ids_prefix.shape[1] // (4 * self.suffix)

    @property
    def _attention(self) -> str | None:
        return getattr(self.anatomy.config, "_attn_implementation", None)

    def _packing(self, rows_per_pair: int) -> int:
        # Sequences are equally long, so a divisor; runs are cut to fit (`batches`).
        sizes = range(1, self.most_packed + 1)
        return max(size for size in sizes if rows_per_pair % size == 0)

    def _attention_mask(self, packed: int) -> Tensor:
        """Which tokens are real, [pairs, tokens]; packed, who sees whom, [pairs, 1, query, key]."""
        if packed == 1:
            return self._mask
        prefix = self._mask[:, None, : -self.suffix].bool()
        own = torch.ones(self.suffix, self.suffix, dtype=torch.bool, device=self.device).tril()
        block = torch.block_diag(*[own] * packed)
        parts = [prefix.expand(-1, len(block), -1), block.expand(self.num_pairs, -1, -1)]
        seen = torch.cat(parts, dim=-1)[:, None]
        if self._attention == "sdpa":
            return seen
        dtype = self._prefix[0][0].dtype
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)

    # -- endpoints ---------------------------------------------------------------------------

    @torch.no_grad()
    def endpoints(self, trace: Trace | None = None, *, nodes: bool = False) -> Endpoints:
        """Run both continuations without gradients; or so that gradients of `trace` can be taken.

        Rows of the trace are clean, corrupted, pair by pair; `nodes` as in `interpolate`.

        Raises:
            SparksError: an output is not finite.
        """
        embeds: list[Tensor] = []
        stream: list[Tensor] = []
        heads: list[Tensor] = []
        mlps: list[Tensor] = []
        blocks: list[Tensor] = []

        def difference_into(kept: list[Tensor]) -> Any:
            return lambda both: kept.append(self._difference(both))

        with hooks() as handles:
            handles.append(on_output(self.anatomy.embedding, embeds.append))
            handles.append(self.anatomy.on_embed_write(difference_into(stream)))
            handles.append(on_input(self.anatomy.layers[0].output, blocks.append))
            for layer in self.anatomy.layers:
                handles += layer.on_heads_write(difference_into(heads))
                handles.append(on_output(layer.mlp_writer, difference_into(mlps)))
            ids = torch.stack([self._ids_clean, self._ids_corrupted], dim=1).flatten(0, 1)
            if trace is None:
                logits = self._call(2, input_ids=ids).float()
            else:
                logits = self._trace_ends(trace, ids, handles, nodes).float()
        embed_clean, embed_corrupted = embeds[0].unflatten(0, (-1, 2)).unbind(1)
        log_clean, log_corrupted = logits.log_softmax(-1).unflatten(0, (-1, 2)).unbind(1)
        p_clean = log_clean.exp()
        loss = (p_clean * (log_clean - log_corrupted)).sum(-1).mean(-1)
        if not bool(torch.isfinite(loss).all()):
            raise SparksError(
                "the model's output is not finite (nan or inf logits): its weights are broken or "
                "its precision is too narrow; restore an earlier checkpoint or use float32"
            )
        return Endpoints(
            embed_clean=embed_clean,
            embed_corrupted=embed_corrupted,
            delta_embed=embed_corrupted.float() - embed_clean.float(),
            delta_stream=stream[0],
            delta_heads=heads,
            delta_mlps=mlps,
            p_clean=p_clean,
            loss_corrupted=loss,
            precision=_precision(embeds[0], blocks[0]),
        )

    @torch.enable_grad()
    def _trace_ends(self, trace: Trace, ids: Tensor, handles: list[Any], nodes: bool) -> Tensor:
        trace.embeds = self.anatomy.embedding(ids).detach().requires_grad_()
        (self._watch_writes if nodes else self._watch_reads)(trace, handles)
        trace.logits = self._call(2, inputs_embeds=trace.embeds)
        return trace.logits

    def _difference(self, both: Tensor) -> Tensor:
        clean, corrupted = both.detach().float().unflatten(0, (-1, 2)).unbind(1)
        return corrupted - clean

    def run(self, *, clean: bool, copies: int = 1) -> Tensor:
        """Logits [pairs * copies, targets, vocab] of the clean or the corrupted continuations.

        `copies` rows of one pair lie side by side, for hooks that treat each in its own way.
        """
        ids = self._ids_clean if clean else self._ids_corrupted
        return self._call(copies, input_ids=ids.repeat_interleave(copies, 0))

    # -- path --------------------------------------------------------------------------------

    @torch.no_grad()
    def losses(self, ends: Endpoints, alphas: Sequence[float]) -> Float[Tensor, "pairs alphas"]:
        """L of every pair at every alpha, nats, without gradients."""
        embeds = self._embeds(ends, alphas)
        logits = self._call(len(alphas), self._packing(len(alphas)), inputs_embeds=embeds)
        return self.divergences(ends, logits)

    @torch.no_grad()
    def divergences(self, ends: Endpoints, logits: Tensor) -> Float[Tensor, "pairs rows"]:
        """L of rows of logits that are laid out pair by pair, nats."""
        found = logits.float().log_softmax(-1).unflatten(0, (self.num_pairs, -1))
        clean = ends.p_clean[:, None]
        return (torch.xlogy(clean, clean) - clean * found).sum(-1).mean(-1)

    def interpolate(
        self, ends: Endpoints, alphas: Sequence[float] | Tensor, *, nodes: bool
    ) -> Trace:
        """Run every pair at every alpha; rows are laid out pair by pair, steps inside.

        `alphas` are the same for every pair, or [pairs, steps].

        `nodes` keeps what node scores need (writes), else what edge scores need (reads).
        """
        trace = Trace(embeds=self._embeds(ends, alphas))
        with hooks() as handles, torch.enable_grad():
            if nodes:
                self._watch_writes(trace, handles)
            else:
                self._watch_reads(trace, handles)
            steps = len(trace.embeds) // self.num_pairs
            packed = self._packing(steps)
            trace.logits = self._call(steps, packed, inputs_embeds=trace.embeds)
        return trace

    def unpacked(self, tensor: Tensor) -> Tensor:
        """An activation or its gradient with one continuation a row, [rows, pos, features]."""
        return tensor.unflatten(1, (-1, self.suffix)).flatten(0, 1)

    def _embeds(self, ends: Endpoints, alphas: Sequence[float] | Tensor) -> Tensor:
        dtype = ends.embed_clean.dtype
        alpha = torch.as_tensor(alphas, dtype=torch.float32, device=ends.delta_embed.device)
        alpha = alpha.reshape(-1, alpha.shape[-1], 1, 1)  # one row for all pairs, or a row each
        clean = ends.embed_clean.float()[:, None]
        # z' + alpha (z - z'), with the endpoints themselves reached exactly.
        path = torch.lerp(ends.embed_corrupted.float()[:, None], clean, alpha)
        return path.to(dtype).flatten(0, 1).requires_grad_()

    def _watch_reads(self, trace: Trace, handles: list[Any]) -> None:
        def alias_into(kept: list[Tensor]) -> Any:
            def see(tensor: Tensor) -> Tensor:
                kept.append(tensor.view_as(tensor))
                return kept[-1]

            return see

        for layer in self.anatomy.layers:
            outputs: list[Tensor] = []
            trace.projected.append(outputs)
            handles += layer.on_attention_read(trace.attention_in.append)
            handles += [on_output(module, outputs.append) for module in layer.projection_modules]
            handles += layer.on_mlp_read(alias_into(trace.mlp_in))
        handles.append(on_input(self.anatomy.final_norm, alias_into(trace.final_in)))

    def _watch_writes(self, trace: Trace, handles: list[Any]) -> None:
        for layer in self.anatomy.layers:
            behind = layer.attention_after is not None
            watch = on_output if behind else on_input
            module = layer.attention_writer if behind else layer.output
            handles.append(watch(module, trace.mixed.append))
            handles.append(on_output(layer.mlp_writer, trace.mlp_out.append))

    def seeds(
        self, trace: Trace, ends: Endpoints, weights: Float[Tensor, "pairs steps"] | None = None
    ) -> Float[Tensor, "rows targets vocab"]:
        """dL/d(logits) of each row of its own L = KL(clean || row).

        L is the mean over targets: it is (softmax(row) - p_clean) / targets, written down rather
        than traced. `weights` multiply the rows.
        """
        with torch.no_grad():
            steps = trace.logits.shape[0] // self.num_pairs
            seed = trace.logits.float().softmax(-1).unflatten(0, (-1, steps))
            seed -= ends.p_clean[:, None]
            if weights is not None:
                seed *= weights[..., None, None]
            return seed.flatten(0, 1) / self.targets

    def gradients(
        self, trace: Trace, seeds: Tensor, with_respect_to: Sequence[Tensor]
    ) -> list[Tensor]:
        """`GRADIENT_SCALE` * dL/d(activation) of each row, `seeds` being dL/d(logits)."""
        seeds = (seeds * GRADIENT_SCALE).to(trace.logits.dtype)
        found = torch.autograd.grad(trace.logits, list(with_respect_to), seeds)
        return [self.unpacked(gradient) for gradient in found]


def _precision(residual: Tensor, block: Tensor) -> str:
    stream, blocks = (str(tensor.dtype).removeprefix("torch.") for tensor in (residual, block))
    return stream if stream == blocks else f"{stream}, blocks {blocks}"
