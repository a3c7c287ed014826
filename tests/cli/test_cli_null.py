"""`sparks null` on a real tiny model: what it measures, keeps, prints and refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import assert_refused, call, error_line, listing
from factories import STORY, make_run, write_run
from models import tiny_model, wrapped
from tiny_training import weights_hash
from tokenizers_made_here import byte_level_tokenizer

from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.fingerprint import fingerprint
from sparks.probes.probes import ProbeSet
from sparks.runs.null_band import NullBand, from_json
from sparks.runs.run_folder import RunStore
from sparks.timeline.nulls import null_of
from sparks.timeline.timeline import Timeline
from sparks.training import null as null_measuring
from sparks.training.null import measure, noise_added
from sparks.training.replay import replay_checkpoints

TOKENIZER = byte_level_tokenizer()
CONFIG = SnapshotConfig(points=3, threshold=1e-4, top_n=60, faithfulness=False)


def probe_set(first: int, count: int, **more: str) -> ProbeSet:
    return ProbeSet.from_records(
        {
            "prompt": f"What is {n} + {n}?",
            "clean": f" Okay, I add {n} and {n}",
            "corrupted": f" The sum of both is {2 * n}",
            **more,
        }
        for n in range(first, first + count)
    )


OWN, FRESH = probe_set(1, 4), probe_set(11, 6)


def save_model(folder: Path, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    tiny_model("llama-gqa", seed=seed, vocab_size=len(TOKENIZER)).to(dtype).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two models, a run that replays them, and files of probes."""
    home = tmp_path_factory.mktemp("made")
    for seed in (0, 1):
        save_model(home / f"model-{seed}", seed)
    replay_checkpoints(
        [f"0={home / 'model-0'}", f"4={home / 'model-1'}"],
        OWN,
        output_dir=home / "run",
        config=CONFIG,
        progress=False,
    )
    FRESH.save(home / "fresh.jsonl")
    return home


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy of that run, which a test may write into."""
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


@pytest.fixture
def taken(monkeypatch) -> list[tuple[str, ...]]:
    """Ids of the probes of every measurement that is taken."""
    seen: list[tuple[str, ...]] = []
    real = null_measuring.take_snapshot

    def take(model: Any, probes: Any, *arguments: Any, **keywords: Any) -> Any:
        seen.append(probes.ids)
        return real(model, probes, *arguments, **keywords)

    monkeypatch.setattr(null_measuring, "take_snapshot", take)
    return seen


def kept(run: Path) -> dict[tuple[str, str], NullBand]:
    return {(band.rule, band.method): band for band in RunStore(run).read_nulls()}


# -- without a model -------------------------------------------------------------------------------


def test_the_runs_own_probes_need_no_model_and_no_torch(tmp_path):
    run = write_run(tmp_path / "run", make_run(STORY))
    code = """
import sys
from sparks.cli import main
assert main(["null", sys.argv[1]]) == 0
assert not {"torch", "transformers"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Null  run: births and prunings between two measurements of one")
    rows = [line.split() for line in lines if re.match(r" +(growth|paper) ", line)]
    zero = ["0", "(0", "to", "0)"]
    assert [row[:2] for row in rows] == [["growth", "resampled"], ["paper", "resampled"]]
    assert all(row[2:10] == zero + zero for row in rows)
    assert [row[-1] for row in rows] == ["200", "200"]
    told = " ".join(done.stdout.split())
    assert (
        "2 heads are emergent at step 40 by the paper's rule; an unchanged model measured with "
        "other probes gives 0: more than its null, as a number; which of them are real it does "
        "not say." in told
    )
    assert f"Kept in {run / 'null.json'}: the views show it." in told


def test_json_is_what_is_kept(tmp_path, capsys):
    run = write_run(tmp_path / "run", make_run(STORY))
    assert call("null", run, "--format", "json", "--resamples", 20, "--seed", 3) == 0
    bands = from_json(capsys.readouterr().out)
    assert {(band.rule, band.method): band for band in bands} == kept(run)
    assert {band.draws for band in bands} == {20}


def test_runs_of_other_seeds(tmp_path, capsys):
    run = write_run(tmp_path / "a", make_run(STORY))
    other = write_run(tmp_path / "b", make_run({0: ["L0H0"], 50: ["L0H0", "L2H2", "L2H3"]}))
    assert call("null", run, "--seeds", other, other) == 0
    band = kept(run)["paper", "seeds"]
    assert (band.births_low, band.births_high, band.draws) == (2, 2, 2)
    assert "2 runs of other seeds at step 50, against this run" in capsys.readouterr().out
    assert call("null", run) == 0  # keeps what it does not find anew
    assert kept(run)["paper", "seeds"] == band


# -- with a model ----------------------------------------------------------------------------------


def test_fresh_probes_are_measured_on_the_base_model(made, run, taken, capsys):
    assert call("null", run, "--probes", made / "fresh.jsonl", "--resamples", 50) == 0
    assert taken == [tuple(probe.id for probe in FRESH)]
    band = kept(run)["paper", "fresh probes"]
    assert (band.probes, band.pool, band.draws) == (4, 10, 50)
    assert null_of(Timeline.from_run(run, rule="paper")) == band
    assert "fresh probes" in capsys.readouterr().out
    pool = RunStore(run / "null" / "fresh").load(0)
    assert pool.meta.model_hash == RunStore(run).load(0).meta.model_hash
    assert pool.num_probes == 6
    assert RunStore(run).steps() == [0, 4]


def test_what_is_measured_is_not_measured_again(made, run, taken):
    options = ("--probes", made / "fresh.jsonl", "--noise", "0.05", "--draws", 2)
    assert call("null", run, *options) == 0
    bands = kept(run)
    assert len(taken) == 3
    assert call("null", run, *options) == 0
    assert len(taken) == 3
    assert kept(run) == bands
    damaged = RunStore(run / "null" / "noise-0.05").file(1)
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert call("null", run, *options[:-1], 3) == 0
    assert len(taken) == 5  # the damaged draw, and a third
    assert kept(run)["paper", "weight noise"].draws == 3


def test_other_noise_or_another_seed_is_measured(run, taken):
    noisy = [call("null", run, "--noise", "0.05", "--draws", 1, "--seed", seed) for seed in (0, 1)]
    assert noisy == [0, 0]
    assert call("null", run, "--noise", "0.1", "--draws", 1) == 0
    assert len(taken) == 3
    bands = RunStore(run).read_nulls()
    assert sorted(band.noise for band in bands if band.rule == "paper" and band.noise) == [
        0.05,
        0.1,
    ]
    hashes = [RunStore(run / "null" / "noise-0.05").load(step).meta.model_hash for step in (0, 1)]
    assert hashes[0] != hashes[1]


def test_tiny_noise_changes_scores_a_little_and_great_noise_circuits(run):
    small = measure(run, noise=1e-6, draws=1, progress=False)
    great = measure(run, noise=1.0, draws=1, progress=False)
    base = small.base.importance
    moved = [np.abs(found.noisy[0].importance - base).max() for found in (small, great)]
    assert 0 < moved[0] < 1e-2 * moved[1]
    assert (small.noisy[0].active == small.base.active).mean() > 0.98
    assert (great.noisy[0].active != great.base.active).any()
    assert small.warnings == ()


def test_probes_of_the_run_and_control_probes_in_the_pool_are_left_out(run, taken):
    control = probe_set(31, 2, group="control")
    pool = ProbeSet.from_records(
        {"prompt": p.prompt, "clean": p.clean, "corrupted": p.corrupted, "group": p.group}
        for part in (OWN, FRESH, control)
        for p in part
    )
    found = measure(run, probes=pool, progress=False)
    assert found.pool is not None
    assert found.pool.num_probes == len(FRESH)
    with pytest.raises(SparksError, match="all fresh probes are the run's own or control probes"):
        measure(run, probes=OWN, progress=False)


def test_other_weights_are_measured_with_the_runs_probes_too(made, run, taken, capsys):
    options = ("--probes", made / "fresh.jsonl", "--model", made / "model-1")
    assert call("null", run, *options) == 0
    assert taken == [tuple(probe.id for probe in part) for part in (OWN, FRESH)]
    captured = capsys.readouterr()
    assert "warning: the weights are not bit by bit those of step 0" in captured.err
    base = RunStore(run / "null" / "base").load(0)
    np.testing.assert_array_equal(base.importance, RunStore(run).load(4).importance)


def test_a_model_saved_in_another_type_is_measured_in_that_of_the_run(made, run, tmp_path):
    narrow = save_model(tmp_path / "narrow", 0, torch.bfloat16)
    replay_checkpoints(
        [f"0={narrow}"], OWN, output_dir=tmp_path / "narrow-run", config=CONFIG, progress=False
    )
    same = measure(tmp_path / "narrow-run", probes=FRESH, progress=False)
    assert same.pool is not None
    assert (same.pool.meta.precision, same.warnings) == ("bfloat16", ())
    found = measure(run, probes=FRESH, model=str(narrow), progress=False)
    assert found.pool is not None
    assert found.pool.meta.precision == found.base.meta.precision == "float32"
    assert len(found.warnings) == 1  # rounded once, so no longer the run's weights
    rounded = measure(tmp_path / "narrow-run", noise=1e-4, draws=1, progress=False)
    assert "bfloat16, which rounds most noise of 0.0001 away" in rounded.warnings[0]


# -- noise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama-gqa", "lora-llama"])
def test_weights_and_random_state_come_back_to_the_bit(kind, dtype):
    model = (tiny_model("llama-gqa", seed=1) if kind == "llama-gqa" else
             wrapped(tiny_model("llama-gqa", seed=1))).to(dtype)  # fmt: skip
    with torch.no_grad():
        next(model.parameters())[0, 0] = -0.0
    before, state = weights_hash(model), torch.get_rng_state()
    with noise_added(model, 0.1, seed=0):
        assert weights_hash(model) != before
    assert weights_hash(model) == before
    with pytest.raises(ValueError, match="stop"), noise_added(model, 0.1, seed=0):
        raise ValueError("stop")
    assert weights_hash(model) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_has_the_size_that_was_asked_for():
    model = tiny_model("llama-gqa", seed=0, tie_word_embeddings=True, attention_bias=True)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with noise_added(model, 0.1, seed=0):
        first = fingerprint(model)
        for name, value in model.named_parameters():
            moved = (value - before[name]).detach()
            if value.dim() < 2:
                assert not moved.any(), name
            else:  # each matrix once, tied ones too; 0.1 is 3 sigma of the smallest
                wanted = 0.1 * before[name].detach().std()
                assert float(moved.std() / wanted) == pytest.approx(1, abs=0.1), name
    with noise_added(model, 0.1, seed=0):
        assert fingerprint(model) == first
    with noise_added(model, 0.1, seed=1):
        assert fingerprint(model) != first


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--resamples", 0), "--resamples must be at least 1, got 0"),
        (("--draws", 0), "--draws must be at least 1, got 0"),
        (("--seed", -1), "--seed must be at least 0, got -1"),
        (("--noise", "much"), "--noise: invalid float value: 'much'"),
        (("--noise", "0"), "noise must be above 0 and at most 1, got 0.0"),
        (("--noise", "nan"), "noise must be above 0 and at most 1, got nan"),
        (("--model", "x"), "--model is for what is measured: add --probes FILE or --noise X"),
        (("--probes", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--seeds", "nowhere"), "no snapshots in nowhere"),
        (("--noise", "0.1", "--model", "nowhere"), "cannot load checkpoint nowhere"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(run, capsys, options, match):
    assert_refused(capsys, run, "null", run, *options, match=re.escape(match))


def test_a_pool_that_is_too_small_is_refused(run, tmp_path, capsys):
    pool = probe_set(11, 3).save(tmp_path / "small.jsonl")
    assert call("null", run, "--probes", pool) == 2
    assert re.search(r"as many probes as the run counts \(4\).+ got 3", error_line(capsys))
    assert not (run / "null.json").exists()


def test_a_run_with_too_few_probes_is_refused(tmp_path, capsys):
    run = write_run(tmp_path / "run", make_run(STORY, probes=3))
    assert_refused(capsys, run, "null", run, match="3 probes are too few for a null, 4 are needed")


def test_a_model_that_cannot_be_found_tells_of_the_option(run, made, capsys):
    hidden = made / "hidden"
    (made / "model-0").rename(hidden)
    try:
        assert_refused(
            capsys, run, "null", run, "--noise", "0.1",
            match="cannot load checkpoint .+ --model says where the model before training is",
        )  # fmt: skip
    finally:
        hidden.rename(made / "model-0")


def test_a_run_without_its_probes_or_with_others_is_refused(run, capsys):
    probes = run / "probes.jsonl"
    FRESH.save(probes)
    assert_refused(
        capsys, run, "null", run, "--noise", "0.1",
        match=r"probes\.jsonl is not what the snapshot of step 0 measured",
    )  # fmt: skip
    probes.unlink()
    assert_refused(
        capsys, run, "null", run, "--noise", "0.1", match=r"keeps no probes\.jsonl, which"
    )


def test_an_interrupted_measurement_keeps_what_is_finished(run, monkeypatch, capsys):
    real, calls = null_measuring.take_snapshot, []

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(null_measuring, "take_snapshot", interrupted)
    assert call("null", run, "--noise", "0.1", "--draws", 3) == 130
    assert not (run / "null.json").exists()
    assert call("null", run, "--noise", "0.1", "--draws", 3) == 0
    assert len(calls) == 4  # one before, one that was interrupted, the two that were missing
    capsys.readouterr()


def test_a_newer_null_is_replaced_and_named_by_the_views(run, capsys):
    (run / "null.json").write_text(json.dumps({"schema": 99, "bands": []}))
    assert call("timeline", run) == 2
    captured = capsys.readouterr()
    assert "schema 99 is newer than this sparks reads (1): upgrade" in captured.err
    assert "Checkpoints" in captured.out
    files = set(listing(run))
    assert call("null", run) == 0
    assert set(listing(run)) == files
    assert call("timeline", run) == 0


def test_a_damaged_snapshot_is_named_and_the_exit_code_tells(tmp_path, capsys):
    run = write_run(tmp_path / "run", make_run(STORY))
    RunStore(run).file(40).write_bytes(b"torn")
    assert call("null", run) == 2
    captured = capsys.readouterr()
    assert "step-00000040.safetensors: damaged" in captured.err
    assert "emergent at step 30" in " ".join(captured.out.split())
    assert len(RunStore(run).read_nulls()) == 2
