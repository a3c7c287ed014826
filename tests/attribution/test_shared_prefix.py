"""What the prefixes of all pairs begin with is run once, and nothing of a snapshot changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import AssertClose
from models import KINDS, VOCAB, tiny_model, token_pair
from torch import nn

from sparks.attribution import model_runs
from sparks.attribution.eap_ig import edge_attribution, node_attribution
from sparks.attribution.faithfulness.measuring import faithfulness_curves
from sparks.attribution.model_runs import alike, common_length, shared_prefixes
from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.models.anatomy_proof import take_apart
from sparks.probes.pairs import TokenizedProbes, TokenPair

SHARED = 10


def pairs_of(*rests: int, suffix: int = 3, shared: int = SHARED) -> list[TokenPair]:
    """Pairs whose prefixes begin with the same `shared` tokens and go on with their own."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(VOCAB, (len(rests), 40), generator=generator)
    ids[:, :shared] = ids[0, :shared].clone()
    ids[:, shared] = torch.arange(len(rests))  # they part here
    return [
        TokenPair(row[: shared + rest], row[30 : 30 + suffix], row[35 : 35 + suffix])
        for row, rest in zip(ids.tolist(), rests, strict=True)
    ]


PAIRS = pairs_of(4, 0, 7) + pairs_of(6, suffix=2)
"""One has nothing but what is shared; one, at another length of continuation, runs alone."""


def unshared(monkeypatch: pytest.MonkeyPatch, run: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(model_runs, "alike", lambda prefixes: [])
        return run()


def shapes(model: nn.Module, run: Any) -> list[tuple[int, ...]]:
    """Of the token ids of every run of the model."""
    seen: list[tuple[int, ...]] = []

    def see(_: nn.Module, args: Any) -> None:
        if not args[0].is_floating_point():
            seen.append(tuple(args[0].shape))

    handle = model.get_input_embeddings().register_forward_pre_hook(see)
    run()
    handle.remove()
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_shared_and_not_shared_score_alike(
    kind: str, monkeypatch: pytest.MonkeyPatch, assert_close: AssertClose
) -> None:
    model = tiny_model(kind)
    shared = edge_attribution(model, PAIRS, points=4)
    alone = unshared(monkeypatch, lambda: edge_attribution(model, PAIRS, points=4))
    assert_close("same", shared.scores, alone.scores)
    assert_close("same", shared.loss_corrupted, alone.loss_corrupted)
    nodes = node_attribution(model, PAIRS, points=4).scores
    assert_close(
        "same",
        nodes,
        unshared(monkeypatch, lambda: node_attribution(model, PAIRS, points=4)).scores,
    )


def test_secants_share_it_too(monkeypatch: pytest.MonkeyPatch, assert_close: AssertClose) -> None:
    model = tiny_model("llama-gqa")
    edge_attribution(model, PAIRS, method="secant")  # the architecture is proved
    found = edge_attribution(model, PAIRS, method="secant").scores
    seen = shapes(model, lambda: edge_attribution(model, PAIRS, method="secant"))
    assert (1, SHARED) in seen
    alone = unshared(monkeypatch, lambda: edge_attribution(model, PAIRS, method="secant"))
    assert_close("same", found, alone.scores)


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen3", "lora-llama"])
def test_what_is_shared_is_run_once_by_a_snapshot_with_all_its_circuits(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(kind)
    config = SnapshotConfig(points=2, threshold=0, top_n=200)

    def snapshot() -> Any:
        return take_snapshot(model, probes(PAIRS), config, progress=False)

    snapshot()  # the architecture is proved
    whole = [shape for shape in shapes(model, snapshot) if shape[1] >= SHARED]
    assert whole == [(1, SHARED)]
    without = unshared(monkeypatch, lambda: shapes(model, snapshot))
    assert sum(shape[0] for shape in without if shape[1] >= SHARED) == len(PAIRS)
    found, expected = snapshot(), unshared(monkeypatch, snapshot)
    for name in ("loss_circuit", "loss_corrupted", "node_totals"):
        close(getattr(found, name), getattr(expected, name))


def test_curves_of_faithfulness_are_those_of_whole_prefixes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama-gqa")

    def curves() -> Any:
        config = SnapshotConfig(points=3)
        return faithfulness_curves(model, probes(PAIRS), config=config, progress=False)

    assert (1, SHARED) in shapes(model, curves)
    found, expected = curves(), unshared(monkeypatch, curves)
    close(found.kept, expected.kept)
    close(found.removed, expected.removed)


def test_the_padding_behind_what_is_shared_is_never_looked_at(
    monkeypatch: pytest.MonkeyPatch, assert_close: AssertClose
) -> None:
    model = tiny_model("llama-gqa")
    pairs = pairs_of(2, 6)
    expected = edge_attribution(model, pairs, points=3).scores

    def spoil(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        spoilt = output.clone()
        if output.shape[:2] == (2, 6):  # the rests of the prefixes, the shorter one first
            spoilt[0, :4] = float("nan")
        return spoilt

    attention = model.model.layers[-1].self_attn
    for projection in (attention.k_proj, attention.v_proj):
        projection.register_forward_hook(spoil)
    assert_close("same", edge_attribution(model, pairs, points=3).scores, expected)


@pytest.mark.parametrize(
    ("kind", "pairs", "tokens"),
    [
        ("llama-gqa", PAIRS, SHARED),
        ("llama-gqa", PAIRS[:1], 0),  # nobody to share with
        ("llama-gqa", pairs_of(4, 5, shared=7), 0),  # too short to be worth a run
        ("mistral-window", PAIRS, 0),  # the window would count the padding
        ("mistral-window", pairs_of(3, 3), 0),
    ],
)
def test_it_is_shared_where_that_pays(kind: str, pairs: list[TokenPair], tokens: int) -> None:
    with torch.no_grad():
        for found in shared_prefixes(take_apart(tiny_model(kind)), pairs):
            assert found.tokens == tokens
            assert bool(found.layers) == bool(tokens)


def test_probes_of_two_templates_share_two_prefixes(
    monkeypatch: pytest.MonkeyPatch, assert_close: AssertClose
) -> None:
    model = tiny_model("llama-gqa")
    others = [
        TokenPair([*range(SHARED + 2), 30 + n, *range(n)], pair.clean, pair.corrupted)
        for n, pair in enumerate(PAIRS[:2])
    ]
    pairs = [PAIRS[0], others[0], PAIRS[1], token_pair(20, 3), others[1]]
    with torch.no_grad():
        shared = shared_prefixes(take_apart(model), pairs)
    assert [one.tokens for one in shared] == [SHARED, SHARED + 2, SHARED, 0, SHARED + 2]
    found = edge_attribution(model, pairs, points=3).scores
    alone = unshared(monkeypatch, lambda: edge_attribution(model, pairs, points=3)).scores
    assert_close("same", found, alone)


def test_sets_are_split_where_the_parts_spare_twice_as_much() -> None:
    long, short = list(range(40)), list(range(9))
    same = [[*long, n] for n in range(5)]
    other = [[*short, 50, *long, n] for n in range(5)]
    assert alike(same + other) == [([0, 1, 2, 3, 4], 40), ([5, 6, 7, 8, 9], 50)]
    # Two tasks behind one long template stay together.
    tasks = [[*long, 50, 51, 52, n] for n in range(5)] + [[*long, 60, 61, n] for n in range(5)]
    assert alike(tasks) == [(list(range(10)), 40)]
    assert alike([[n] * 20 for n in range(4)]) == []  # nothing in common
    assert alike([long, long]) == [([0, 1], 40)]
    assert alike([long]) == []


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([[1, 2, 3], [1, 2, 4], [1, 2]], 2),
        ([[5], [6]], 0),
        ([[], [1]], 0),
        ([[7, 8]], 2),
    ],
)
def test_the_common_length_is_that_of_all_rows(rows: list[list[int]], count: int) -> None:
    assert common_length(rows) == count


def probes(pairs: list[TokenPair]) -> TokenizedProbes:
    names = tuple(f"p{number}" for number in range(len(pairs)))
    return TokenizedProbes(tuple(pairs), names, ("",) * len(pairs))


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-4, atol=1e-5
    )
