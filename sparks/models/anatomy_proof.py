"""Proof by numbers that the parts which `anatomy` found are what they are taken for.

A few random tokens are run through the model. First run, watched only; layer by layer:

1. the embedding's output is what the first layer reads;
2. the query, key and value projections read the attention norm's output, and have the size of
   their heads;
3. the heads' writes `z_h W_O,h` sum (with the bias) to the output of the attention block;
4. the MLP reads, through its norm, the layer's input plus that output;
5. the next layer (or the final norm) reads what the MLP read plus the MLP's output;
6. another last token changes nothing before it (the shared prefix stands on this).

Second run, other tokens, but every projection, MLP norm and final norm is made to give what it gave
in the first:

7. each o_proj input, each MLP output and the logits come out as in the first: nothing else is read
   from the residual stream;
8. in one row a head, the sign of that head's slice is flipped. A query, at one position, changes
   its own head at that position; a key changes the heads of its group; a value turns their sign;
   nothing else changes.

A hook on the wrong tensor, a residual multiplier, a norm after a block, a parallel MLP, a gate on
the attention, values of another size or fused heads in another order breaks one of these, and the
model is refused with the number that broke it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparks.ground.errors import SparksError
from sparks.models.anatomy import CHECKED_ARCHITECTURES, Anatomy, Layer, base_model, find
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
    config = getattr(base_model(anatomy.root), "config", None)
    return kinds, types, anatomy.device, getattr(config, "_attn_implementation", None)


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
    attention_out: Tensor = field(default_factory=lambda: torch.empty(0))
    mlp_in: Tensor = field(default_factory=lambda: torch.empty(0))
    mlp_normed: Tensor = field(default_factory=lambda: torch.empty(0))
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
        self._watch()
        dtypes = self.seen[0].mixed.dtype, self.ends["final_in"].dtype
        self.limit = allowed(self.anatomy, *dtypes)
        embedded = self.ends["embedded"]
        self._same("layer 0 reads the embedding's output", self.seen[0].attention_in, embedded)
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
            return lambda tensor: setattr(owner, name, tensor.detach())

        with hooks() as handles:
            handles += [
                on_output(self.anatomy.embedding, into(self.ends, "embedded")),
                on_input(self.anatomy.final_norm, into(self.ends, "final_in")),
                on_output(self.anatomy.final_norm, into(self.ends, "final_normed")),
            ]
            for layer, seen in zip(self.anatomy.layers, self.seen, strict=True):
                handles += [
                    on_input(layer.attention_norm, into(seen, "attention_in")),
                    on_output(layer.attention_norm, into(seen, "attention_normed")),
                    on_input(layer.output, into(seen, "mixed")),
                    on_output(layer.output, into(seen, "attention_out")),
                    on_input(layer.mlp_norm, into(seen, "mlp_in")),
                    on_output(layer.mlp_norm, into(seen, "mlp_normed")),
                    on_output(layer.mlp, into(seen, "mlp_out")),
                ]
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
        self._same(
            says + "the heads' writes sum to o_proj's output",
            self._written(index, layer, seen.mixed),
            seen.attention_out,
        )
        self._same_sum(
            says + "the MLP reads input + attention",
            seen.mlp_in,
            (seen.attention_in, seen.attention_out),
        )
        self._same_sum(
            says + "its output is input + attention + MLP", after, (seen.mlp_in, seen.mlp_out)
        )

    def _written(self, index: int, layer: Layer, mixed: Tensor) -> Tensor:
        output = linear_map(layer.output)
        if output is None:
            raise SparksError(
                f"o_proj of layer {index} ({type(layer.output).__name__}) is not affine in its "
                f"input, so a head's write is not defined: load the model without activation "
                f"quantisation"
            )
        weight, bias = output
        if weight.shape[1] % self.graph.num_heads:
            self._refuse(
                f"layer {index}: o_proj's {weight.shape[1]} inputs are no multiple of "
                f"{self.graph.num_heads} heads"
            )
        heads = mixed.unflatten(-1, (self.graph.num_heads, -1)).float()
        columns = weight.float().unflatten(1, (self.graph.num_heads, -1))
        written = torch.einsum("...hf,dhf->...d", heads, columns)
        return written if bias is None else written + bias.float()

    # -- second run --------------------------------------------------------------------------

    def _check_reads(self) -> None:
        """Rows: nothing flipped, then one row a query, key and value head.

        Of norms and MLPs the first row is enough.
        """
        with hooks() as handles:
            for index, (layer, seen) in enumerate(zip(self.anatomy.layers, self.seen, strict=True)):
                for module, output in zip(layer.projection_modules, seen.projected, strict=True):
                    handles.append(_give(module, partial(self._flipped, layer, module, output)))
                handles += [
                    _give(layer.mlp_norm, partial(_first_row, seen.mlp_normed)),
                    on_input(layer.output, partial(self._check_mixed, index)),
                    on_output(layer.mlp, partial(self._check_mlp, index)),
                ]
            final = partial(_first_row, self.ends["final_normed"])
            handles.append(_give(self.anatomy.final_norm, final))
            ids = self.other_ids.expand(1 + self.graph.attention_destinations, -1)
            logits = self._logits(ids)
        self._same("logits are read through the final norm", logits, self.ends["logits"][:1])

    def _flipped(self, layer: Layer, module: nn.Module, output: Tensor) -> Tensor:
        given = output[:1].repeat(1 + self.graph.attention_destinations, 1, 1)
        row = 1
        for item in layer.projections:
            for head in range(item.heads):
                if item.module is module:
                    start = item.start + head * item.head_dim
                    where = _POSITION if item is layer.query else slice(None)
                    given[row, where, start : start + item.head_dim] *= -1
                row += 1
        return given

    def _check_mlp(self, index: int, output: Tensor) -> None:
        expected = self.seen[index].mlp_out[:1]
        self._same(f"layer {index}: the MLP reads through its norm", output, expected)

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
            f"sparks cannot take {self.anatomy.model_type!r} apart: {what}; it needs pre-norm "
            f"layers with sequential, unscaled residual sums, as "
            f"{', '.join(CHECKED_ARCHITECTURES)} have"
        )

    def _not_finite(self, where: str) -> None:
        raise SparksError(
            f"the model's activations are not finite ({where}): its weights hold nan or inf; "
            f"restore a checkpoint from before the loss broke"
        )


def _give(module: nn.Module, make: Callable[[], Tensor]) -> RemovableHandle:
    return on_output(module, lambda _: make())


def _first_row(tensor: Tensor) -> Tensor:
    return tensor[:1]
