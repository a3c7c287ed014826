"""How much of the behaviour circuits carry: all outside them patched to its corrupted value.

Paper, section "Circuit": run the clean prompt, but let every destination read the corrupted value
of each source that no kept edge joins to it, and compare L. In steps:

1. run the corrupted continuation: what every source writes there;
2. run the clean one, a row a circuit; as each source writes, note how far its corrupted value is
   from it;
3. before a destination reads, add those distances over its edges outside the row's circuit. Query,
   key and value heads read each for themselves, as rows of one small batch.

The prefix that both prompts share is the same in every run and is not run again. The slow and plain
`patching` gives the same numbers; the tests hold this module to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparks.attribution.model_runs import Passes
from sparks.models.anatomy import Anatomy, Layer
from sparks.models.hooks import hooks, on_input, on_output


def circuit_loss(
    anatomy: Anatomy, passes: Passes, kept: Bool[Tensor, "sources destinations"]
) -> float:
    """KL(clean || clean with every edge outside `kept` patched), nats, where `model_runs` looks.

    `model_runs` holds one pair. The model must be in evaluation mode (`models.guard.undisturbed`).
    """
    runs = CircuitRuns(anatomy, passes)
    clean = runs.clean.log_softmax(-1)
    found = runs.logits(kept[None])[0].log_softmax(-1)
    return float((clean.exp() * (clean - found)).sum(-1).mean())


class CircuitRuns:
    """Runs of one pair under any number of circuits; clean and corrupted are run once.

    `model_runs` holds one pair. The model must be in evaluation mode (`models.guard.undisturbed`)
    whenever this class is made or asked, and its weights must stay as they are.
    """

    @torch.no_grad()
    def __init__(self, anatomy: Anatomy, passes: Passes) -> None:
        self._anatomy, self._passes = anatomy, passes
        self._writes = _Writes(anatomy)
        with hooks() as handles:
            self._writes.watch(handles)
            self.corrupted: Float[Tensor, "targets vocab"] = passes.run(clean=False)[0].float()
        self.clean: Float[Tensor, "targets vocab"] = passes.run(clean=True)[0].float()
        # Read before any hook hangs on the modules: an adapter is read by running it.
        self._columns = [layer.head_columns() for layer in anatomy.layers]

    @torch.no_grad()
    def logits(
        self, kept: Bool[Tensor, "circuits sources destinations"]
    ) -> Float[Tensor, "circuits targets vocab"]:
        """Output of the clean prompt with every edge outside each circuit patched, float32."""
        patched = _Patched(
            self._anatomy, self._passes, self._writes, self._columns, ~kept.to(self._passes.device)
        )
        with hooks() as handles:
            patched.watch(handles)
            return self._passes.run(clean=True, copies=len(kept)).float()


class _Writes:
    """What the embedding, each layer's heads (`on_heads_write`) and each MLP gave in one run."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.embed = torch.empty(0)
        self.mixed: list[Tensor] = []
        self.mlps: list[Tensor] = []

    def watch(self, handles: list[Any]) -> None:
        handles.append(self.anatomy.on_embed_write(self._keep_embed))
        for layer in self.anatomy.layers:
            handles += layer.on_heads_write(self.mixed.append)
            # A copy: Falcon adds the attention's output to it in place.
            handles.append(on_output(layer.mlp_writer, lambda x: self.mlps.append(x.clone())))

    def _keep_embed(self, tensor: Tensor) -> None:
        self.embed = tensor


class _Patched:
    """The hooks of the patched run."""

    def __init__(
        self,
        anatomy: Anatomy,
        passes: Passes,
        corrupted: _Writes,
        columns: Sequence[Tensor],
        outside: Bool[Tensor, "circuits sources destinations"],
    ) -> None:
        self.anatomy, self.graph, self.corrupted = anatomy, anatomy.graph, corrupted
        self.columns = columns
        edges = torch.from_numpy(anatomy.graph.edge_mask).to(passes.device)
        self.outside = (outside & edges).float()
        self.distance = torch.zeros(
            len(outside),
            anatomy.graph.num_sources,
            passes.suffix,
            anatomy.d_model,
            device=passes.device,
        )
        """Corrupted minus own write of every source that has written, in every row."""
        self.attention_in = torch.empty(0)
        self.busy = False

    def watch(self, handles: list[Any]) -> None:
        handles.append(self.anatomy.on_embed_write(self._embed_writes))
        for index, layer in enumerate(self.anatomy.layers):
            handles += layer.on_attention_read(self._attention_reads)
            for module in layer.projection_modules:
                handles.append(on_output(module, self._projection(index, layer, module)))
            handles += [
                *layer.on_heads_write(self._heads_write(index)),
                *layer.on_mlp_read(self._mlp_reads(index)),
                on_output(layer.mlp_writer, self._mlp_writes(index)),
            ]
        handles.append(on_input(self.anatomy.final_norm, self._logits_read))

    # -- writing -----------------------------------------------------------------------------

    def _embed_writes(self, tensor: Tensor) -> None:
        self.distance[:, 0] = self.corrupted.embed.float() - tensor.float()

    def _heads_write(self, index: int) -> Any:
        def see(mixed: Tensor) -> None:
            heads = self.graph.num_heads
            apart = self.corrupted.mixed[index].float() - mixed.float()
            columns = self.columns[index].unflatten(1, (heads, -1))
            first = self.graph.sources_before_attention(index)
            self.distance[:, first : first + heads] = torch.einsum(
                "cshf,dhf->chsd", apart.unflatten(-1, (heads, -1)), columns
            )

        return see

    def _mlp_writes(self, index: int) -> Any:
        def see(written: Tensor) -> None:
            apart = self.corrupted.mlps[index].float() - written.float()
            scale = self.anatomy.layers[index].scale
            self.distance[:, self.graph.mlp_row(index)] = scale * apart

        return see

    # -- reading -----------------------------------------------------------------------------

    def _moved(
        self, columns: Sequence[int], before: int
    ) -> Float[Tensor, "circuits destinations pos d_model"]:
        """What is added to the residual stream for each of `columns`, which `before` sources write.

        Sources that are yet to write have no edge to them.
        """
        outside = self.outside[:, :before, columns].transpose(1, 2)
        distance = self.distance[:, :before]
        return (outside @ distance.flatten(2)).unflatten(-1, distance.shape[2:])

    def _mlp_reads(self, index: int) -> Any:
        def see(x: Tensor) -> Tensor:
            column, before = self.graph.mlp_column(index), self.graph.sources_before_mlp(index)
            return (x.float() + self._moved([column], before)[:, 0]).to(x.dtype)

        return see

    def _logits_read(self, x: Tensor) -> Tensor:
        last, before = self.graph.num_destinations - 1, self.graph.num_sources
        return (x.float() + self._moved([last], before)[:, 0]).to(x.dtype)

    def _attention_reads(self, x: Tensor) -> None:
        self.attention_in = x

    def _projection(self, index: int, layer: Layer, module: Any) -> Any:
        """Each head's slice of a projection, from what that head alone reads."""
        columns, places = self._heads_of(index, layer, module)
        before = self.graph.sources_before_attention(index)

        def see(output: Tensor) -> Tensor | None:
            if self.busy:
                return None
            x = self.attention_in
            read = (x.float()[:, None] + self._moved(columns, before)).to(x.dtype)
            self.busy = True  # the module is watched too
            try:
                projected = module(layer.normed(read.flatten(0, 1)))
            finally:
                self.busy = False
            projected = projected.unflatten(0, (len(x), -1))
            output = output.clone()
            for row, place in enumerate(places):
                output[:, :, place] = projected[:, row, :, place]
            return output

        return see

    def _heads_of(
        self, index: int, layer: Layer, module: nn.Module
    ) -> tuple[list[int], list[slice]]:
        """Columns of the heads that a module projects, and their features in its output."""
        columns: list[int] = []
        places: list[slice] = []
        column = self.graph.attention_columns(index).start
        for item in layer.projections:
            for head in range(item.heads):
                if item.module is module:
                    columns.append(column)
                    places.append(item.place(head))
                column += 1
        return columns, places
