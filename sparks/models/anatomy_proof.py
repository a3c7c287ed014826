"""Proof by numbers that the parts which `anatomy` found are what they are taken for.

A few random tokens are run through the model. First run, watched only; layer by layer:

1. the query, key and value projections read the attention norm's output, and have the size of
   their heads;
2. the heads' writes (`anatomy.Layer`) sum, with the bias, to what the attention block writes;
3. the MLP reads, through its norm, the layer's input plus that (in parallel blocks, the input);
4. the next layer (or the final norm) reads the layer's input plus what both blocks write;
5. another last token changes nothing before it (the shared prefix stands on this).

Second run, other tokens, but every projection and the final norm is made to give what it gave in
the first, and every MLP to read what it read:

6. each o_proj input, each MLP output and the logits come out as in the first: nothing else is read
   from the residual stream;
7. in one row a head, the sign of that head's slice is flipped. A query, at one position, changes
   its own head at that position; a key changes the heads of its group; a value turns their sign;
   nothing else changes;
8. from the first run to this one, what layer 0 reads moves with the embedding's output, times one
   number (positions are added, Granite scales).

A hook on the wrong tensor, a multiplier or a norm that is not known, a gate on the attention,
values of another size or fused heads in another order breaks one of these, and the model is refused
with the number that broke it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sparks.ground.errors import SparksError
from sparks.models.anatomy import Anatomy, Layer, find
from sparks.models.families import WORKING
from sparks.models.hooks import (
    hooks,
    linear_map,
    on_input,
    on_output,
    relative_difference,
    tolerance,
)
from sparks.models.memory import RowBytes

_TOKENS = 6
_POSITION = 2
"""Where a query is flipped: with tokens before it, so that it matters, and after it."""


_Signature = tuple[Any, ...]
_PROVED: WeakKeyDictionary[nn.Module, tuple[_Signature, dict[tuple[int, int, str, str], RowBytes]]]
_PROVED = WeakKeyDictionary()
"""Models that passed, with what they were made of: an adapter added later is checked anew."""


def take_apart(model: nn.Module) -> Anatomy:
    """The parts of `model`, proved; the proof runs once a model.

    Raises:
        SparksError: the architecture is not known (names what is missing), its parts do not add up
            to what the model computes, or its activations are not finite.
    """
    anatomy = find(model)
    made_of = signature(anatomy)
    known = _PROVED.get(model)
    if known is not None and known[0] == made_of:
        return replace(anatomy, row_bytes=known[1])
    check(anatomy)
    _PROVED[model] = made_of, anatomy.row_bytes
    return anatomy


def signature(anatomy: Anatomy) -> _Signature:
    """What a model is made of: while it stays the same, a proof holds."""
    kinds = tuple(type(module) for module in anatomy.root.modules())
    types = tuple(p.dtype for p in anatomy.layers[0].output.parameters())
    kernel = getattr(anatomy.config, "_attn_implementation", None)
    return kinds, types, anatomy.device, kernel


def allowed(anatomy: Anatomy, *seen: torch.dtype) -> float:
    """Relative difference that a proof allows, where activations of the types `seen` were met."""
    if not all(p.dtype.is_floating_point for p in anatomy.root.parameters()):
        return tolerance(torch.bfloat16)  # what quantised weights are multiplied in
    # Sums under autocast are float32, but their parts were rounded to the narrow type.
    return max(map(tolerance, seen))


@torch.no_grad()
def check(anatomy: Anatomy) -> None:
    """Prove the parts of `anatomy`.

    Raises:
        SparksError: they do not add up, or the model's activations are not finite.
    """
    _Check(anatomy).run()


@dataclass(eq=False)
class _LayerSeen:
    """What one layer read and wrote; two rows, [2, pos, features]."""

    attention_in: Tensor = field(default_factory=lambda: torch.empty(0))
    attention_normed: Tensor = field(default_factory=lambda: torch.empty(0))
    projected_from: list[Tensor] = field(default_factory=list)
    projected: list[Tensor] = field(default_factory=list)
    mixed: Tensor = field(default_factory=lambda: torch.empty(0))
    """What the heads computed, z."""
    heads: Tensor = field(default_factory=lambda: torch.empty(0))
    """z, or z / r before a norm behind the attention."""
    attention_out: Tensor = field(default_factory=lambda: torch.empty(0))
    mlp_in: Tensor = field(default_factory=lambda: torch.empty(0))
    mlp_normed: Tensor = field(default_factory=lambda: torch.empty(0))
    """What the MLP itself is given."""
    mlp_out: Tensor = field(default_factory=lambda: torch.empty(0))


class _Check:
    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy, self.graph = anatomy, anatomy.graph
        self.seen = [_LayerSeen() for _ in anatomy.layers]
        self.ends: dict[str, Tensor] = {}
        self.limit = 0.0
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(anatomy.vocab_size, (2, _TOKENS), generator=generator)
        self.other_ids = ids[1:].to(anatomy.device)
        ids[1] = ids[0]
        ids[1, -1] = (ids[0, -1] + 1) % anatomy.vocab_size
        self.ids = ids.to(anatomy.device)

    def run(self) -> None:
        for index, layer in enumerate(self.anatomy.layers):
            self._check_behind(index, layer)
        self._watch()
        dtypes = self.seen[0].mixed.dtype, self.ends["final_in"].dtype
        self.limit = allowed(self.anatomy, *dtypes)
        following = [*(seen.attention_in for seen in self.seen[1:]), self.ends["final_in"]]
        for index, after in enumerate(following):
            if not bool(torch.isfinite(after).all()):
                self._not_finite(f"after layer {index}")
            self._check_sums(index, self.anatomy.layers[index], self.seen[index], after)
        first, other = self.ends["final_in"][:, :-1].float().unbind(0)
        self._same("no token changes what stands before it", other, first)
        self._check_reads()

    # -- first run ---------------------------------------------------------------------------

    def _watch(self) -> None:
        def into(owner: Any, name: str) -> Callable[[Tensor], None]:
            if isinstance(owner, dict):
                return lambda tensor: owner.__setitem__(name, tensor.detach())
            # Falcon adds the attention's output to its MLP's in place.
            return lambda tensor: setattr(owner, name, tensor.detach().clone())

        with hooks() as handles:
            handles += [
                on_output(self.anatomy.embedding, into(self.ends, "embedded")),
                on_input(self.anatomy.final_norm, into(self.ends, "final_in")),
                on_output(self.anatomy.final_norm, into(self.ends, "final_normed")),
            ]
            for layer, seen in zip(self.anatomy.layers, self.seen, strict=True):
                handles += [
                    *layer.on_attention_read(into(seen, "attention_in")),
                    on_input(layer.output, into(seen, "mixed")),
                    *layer.on_heads_write(into(seen, "heads")),
                    on_output(layer.attention_writer, into(seen, "attention_out")),
                    *layer.on_mlp_read(into(seen, "mlp_in")),
                    on_input(layer.mlp, into(seen, "mlp_normed")),
                    on_output(layer.mlp_writer, into(seen, "mlp_out")),
                ]
                if layer.attention_norm is None:
                    handles += layer.on_attention_read(into(seen, "attention_normed"))
                else:
                    handles.append(on_output(layer.attention_norm, into(seen, "attention_normed")))
                for module in layer.projection_modules:
                    handles.append(on_input(module, seen.projected_from.append))
                    handles.append(on_output(module, seen.projected.append))
            self.ends["logits"] = self._logits(self.ids)
        for index, (layer, seen) in enumerate(zip(self.anatomy.layers, self.seen, strict=True)):
            ran = all(value.numel() for value in vars(seen).values() if isinstance(value, Tensor))
            if not ran or len(seen.projected) != len(layer.projection_modules):
                self._refuse(f"a part of layer {index} does not run once in a pass")

    def _logits(self, ids: Tensor) -> Tensor:
        mask = torch.ones_like(ids)
        return self.anatomy.call(input_ids=ids, attention_mask=mask, use_cache=False).logits

    def _check_sums(self, index: int, layer: Layer, seen: _LayerSeen, after: Tensor) -> None:
        says = f"layer {index}: "
        for module, output, read in zip(
            layer.projection_modules, seen.projected, seen.projected_from, strict=True
        ):
            parts = [item for item in layer.projections if item.module is module]
            size = sum(item.heads * item.head_dim for item in parts)
            if output.shape[-1] != size:
                self._refuse(
                    says + f"heads of the sizes in its config make {size} projected features, it "
                    f"has {output.shape[-1]}"
                )
            self._same(says + "attention reads its norm's output", read, seen.attention_normed)
        attention, mlp = (layer.scale * out.float() for out in (seen.attention_out, seen.mlp_out))
        self._same(
            says + "the heads' writes sum to o_proj's output",
            self._written(index, layer, seen.heads),
            attention,
        )
        if self.graph.parallel:
            self._same(says + "the MLP reads the layer's input", seen.mlp_in, seen.attention_in)
            before = seen.attention_in.float() + attention
        else:
            before = seen.mlp_in
            what = says + "the MLP reads input + attention"
            self._same_sum(what, before, (seen.attention_in, attention))
        normed = seen.mlp_in if layer.mlp_norm is None else layer.mlp_norm.forward(seen.mlp_in)
        if normed.shape == seen.mlp_normed.shape:  # else `mlp` is no MLP: found below
            self._same(says + "the MLP reads its norm's output", seen.mlp_normed, normed)
        self._same_sum(says + "its output is input + attention + MLP", after, (before, mlp))

    def _check_behind(self, index: int, layer: Layer) -> None:
        """A norm behind the attention: with its own r it must be linear in the heads."""
        found, after = linear_map(layer.output), layer.attention_after
        norm = layer.norm_after
        if found is None:
            raise SparksError(
                f"o_proj of layer {index} ({type(layer.output).__name__}) is not affine in its "
                f"input, so a head's write is not defined: load the model without activation "
                f"quantisation"
            )
        if found[0].shape[1] % self.graph.num_heads:
            self._refuse(
                f"layer {index}: o_proj's {found[0].shape[1]} inputs are no multiple of "
                f"{self.graph.num_heads} heads"
            )
        biased = found[1] is not None and bool(found[1].any())
        linear = norm is not None and norm.shift is None and not norm.centred
        if after is not None and (biased or not linear):
            self._refuse(
                f"layer {index}: behind its attention stands {type(after).__name__}, which must be "
                f"an RMSNorm behind an o_proj without bias"
            )

    def _written(self, index: int, layer: Layer, heads: Tensor) -> Tensor:
        heads = heads.unflatten(-1, (self.graph.num_heads, -1)).float()
        columns = layer.head_columns().unflatten(1, (self.graph.num_heads, -1))
        written = torch.einsum("...hf,dhf->...d", heads, columns)
        bias = linear_map(layer.output)[1]  # type: ignore[index]
        return written if bias is None else written + layer.scale * bias.float()

    # -- second run --------------------------------------------------------------------------

    def _check_reads(self) -> None:
        """Rows: nothing flipped, then one row a query, key and value head.

        Of MLPs the first row is enough.
        """
        moved: dict[str, Tensor] = {}
        rows = 1 + self.graph.attention_destinations
        with hooks() as handles:
            handles.append(on_output(self.anatomy.embedding, partial(moved.__setitem__, "from")))
            handles.append(self.anatomy.on_embed_write(partial(moved.__setitem__, "to")))
            for index, (layer, seen) in enumerate(zip(self.anatomy.layers, self.seen, strict=True)):
                for module, output in zip(layer.projection_modules, seen.projected, strict=True):
                    handles.append(on_output(module, partial(self._flipped, layer, module, output)))
                # One row serves them all, but where blocks are added in place or tokens laid flat.
                whole = self.graph.parallel or layer.experts is not None
                mlp_reads = seen.mlp_normed[:1].repeat(rows if whole else 1, 1, 1)
                handles += [
                    on_input(layer.mlp, partial(_given, mlp_reads)),
                    on_input(layer.output, partial(self._check_mixed, index)),
                    on_output(layer.mlp_writer, partial(self._check_mlp, index)),
                ]
            final = self.ends["final_normed"][:1].repeat(rows, 1, 1)
            handles.append(on_output(self.anatomy.final_norm, partial(_given, final)))
            logits = self._logits(self.other_ids.expand(rows, -1))
        self._same("logits are read through the final norm", logits[:1], self.ends["logits"][:1])
        self._check_embedding(moved["from"][:1], moved["to"][:1])

    def _check_embedding(self, embedded: Tensor, read: Tensor) -> None:
        step = embedded.float() - self.ends["embedded"][:1].float()
        moved = read.float() - self.seen[0].attention_in[:1].float()
        factor = (moved * step).sum() / step.square().sum().clamp_min(1e-30)
        self._same("layer 0 reads the embedding's output, scaled", moved, factor * step)

    def _flipped(self, layer: Layer, module: nn.Module, output: Tensor, _: Tensor) -> Tensor:
        given = output[:1].repeat(1 + self.graph.attention_destinations, 1, 1)
        row = 1
        for item in layer.projections:
            for head in range(item.heads):
                if item.module is module:
                    where = _POSITION if item is layer.query else slice(None)
                    given[row, where, item.place(head)] *= -1
                row += 1
        return given

    def _check_mlp(self, index: int, output: Tensor) -> None:
        expected = self.seen[index].mlp_out[:1]
        self._same(f"layer {index}: the MLP reads through its norm", output[:1], expected)

    def _check_mixed(self, index: int, mixed: Tensor) -> None:
        """The first row is as in the first run; a flipped row too, its own heads put back."""
        says, expected = f"layer {index}: ", self.seen[index].mixed[:1]
        what = says + "attention reads nothing but queries, keys and values"
        self._same(what, mixed[:1], expected)
        num_heads = self.graph.num_heads
        group = num_heads // self.graph.num_kv_heads
        control, *flipped = mixed.unflatten(-1, (num_heads, -1)).clone()
        for head in range(num_heads):
            flipped[head][_POSITION, head] = control[_POSITION, head]
        keys = flipped[num_heads : num_heads + self.graph.num_kv_heads]
        values = flipped[num_heads + self.graph.num_kv_heads :]
        for kv, (key, value) in enumerate(zip(keys, values, strict=True)):
            own = slice(kv * group, (kv + 1) * group)
            key[:, own] = control[:, own]
            value[:, own] *= -1
        what = says + "a query, key or value slice feeds its own heads alone"
        found = torch.stack(flipped).flatten(-2)
        self._same(what, found, expected.expand_as(found))

    # -- comparing ---------------------------------------------------------------------------

    def _same(self, what: str, found: Tensor, expected: Tensor) -> None:
        """Refuse the model unless `what` holds."""
        if found.shape != expected.shape:
            self._refuse(
                f"it does not hold that {what} (shapes {list(found.shape)} and "
                f"{list(expected.shape)})"
            )
        difference = relative_difference(found, expected)
        if difference != difference:
            self._not_finite(f"checking that {what}")
        if difference > self.limit:
            self._refuse(
                f"it does not hold that {what} (relative difference {difference:.2g}, allowed "
                f"{self.limit:g})"
            )

    def _same_sum(self, what: str, found: Tensor, parts: tuple[Tensor, Tensor]) -> None:
        one, other = parts
        expected = one.float() + other.float() if one.shape == other.shape else other
        self._same(what, found, expected)

    def _refuse(self, what: str) -> None:
        raise SparksError(
            f"sparks cannot take {self.anatomy.model_type!r} apart: {what}; {WORKING}"
        )

    def _not_finite(self, where: str) -> None:
        raise SparksError(
            f"the model's activations are not finite ({where}): its weights hold nan or inf; "
            f"restore a checkpoint from before the loss broke"
        )


def _given(instead: Tensor, _: Tensor) -> Tensor:
    return instead
