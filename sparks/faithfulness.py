"""How much of the behaviour a circuit carries: all outside it patched to its corrupted value.

Paper, section "Circuit": run the clean prompt, but let every destination read the corrupted value
of each source that no kept edge joins to it, and compare L. In steps:

1. run the corrupted continuation: what every source writes there;
2. run the clean one; as each source writes, note how far its corrupted value is from it;
3. before a destination reads, add those distances over its edges outside the circuit. Query, key
   and value heads read each for themselves, as rows of one small batch.

The prefix that both prompts share is the same in every run and is not run again. The slow and plain
`patching` gives the same numbers; the tests hold this module to it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sparks.anatomy import Anatomy, Layer
from sparks.modules import hooks, linear_map, on_input, on_output
from sparks.passes import Passes


def circuit_loss(
    anatomy: Anatomy, passes: Passes, kept: Bool[Tensor, "sources destinations"]
) -> float:
    """KL(clean || clean with every edge outside `kept` patched), nats, where `passes` looks.

    `passes` holds one pair. The model must be in evaluation mode (`guard.undisturbed`).
    """
    with torch.no_grad():
        corrupted = _Writes(anatomy, passes)
        with hooks() as handles:
            corrupted.watch(handles)
            passes.run(clean=False)
        clean = passes.run(clean=True).float().log_softmax(-1)
        patched = _Patched(anatomy, passes, corrupted, ~kept.to(passes.device))
        with hooks() as handles:
            patched.watch(handles)
            found = passes.run(clean=True).float().log_softmax(-1)
        return float((clean.exp() * (clean - found)).sum(-1).mean())


class _Writes:
    """What the embedding, each layer's heads (before `o_proj`) and each MLP gave in one run."""

    def __init__(self, anatomy: Anatomy, passes: Passes) -> None:
        self.anatomy, self.passes = anatomy, passes
        self.embed = torch.empty(0)
        self.mixed: list[Tensor] = []
        self.mlps: list[Tensor] = []

    def watch(self, handles: list[Any]) -> None:
        handles.append(on_output(self.anatomy.embedding, self._keep_embed))
        for layer in self.anatomy.layers:
            handles.append(on_input(layer.output, self.mixed.append))
            handles.append(on_output(layer.mlp, self.mlps.append))

    def _keep_embed(self, tensor: Tensor) -> None:
        self.embed = tensor


class _Patched:
    """The hooks of the patched run."""

    def __init__(
        self,
        anatomy: Anatomy,
        passes: Passes,
        corrupted: _Writes,
        outside: Bool[Tensor, "sources destinations"],
    ) -> None:
        self.anatomy, self.graph, self.corrupted = anatomy, anatomy.graph, corrupted
        edges = torch.from_numpy(anatomy.graph.edge_mask).to(passes.device)
        self.outside = (outside & edges).float()
        self.distance = torch.zeros(
            anatomy.graph.num_sources, passes.suffix, anatomy.d_model, device=passes.device
        )
        """Corrupted minus own write of every source that has written."""
        # Read before any hook hangs on the modules: an adapter is read by running it.
        self.columns = [_weight(layer.output) for layer in anatomy.layers]
        self.attention_in = torch.empty(0)
        self.busy = False

    def watch(self, handles: list[Any]) -> None:
        handles.append(on_output(self.anatomy.embedding, self._embed_writes))
        for index, layer in enumerate(self.anatomy.layers):
            handles.append(on_input(layer.attention_norm, self._attention_reads))
            for module in layer.projection_modules:
                handles.append(on_output(module, self._projection(index, layer, module)))
            handles += [
                on_input(layer.output, self._heads_write(index)),
                on_input(layer.mlp_norm, self._reader(self.graph.mlp_column(index))),
                on_output(layer.mlp, self._mlp_writes(index)),
            ]
        handles.append(on_input(self.anatomy.final_norm, self._reader(-1)))

    def _embed_writes(self, tensor: Tensor) -> None:
        self.distance[0] = self.corrupted.embed[0].float() - tensor[0].float()

    def _heads_write(self, index: int) -> Any:
        def see(mixed: Tensor) -> None:
            heads = self.graph.num_heads
            apart = (self.corrupted.mixed[index][0].float() - mixed[0].float()).unflatten(
                -1, (heads, -1)
            )
            columns = self.columns[index].float().unflatten(1, (heads, -1))
            first = self.graph.sources_before_attention(index)
            self.distance[first : first + heads] = torch.einsum("shf,dhf->hsd", apart, columns)

        return see

    def _mlp_writes(self, index: int) -> Any:
        def see(written: Tensor) -> None:
            apart = self.corrupted.mlps[index][0].float() - written[0].float()
            self.distance[self.graph.sources_before_mlp(index)] = apart

        return see

    def _reader(self, column: int) -> Any:
        def see(x: Tensor) -> Tensor:
            moved = torch.einsum("u,usd->sd", self.outside[:, column], self.distance)
            return (x.float() + moved).to(x.dtype)

        return see

    def _attention_reads(self, x: Tensor) -> None:
        if not self.busy:
            self.attention_in = x

    def _projection(self, index: int, layer: Layer, module: Any) -> Any:
        """Each head's slice of a projection, from what that head alone reads."""

        def see(output: Tensor) -> Tensor | None:
            if self.busy:
                return None
            columns = self.graph.attention_columns(index)
            moved = torch.einsum("uh,usd->hsd", self.outside[:, columns], self.distance)
            read = (self.attention_in.float() + moved).to(self.attention_in.dtype)
            self.busy = True  # the modules below are watched too
            try:
                projected = module(layer.attention_norm(read))
            finally:
                self.busy = False
            output = output.clone()
            row = 0
            for item in layer.projections:
                for head in range(item.heads):
                    if item.module is module:
                        start = item.start + head * item.head_dim
                        place = slice(start, start + item.head_dim)
                        output[0, :, place] = projected[row, :, place]
                    row += 1
            return output

        return see


def _weight(module: nn.Module) -> Tensor:
    found = linear_map(module)
    assert found is not None  # take_apart has checked it
    return found[0]
