"""Circuits under a grid of settings: the same as one setting at a time, and free of scale."""

from __future__ import annotations

import numpy as np
import pytest
from factories import make_snapshot

from sparks.attribution.circuit import GRID, SHARES, THRESHOLDS, extract_circuit, heads_of_grid
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph

GRAPH = Graph(num_layers=4, num_heads=6, num_kv_heads=3)


def scores(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (GRAPH.num_sources, GRAPH.num_destinations)
    values = rng.standard_normal(shape) * rng.lognormal(-5, 1, shape)
    return (values * GRAPH.edge_mask).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_each_setting_is_the_circuit_of_that_setting(seed):
    values, loss = scores(seed), 0.5
    held = heads_of_grid(values, GRAPH, loss)
    assert held.shape == (len(GRID), 4, 6)
    for index, (share, tau) in enumerate(GRID):
        config = SnapshotConfig(top_share=share, threshold=tau * loss)
        np.testing.assert_array_equal(held[index], extract_circuit(values, GRAPH, config).heads)
    assert 0 < held.mean() < 1


@pytest.mark.parametrize("factor", [2.0**-10, 8.0, 2.0**20])
def test_the_scale_of_l_does_not_matter(factor):
    values = scores()
    scaled = heads_of_grid(values * np.float32(factor), GRAPH, 1.5 * factor)
    np.testing.assert_array_equal(scaled, heads_of_grid(values, GRAPH, 1.5))


def test_looser_settings_hold_what_stricter_ones_hold():
    held = heads_of_grid(scores(), GRAPH, 1.5).reshape(len(SHARES), len(THRESHOLDS), 4, 6)
    assert (held[1:] >= held[:-1]).all()
    assert (held[:, 1:] <= held[:, :-1]).all()


def test_the_papers_setting_on_the_real_model_lies_within_the_grid():
    """n = 5000 of SmolLM2-135M's edges, tau = 0.1 of its L of about 13 nats."""
    smollm2 = Graph(num_layers=30, num_heads=9, num_kv_heads=3)
    assert min(SHARES) < 5000 / smollm2.num_edges < max(SHARES)
    assert min(THRESHOLDS) < 0.1 / 13 < max(THRESHOLDS)


def test_scores_that_are_not_finite_are_refused():
    values = scores()
    values[0, 0] = np.nan
    with pytest.raises(SparksError, match=r"score of edge embed -> L0H0\.q must be finite"):
        heads_of_grid(values, GRAPH, 1.5)


def test_a_loss_of_zero_keeps_what_has_a_score():
    assert heads_of_grid(scores(), GRAPH, 0.0).any()
    assert not heads_of_grid(np.zeros_like(scores()), GRAPH, 0.0).any()


def test_levels_count_the_settings_that_hold_a_head():
    snapshot = make_snapshot(0, {"L0H0": 3}, probes=4)
    levels, settings = snapshot.levels
    assert settings == len(GRID)
    assert levels[:, 0, 0].tolist() == [9, 9, 9, 0]
    levels, settings = make_snapshot(0, {"L0H0": 3}, probes=4, grid=False).levels
    assert settings == 1
    assert levels[:, 0, 0].tolist() == [1, 1, 1, 0]
