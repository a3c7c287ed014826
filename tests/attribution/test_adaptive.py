"""Points that grow until the completeness gap is small: which pairs get them, at what cost."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conftest import AssertClose
from models import tiny_model, token_pair
from safetensors.numpy import save_file
from test_packing import long_pairs
from tiny_training import PROBES, tiny_trainer
from tokenizers_made_here import byte_level_tokenizer
from torch import Tensor, nn

from sparks.attribution import eap_ig as attribution
from sparks.attribution.eap_ig import (
    edge_attribution,
    estimate_memory,
    iter_edge_attribution,
    node_attribution,
)
from sparks.attribution.model_runs import Passes
from sparks.attribution.quadrature import Strata, added_alphas, alphas_of, grown, largest
from sparks.attribution.scores import EdgeScores
from sparks.attribution.snapshot import SCHEMA_VERSION, Snapshot
from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.anatomy_proof import take_apart
from sparks.runs.run_folder import RunStore
from sparks.training.callback import SparksCallback
from sparks.training.replay import replay_checkpoints

pytestmark = pytest.mark.filterwarnings(
    # transformers and trl among themselves, at the versions pinned.
    "ignore:.*is deprecated.*:FutureWarning",
    "ignore:.*pin_memory.*:UserWarning",
)

RULES = ("midpoint", "left", "right", "pilot")
PAIRS = [
    token_pair(9, 5),
    token_pair(0, 5),
    token_pair(4, 1),
    token_pair(2, 5),
    token_pair(12, 3),
    token_pair(0, 1),
    token_pair(7, 5),
]
FIRST, MOST = 2, 18
"""With three times the points each time: 2, 6, 18."""


def ladder(rule: str, first: int = FIRST, most: int = MOST) -> list[int]:
    """Every m that a pair can end with."""
    found = [first]
    while grown(rule, found[-1]) <= most:
        found.append(grown(rule, found[-1]))
    return found


class Fixed(dict[int, EdgeScores]):
    """Edge scores at each m of the ladder; what the embeddings add up to at each, [m, pairs]."""

    found: Tensor


def fixed(model: nn.Module, pairs: Any = PAIRS, rule: Any = "midpoint", **settings: Any) -> Fixed:
    settings |= {"quadrature": rule}
    by_steps = Fixed(
        {steps: edge_attribution(model, pairs, points=steps, **settings) for steps in ladder(rule)}
    )
    nodes = [node_attribution(model, pairs, points=steps, **settings) for steps in by_steps]
    by_steps.found = torch.stack([one.scores[:, 0] for one in nodes])
    return by_steps


def expected_points(by_steps: Fixed, tolerance: float) -> list[int]:
    """The first m at which the pair's gap is small enough, or no longer moves, or the last."""
    losses = next(iter(by_steps.values())).loss_corrupted.tolist()
    return [
        stop(list(by_steps), found, loss, tolerance)
        for found, loss in zip(by_steps.found.T.tolist(), losses, strict=True)
    ]


def stop(steps: list[int], found: list[float], loss: float, tolerance: float) -> int:
    for index, m in enumerate(steps):
        missed = abs(found[index] - loss)
        if missed <= tolerance * loss:
            return m
        if index and abs(found[index] - found[index - 1]) <= 0.25 * missed:
            return m
    return steps[-1]


def middling(by_steps: Fixed) -> float:
    """A tolerance that some pairs meet early, some late, and that no gap is near."""
    gaps = torch.cat([one.completeness_gap for one in by_steps.values()]).sort().values
    gaps = gaps[gaps <= 1]  # as a tolerance is
    between = [(float(high - low), float(high + low) / 2) for low, high in pairwise(gaps)]
    return max(item for item in between if len(set(expected_points(by_steps, item[1]))) > 1)[1]


# -- points ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [1, 2, 5, 12, 100])
def test_old_and_added_points_are_those_of_the_larger_m(rule: Any, steps: int) -> None:
    both = sorted(alphas_of(rule, steps) + added_alphas(rule, steps))
    np.testing.assert_allclose(both, alphas_of(rule, grown(rule, steps)), rtol=1e-12)


def test_points_by_hand() -> None:
    assert added_alphas("midpoint", 1) == [1 / 6, 5 / 6]
    assert added_alphas("left", 2) == [1 / 4, 3 / 4]
    assert added_alphas("right", 1) == [1 / 2]
    assert [grown(rule, 4) for rule in RULES] == [12, 8, 8, 12]
    assert [largest(rule, 4, 100) for rule in RULES] == [36, 64, 64, 36]
    assert largest("midpoint", 4, 4) == 4


def test_strata_by_hand() -> None:
    """|dL| of 0, 9 and 1 over thirds: roots 0, 3/4, 1/4; with the even part 0.1, 0.625, 0.275."""
    strata = Strata.of(torch.tensor([[10.0, 10.0, 1.0, 0.0], [4.0, 4.0, 4.0, 4.0]]), 2)
    half = 1 / 3 + (0.5 - 0.1) / 0.625 / 3
    np.testing.assert_allclose(strata.borders, [[0, half, 1], [0, 0.5, 1]], rtol=1e-12)
    alphas, weights = strata.place(alphas_of("pilot", 2))
    np.testing.assert_allclose(alphas, [[half / 2, (1 + half) / 2], [0.25, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(weights, [[2 * half, 2 - 2 * half], [1, 1]], rtol=1e-6)
    thirds, same = strata.only([0]).place(added_alphas("pilot", 2))
    expected = [half / 6, 5 * half / 6, half + (1 - half) / 6, half + 5 * (1 - half) / 6]
    np.testing.assert_allclose(thirds[0], expected, rtol=1e-6)
    np.testing.assert_allclose(same[0], weights[0].repeat_interleave(2), rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 5, 36])
def test_strata_cover_the_path(steps: int) -> None:
    losses = torch.rand(3, 8, generator=torch.Generator().manual_seed(1))
    strata = Strata.of(losses, steps)
    for many in (steps, 3 * steps):
        alphas, weights = strata.place(alphas_of("pilot", many))
        assert bool((alphas.diff(dim=1) > 0).all())
        np.testing.assert_allclose(weights.mean(1), 1, rtol=1e-6)
        # A midpoint rule is exact for what is linear in each stratum.
        np.testing.assert_allclose((weights * alphas).mean(1), 0.5, rtol=1e-5)


# -- scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES[:3])  # a pilot's strata are those of the first m
@pytest.mark.parametrize(
    ("kind", "budget"), [("llama-gqa", 4.0), ("llama-gqa", 1e-9), ("starcoder2", 4.0)]
)
def test_each_pair_has_the_scores_of_the_m_it_ended_with(
    kind: str, rule: Any, budget: float, assert_close: AssertClose
) -> None:
    model = tiny_model(kind)
    by_steps = fixed(model, rule=rule)
    tolerance = middling(by_steps)
    found = edge_attribution(
        model, PAIRS, points=FIRST, tolerance=tolerance, max_points=MOST, quadrature=rule,
        memory_gib=budget,
    )  # fmt: skip
    expected = expected_points(by_steps, tolerance)
    assert found.points.tolist() == expected
    assert len(set(expected)) > 1
    for index, steps in enumerate(expected):
        one = by_steps[steps]
        assert_close("same", found.scores[index], one.scores[index])
        assert found.loss_corrupted[index] == pytest.approx(float(one.loss_corrupted[index]))
        gap = float(one.completeness_gap[index])
        assert float(found.completeness_gap[index]) == pytest.approx(gap, abs=1e-5)


@pytest.mark.parametrize("positions", ["last", "all"])
def test_nodes_grow_as_edges_do(positions: Any, assert_close: AssertClose) -> None:
    model = tiny_model("qwen3")
    tolerance = middling(fixed(model, positions=positions))
    settings = {"points": FIRST, "max_points": MOST, "positions": positions}
    nodes = node_attribution(model, PAIRS, tolerance=tolerance, **settings)
    edges = edge_attribution(model, PAIRS, tolerance=tolerance, **settings)
    assert nodes.points.tolist() == edges.points.tolist()
    assert len(set(nodes.points.tolist())) > 1
    for index, steps in enumerate(nodes.points.tolist()):
        one = node_attribution(model, PAIRS, points=steps, positions=positions)
        assert_close("same", nodes.scores[index], one.scores[index])


def test_packed_pairs_grow_too(assert_close: AssertClose) -> None:
    model, pairs = tiny_model("llama-gqa"), long_pairs(45, 30, 3, 40)
    by_steps = fixed(model, pairs)
    tolerance = middling(by_steps)
    found = edge_attribution(model, pairs, points=FIRST, tolerance=tolerance, max_points=MOST)
    assert found.points.tolist() == expected_points(by_steps, tolerance)
    assert len(set(found.points.tolist())) > 1
    for index, steps in enumerate(found.points.tolist()):
        assert_close("same", found.scores[index], by_steps[steps].scores[index])


def test_prefix_and_ends_are_run_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("_run_prefix", "endpoints"):
        real = getattr(Passes, name)

        def counted(self: Passes, *args: Any, name: str = name, real: Any = real) -> Any:
            calls.append(name)
            return real(self, *args)

        monkeypatch.setattr(Passes, name, counted)
    model = tiny_model("llama-gqa")
    edge_attribution(model, PAIRS, points=FIRST)
    calls.clear()
    edge_attribution(model, PAIRS, points=FIRST)
    once = sorted(calls)
    calls.clear()
    edge_attribution(model, PAIRS, points=FIRST, tolerance=1e-9, max_points=MOST)
    assert sorted(calls) == once


@pytest.mark.parametrize("kind", ["llama-gqa", "starcoder2"])
def test_a_pilot_and_midpoints_meet(kind: str, assert_close: AssertClose) -> None:
    model = tiny_model(kind)
    midpoints = edge_attribution(model, PAIRS, points=150).scores
    placed = edge_attribution(model, PAIRS, points=48, quadrature="pilot")
    grew = edge_attribution(
        model, PAIRS, points=16, tolerance=1e-9, max_points=48, quadrature="pilot"
    )
    assert set(grew.points.tolist()) == {48}
    for found in (placed.scores, grew.scores):
        assert 0 < float((found - midpoints).norm() / midpoints.norm()) < 5e-3
    nodes = node_attribution(model, PAIRS, points=48, quadrature="pilot")
    assert_close("same", nodes.completeness_gap + 1, placed.completeness_gap + 1)
    alone = [
        edge_attribution(model, [pair], points=48, quadrature="pilot").scores for pair in PAIRS
    ]
    assert_close("same", placed.scores, torch.cat(alone))


@pytest.mark.parametrize("positions", ["last", "all"])
def test_the_loss_on_the_path_ends_where_the_runs_do(positions: Any) -> None:
    model = tiny_model("llama-gqa").eval()
    passes = Passes(take_apart(model), [PAIRS[0], PAIRS[3]], positions)
    ends = passes.endpoints()
    found = passes.losses(ends, [0.0, 0.5, 1.0])
    torch.testing.assert_close(found[:, 0], ends.loss_corrupted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[:, 2], torch.zeros(2), rtol=0, atol=1e-6)
    assert bool((found[:, 1] > 0).all())


# -- what is run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [edge_attribution, node_attribution])
def test_only_what_is_new_is_run_and_what_is_spared_is_told(score: Any) -> None:
    model = tiny_model("llama-gqa")
    tolerance = middling(fixed(model))
    done: list[int] = []
    spared: list[int] = []
    found = score(
        model, PAIRS, points=FIRST, tolerance=tolerance, max_points=MOST, progress=done.append,
        spared=spared.append,
    )  # fmt: skip
    assert sum(done) == int(found.points.sum())
    assert FIRST * len(PAIRS) < sum(done) < MOST * len(PAIRS)
    assert sum(done) + sum(spared) == largest("midpoint", FIRST, MOST) * len(PAIRS)
    assert min(spared) >= 0


def test_pairs_come_as_they_are_done() -> None:
    model = tiny_model("llama-gqa")
    tolerance = middling(fixed(model))
    seen = []
    for indices, part in iter_edge_attribution(
        model, PAIRS, points=FIRST, tolerance=tolerance, max_points=MOST
    ):
        assert len(set(part.points.tolist())) == 1
        assert len(part.scores) == len(indices)
        assert all(parameter.requires_grad for parameter in model.parameters())
        seen += indices
    assert sorted(seen) == list(range(len(PAIRS)))


def test_a_gap_that_stays_large_stops_at_the_cap() -> None:
    model = tiny_model("llama-gqa")
    for most, expected in ((17, 6), (18, 18), (2, 2)):
        found = edge_attribution(model, PAIRS, points=2, tolerance=1e-12, max_points=most)
        assert found.points.tolist() == [expected] * len(PAIRS)


def test_a_gap_that_is_small_at_once_costs_nothing() -> None:
    model = tiny_model("llama-gqa")
    plain = edge_attribution(model, PAIRS, points=6)
    found = edge_attribution(model, PAIRS, points=6, tolerance=1)
    assert torch.equal(found.scores, plain.scores)
    assert found.points.tolist() == plain.points.tolist() == [6] * len(PAIRS)


def test_gradients_that_are_not_finite_are_refused_at_once() -> None:
    model = tiny_model("llama-gqa")
    root_of_nothing = lambda _, __, out: out + (out - out).abs().sqrt()  # noqa: E731
    model.model.layers[0].mlp.register_forward_hook(root_of_nothing)
    done: list[int] = []
    with pytest.raises(SparksError, match="attribution scores are not finite"):
        edge_attribution(model, PAIRS[:1], points=2, tolerance=0.1, progress=done.append)
    assert sum(done) == 2


def test_a_gap_of_rounding_is_not_chased() -> None:
    """In bfloat16 some gaps end near 1 %, however many points there are."""
    model = tiny_model("llama-gqa").to(torch.bfloat16)
    found = edge_attribution(model, PAIRS[:2], points=12, tolerance=1e-3, max_points=972)
    assert bool((found.completeness_gap > 1e-3).all())
    assert int(found.points.max()) < 972
    exact = edge_attribution(tiny_model("llama-gqa"), PAIRS[:2], points=12, tolerance=1e-3)
    assert bool((exact.completeness_gap <= 1e-3).all())


def test_growing_stays_in_the_budget() -> None:
    model = tiny_model("llama-gqa")
    ample = estimate_memory(model, PAIRS, points=20, tolerance=0.01, max_points=324)
    assert ample.rows > 20 * ample.pairs
    for share in (0.3, 0.5, 0.8):
        budget = share * ample.peak_gib
        found = estimate_memory(
            model, PAIRS, points=20, tolerance=0.01, max_points=324, memory_gib=budget
        )
        assert found.fits
        assert found.peak_gib <= budget


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 0}, "tolerance must be above 0 and at most 1, got 0"),
        ({"tolerance": float("nan")}, "tolerance must be above 0 and at most 1, got nan"),
        ({"tolerance": "5%"}, "tolerance must be above 0 and at most 1, got '5%'"),
        (
            {"tolerance": 5},
            "tolerance must be above 0 and at most 1, got 5: it is a share, so 0.05 for 5 %",
        ),
        ({"tolerance": 1e9}, r"tolerance must be above 0 and at most 1, got 1000000000\.0"),
        ({"max_points": 0}, "max_points must be a whole number, at least 1, got 0"),
        ({"max_points": 2.5}, r"max_points must be a whole number, at least 1, got 2\.5"),
        (
            {"points": 20, "tolerance": 0.1, "max_points": 10},
            r"max_points must be at least points \(20\), got 10: raise it, or leave tolerance out",
        ),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SparksError, match=message) as caught:
        SnapshotConfig(**settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(SparksError, match=message):
        edge_attribution(tiny_model("llama-gqa"), PAIRS, **settings)


def test_what_points_and_tolerance_mean_together() -> None:
    assert SnapshotConfig(points=100, max_points=10).most_points == 100
    started = SnapshotConfig(points=20, tolerance=0.1, max_points=90)
    assert (started.first_points, started.most_points) == (20, 90)
    told = SnapshotConfig(tolerance=0.1)
    assert (told.first_points, told.most_points) == (12, 324)
    assert SnapshotConfig().most_points == 4
    for config in (SnapshotConfig(), started, told):
        assert SnapshotConfig.from_dict(config.as_dict()) == config


def test_a_cap_says_nothing_where_points_are_fixed() -> None:
    def measured(**settings: Any) -> dict[str, Any]:
        return SnapshotConfig(**settings).measurement()

    assert measured(points=9, max_points=50) == measured(points=9)
    assert measured(tolerance=0.1, max_points=50) != measured(tolerance=0.1)
    assert measured(tolerance=0.1) != measured(tolerance=0.2)
    before = SnapshotConfig(points=9).as_dict()
    del before["tolerance"], before["max_points"]  # a snapshot that is older than they are
    assert SnapshotConfig.from_dict(before).measurement() == measured(points=9)


# -- snapshots -------------------------------------------------------------------------------------

GROWING = {"points": 2, "tolerance": 0.02, "max_points": 18}


def snapshot_of(model: nn.Module, **settings: Any) -> Snapshot:
    tokenized = PROBES.tokenize(byte_level_tokenizer(), max_suffix_tokens=8)
    config = SnapshotConfig(threshold=1e-6, max_suffix_tokens=8, **settings)
    return take_snapshot(model, tokenized, config, progress=False)


def test_a_snapshot_tells_the_points_of_each_probe() -> None:
    model = tiny_model("llama-gqa", vocab_size=len(byte_level_tokenizer()))
    same = snapshot_of(model, points=2)
    assert same.points.tolist() == [2, 2, 2]
    tolerance = float(np.median(same.completeness_gap))
    found = snapshot_of(model, **GROWING | {"tolerance": tolerance})
    rough = same.completeness_gap > tolerance
    assert rough.any()
    assert not rough.all()
    np.testing.assert_array_equal(found.points > 2, rough)
    np.testing.assert_array_equal(found.completeness_gap[~rough], same.completeness_gap[~rough])


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"points": 4}, 4 * 3),
        ({"points": 2, "tolerance": 1e-9, "max_points": 18}, 18 * 3),  # all go to the end
        ({"points": 2, "tolerance": None, "max_points": 161}, None),  # some do, some do not
        ({"points": 6, "tolerance": 1, "max_points": 54}, 6 * 3),  # none grows
    ],
)
def test_the_bar_only_goes_forward(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], needed: int | None
) -> None:
    seen: list[tuple[float, float]] = []

    class Bar(attribution.tqdm):  # type: ignore[misc]
        def update(self, rows: float | None = 1) -> None:
            seen.append((self.n, self.total))
            super().update(rows)
            seen.append((self.n, self.total))

    monkeypatch.setattr(attribution, "tqdm", Bar)
    model = tiny_model("llama-gqa", vocab_size=len(byte_level_tokenizer()))
    tokenized = PROBES.tokenize(byte_level_tokenizer(), max_suffix_tokens=8)
    if needed is None:
        gaps = snapshot_of(model, points=2).completeness_gap
        settings = settings | {"tolerance": float(np.median(gaps))}
        seen.clear()
    config = SnapshotConfig(memory_gib=1e-9, **settings)  # a pair and a point at a time
    found = take_snapshot(model, tokenized, config)
    shares = [done / total for done, total in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert len(set(shares)) > 3
    assert needed is None or found.points.sum() == needed
    if needed is None:
        assert len(set(found.points.tolist())) > 1


def test_points_are_stored_and_an_older_file_has_those_of_its_settings(tmp_path: Any) -> None:
    model = tiny_model("llama-gqa", vocab_size=len(byte_level_tokenizer()))
    store, snapshot = RunStore(tmp_path), snapshot_of(model, **GROWING)
    store.save(snapshot)
    np.testing.assert_array_equal(store.load(0).points, snapshot.points)
    assert store.load(0).points.dtype == np.int32
    arrays, metadata = snapshot.to_arrays()
    del arrays["points"], arrays["grid_active"]
    header = metadata["sparks"].replace(f'"schema": {SCHEMA_VERSION}', '"schema": 1')
    header = header.replace('"grid":', '"no grid":')
    save_file(arrays, store.file(0), {"sparks": header})
    assert store.load(0).points.tolist() == [2, 2, 2]


def test_callback_and_replay_measure_with_the_tolerance(tmp_path: Any) -> None:
    settings = GROWING | {"threshold": 1e-6, "tolerance": 1e-9, "faithfulness": False}
    settings |= {"quadrature": "pilot"}
    watcher = SparksCallback(PROBES, report=False, progress=False, **settings)
    trainer = tiny_trainer(tmp_path, callbacks=[watcher], max_steps=2)
    trainer.train()
    snapshots = RunStore.find(tmp_path).read().snapshots
    for snapshot in snapshots:
        assert (snapshot.points > 2).all()
        assert snapshot.meta.config["quadrature"] == "pilot"
    replayed = replay_checkpoints(
        [tmp_path / "checkpoint-2"], PROBES, output_dir=tmp_path / "again", device="cpu",
        progress=False, config=SnapshotConfig(**settings),
    )  # fmt: skip
    np.testing.assert_array_equal(replayed.load(2).points, snapshots[-1].points)
