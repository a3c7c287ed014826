"""Growth of a run: the frame, the verdict and where they come from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import (
    GROWN_FACTORS,
    GROWN_GRAPH,
    GROWN_GROUPS,
    grown_run,
    make_run,
    write_run,
)
from models import tiny_model
from planted import STORIES, Planted, clear_heads, random_probes

from sparks.attribution.snapshot import Snapshot
from sparks.attribution.take_snapshot import take_snapshot
from sparks.cli import main
from sparks.ground.config import SnapshotConfig
from sparks.runs.run_folder import RunStore
from sparks.timeline.growth import rule as growth_module
from sparks.timeline.growth.rule import growth
from sparks.timeline.growth.settings import GrowthConfig
from sparks.timeline.growth.tables import most_moved
from sparks.timeline.history import History
from sparks.timeline.timeline import Timeline
from sparks.views.words import growth_in_words


@pytest.fixture(scope="module")
def run() -> list[Snapshot]:
    return grown_run()


def test_the_frame_is_what_the_rule_says_of_the_counted_probes_at_once(run):
    masses = [one.node_totals[:24][:, GROWN_GRAPH.head_sources.ravel()] for one in run]
    loss = [one.loss_corrupted[:24] for one in run]
    found, frame = growth(np.stack(masses), np.stack(loss)), Timeline(run).growth()
    names = ["step", "head", "factor", "factor_low", "factor_high", "verdict", "change", "now"]
    assert frame.columns.tolist() == names
    assert frame["step"].tolist() == np.repeat([0, 10, 20, 30], 24).tolist()
    assert frame["head"].tolist()[:8] == [*(f"L0H{i}" for i in range(6)), "L1H0", "L1H1"]
    for name in ("factor", "factor_low", "factor_high", "verdict"):
        assert frame[name].tolist() == getattr(found, name).ravel().tolist()
    ways = {"": 0, "born": 1, "revived": 1, "returned": 1, "pruned": -1, "silenced": -1}
    assert frame["change"].map(ways).tolist() == found.change.ravel().tolist()
    assert (
        frame["now"].map({"unsure": 0, "in": 1, "out": -1}).tolist() == found.now.ravel().tolist()
    )
    one = Timeline(run).growth(-1)
    assert one.equals(frame[frame["step"] == 30].reset_index(drop=True))


def test_what_grew_shrank_was_born_and_pruned_is_told(run):
    frame = Timeline(run).growth().set_index(["step", "head"])
    assert frame.loc[(slice(None), "L1H2"), "verdict"].tolist() == ["none", *["grew"] * 3]
    assert frame.loc[(slice(None), "L2H3"), "verdict"].tolist() == ["none", *["shrank"] * 3]
    assert frame.loc[30, "factor"]["L1H2"] == pytest.approx(1.6, rel=0.05)
    changes = frame[frame["change"] != ""]["change"].to_dict()
    assert changes.pop((10, "L1H2")) == "born"
    assert changes in ({(20, "L2H3"): "silenced"}, {(10, "L2H3"): "silenced"})
    moved = most_moved(Timeline(run).growth(-1))
    assert moved["head"].tolist()[:2] in (["L1H2", "L2H3"], ["L2H3", "L1H2"])
    assert set(moved["verdict"]) <= {"grew", "shrank"}


def test_control_probes_do_not_count(run):
    control = np.array(GROWN_GROUPS)[:, None] == "control"
    alone = [replace(one, node_totals=np.where(control, 1, one.node_totals)) for one in run]
    assert Timeline(run).growth().equals(Timeline(alone).growth())
    assert not Timeline(run).growth().equals(Timeline(run, group="control").growth())


def test_every_rule_says_the_same_and_settings_reach_it(run, tmp_path):
    config = GrowthConfig(smallest=1.5)
    timeline = Timeline(run, growth_config=config)
    assert timeline.by("paper").growth_config is config
    assert timeline.by("paper").growth().equals(timeline.growth())
    assert not timeline.growth().equals(Timeline(run).growth())
    stored = Timeline.from_run(write_run(tmp_path, run), growth_config=config)
    assert stored.growth().equals(timeline.growth())
    assert "by 50% or more since step 0" in growth_in_words(stored)


def test_the_floor_can_be_set():
    assert GrowthConfig().least_loss == 0.1
    dim = Timeline(grown_run(loss=dict.fromkeys(GROWN_FACTORS, 0.05)))
    assert set(dim.growth()["verdict"]) == {"too little L"}
    bare = Timeline(dim.snapshots, growth_config=GrowthConfig(least_loss=0))
    assert "grew" in set(bare.growth()["verdict"])


def test_a_landing_is_judged_once_and_alone(run, monkeypatch):
    judged, work = [], growth_module.log_shares
    monkeypatch.setattr(growth_module, "log_shares", lambda t: judged.append(len(t)) or work(t))
    history = History.of(run[:1])
    for count, snapshot in enumerate(run[1:], start=2):
        history = history.extended(snapshot)
        judged.clear()
        grown = Timeline(history).growth()
        assert len(judged) == (2 if count == 2 else 1)
        assert grown.equals(Timeline(run[:count]).growth())
    assert Timeline(history[:2]).growth().equals(Timeline(run[:2]).growth())


def test_planted_heads_grow_and_shrink():
    """By weight edits of a real model: wherever what a head writes differs much from the base."""
    shape = {"num_hidden_layers": 3, "num_attention_heads": 8, "hidden_size": 64}
    model = tiny_model("llama-gqa", num_key_value_heads=4, **shape)
    config = SnapshotConfig(points=8, faithfulness=False)
    probes = random_probes(24, 0)
    heads = clear_heads(take_snapshot(model, probes, config, progress=False), len(STORIES))
    timeline = Timeline(Planted(dict(zip(heads, STORIES, strict=True))).run(model, probes, config))
    frame = timeline.growth().set_index(["step", "head"])["verdict"]
    for (layer, head), (scales, _) in zip(heads, STORIES.values(), strict=True):
        for time, scale in enumerate(scales):
            if abs(scale - scales[0]) >= 0.5:
                expected = "grew" if scale > scales[0] else "shrank"
                assert frame[10 * time, f"L{layer}H{head}"] == expected, (layer, head, time)


# -- the verdict -----------------------------------------------------------------------------------


def test_the_verdict_counts_the_last_checkpoint_and_names_what_it_rests_on(run):
    timeline = Timeline(run)
    last = timeline.growth(-1)["verdict"]
    assert ((last == "grew").sum(), (last == "shrank").sum()) == (1, 1)
    assert growth_in_words(timeline) == (
        "1 head grew, 1 shrank (of 24, by 5% or more since step 0, at most 5% of those "
        "named false); 1 was born (rose above an even share), 1 fell silent (below it); "
        "an unchanged model gives 0; L is 2 nats, 24 probes"
    )
    assert growth_in_words(timeline, brief=True) == (
        "1 head grew, 1 shrank, 1 born, 1 fell silent by step 30"
    )
    assert "by any amount since" in growth_in_words(
        Timeline(run, growth_config=GrowthConfig(smallest=1.0))
    )


def test_too_few_probes_are_told():
    timeline = Timeline(grown_run(groups=["sums"] * 6))
    assert growth_in_words(timeline) == (
        "No change of a head can be called, too few probes: 6, at least 7 are needed"
    )
    assert set(timeline.growth()["verdict"]) == {"none"}


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        ({0: 0.05, 10: 0.05, 20: 0.05, 30: 0.05}, "No change of a head can be called, too little"),
        ({0: 0.05}, "since step 10, the first with enough L, at most 5%"),
        ({10: 0.05, 20: 0.05, 30: 0.02}, "too little L at step 30 (0.02 nats, at least 0.1 are"),
        ({30: 0.05}, "; nothing later, too little L at step 30 (0.05 nats"),
    ],
)
def test_too_little_l_is_told(loss, text):
    timeline = Timeline(grown_run(loss=loss))
    said = growth_in_words(timeline)
    assert text in said
    assert said.startswith("By step 20 ") == (loss == {30: 0.05})
    counts = timeline.growth_counts
    assert counts.at == {(30,): 2, (0,): 3}.get(tuple(loss), 0)
    assert (counts.grew > 0) == (counts.at > 0)


def test_one_checkpoint_has_no_change(run):
    assert growth_in_words(Timeline(run[:1])) == (
        "One checkpoint so far, so no head can have changed yet"
    )


# -- the command -----------------------------------------------------------------------------------


def test_the_table_is_the_frame(run, tmp_path, capsys):
    path = write_run(tmp_path, run)
    assert main(["timeline", str(path), "--format", "json", "--table", "growth"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads(Timeline(run).growth().to_json(orient="records", double_precision=15))
    assert main(["timeline", str(path), "--format", "csv", "--table", "growth"]) == 0
    text = capsys.readouterr().out.splitlines()
    assert len(text) == 1 + 4 * 24
    assert text[0] == "step,head,factor,factor_low,factor_high,verdict,change,now"


def test_the_page_of_text_begins_with_the_verdict_and_lists_the_heads(run, tmp_path, capsys):
    path = write_run(tmp_path, run)
    assert main(["timeline", str(path)]) == 0
    text = capsys.readouterr().out
    said = " ".join(text.split())
    assert said.startswith(f"Verdict {growth_in_words(Timeline(run))} Run ")
    row = Timeline(run).growth(-1).set_index("head").loc["L1H2"]
    ends = f"{row.factor:.2f} [{row.factor_low:.2f}, {row.factor_high:.2f}]"
    assert f"L1H2 grew {ends} in" in said


def test_a_run_of_one_probe_can_be_shown(tmp_path: Path, capsys):
    write_run(tmp_path, make_run({0: ["L0H0"], 10: ["L0H1"]}, probes=1))
    assert RunStore(tmp_path).steps() == [0, 10]
    assert main(["timeline", str(tmp_path)]) == 0
    assert "too few probes: 1, at least 7" in " ".join(capsys.readouterr().out.split())
    assert main(["timeline", str(tmp_path), "--format", "json", "--table", "growth"]) == 0
    assert {row["verdict"] for row in json.loads(capsys.readouterr().out)} == {"none"}
