"""`sparks think` from problems to tables, its folder, and its numbers against brute force."""

from __future__ import annotations

import io
import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from command_line import assert_refused, call
from think_models import save_thinking_model, write_problems
from tokenizers_made_here import CHAT

from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.probes.probes import ProbeSet
from sparks.runs.run_folder import RunStore
from sparks.thinking.comparison import ThinkComparison
from sparks.thinking.measuring import measure_think
from sparks.thinking.overlap import Sets, edge_sets, exchanged, jaccard, overlap
from sparks.thinking.record import ThinkRecord
from sparks.thinking.settings import ThinkConfig

SETTINGS = ["--count", 4, "--points", 2, "--max-suffix-tokens", 5, "--max-new-tokens", 24]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Model, data and folder of one measurement."""
    folder = tmp_path_factory.mktemp("think")
    model = save_thinking_model(folder / "model")
    data = write_problems(folder / "problems.jsonl")
    assert call("think", model, "--data", data, "--output", folder / "out", *SETTINGS) == 0
    return model, data, folder / "out"


@pytest.fixture
def copied(measured, tmp_path):
    """The same, to be changed."""
    model, data, out = measured
    return model, data, shutil.copytree(out, tmp_path / "out")


def stamps(out):
    return {
        str(path.relative_to(out)): path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.is_file()
    }


# -- the command -------------------------------------------------------------------------------


def test_the_folder_holds_probes_and_two_run_folders(measured, capsys):
    _, _, out = measured
    assert sorted(stamps(out)) == [
        "off/probes.jsonl", "off/step-00000000.safetensors", "on/probes.jsonl",
        "on/step-00000000.safetensors", "probes-off.jsonl", "probes-on.jsonl", "think.json",
    ]  # fmt: skip
    on, off = (RunStore(out / mode).load(0) for mode in ("on", "off"))
    assert on.meta.model_hash == off.meta.model_hash
    assert on.meta.probes_hash != off.meta.probes_hash
    record = ThinkRecord.load(out)
    assert on.meta.config["max_suffix_tokens"] == 5 + record.marker_tokens > 5
    for mode in ("on", "off"):
        kept = ProbeSet.load(out / mode / "probes.jsonl")
        assert kept == ProbeSet.load(out / f"probes-{mode}.jsonl")
        assert call("timeline", out / mode) == 0
    assert call("report", out / "on", "--output", out.parent / "page.html") == 0
    assert "1 checkpoint" in capsys.readouterr().out


def test_text_tables_and_json_say_the_same(measured, capsys):
    _, _, out = measured
    assert call("think", "--output", out) == 0
    page = capsys.readouterr().out
    assert "4 problems under both modes, switched by enable_thinking" in page
    assert "with 4 probes no head can be called exclusive, at least 7 are needed" in page
    assert "no head is of one mode alone beyond doubt" in page
    for table, rows in (("heads", 4), ("counts", 2), ("overlap", 6)):
        assert call("think", "--output", out, "--format", "csv", "--table", table) == 0
        frame = pd.read_csv(io.StringIO(capsys.readouterr().out))
        assert len(frame) == rows
        assert call("think", "--output", out, "--format", "json", "--table", table) == 0
        again = json.loads(capsys.readouterr().out)
        assert [list(row) for row in again] == [list(frame.columns)] * rows
    assert call("think", "--output", out, "--format", "json", "--table", "counts") == 0
    for row in json.loads(capsys.readouterr().out):
        states = [row[n] for n in ("shared", "only_on", "only_off", "neither", "undecided")]
        assert sum(states) == 4
        assert f"  {row['rule']:<6}  {row['on']:>2}  {row['off']:>3}  {row['shared']:>6}" in page


def test_figures_are_drawn_by_both_rules(copied, capsys):
    pytest.importorskip("matplotlib")
    _, _, out = copied
    assert call("think", "--output", out, "--figure", "svg") == 0
    told = capsys.readouterr().err.splitlines()
    for rule in ("growth", "paper"):
        path = out / f"fig5-think-heads-{rule}.svg"
        assert str(path) in told
        assert path.read_bytes().rstrip().endswith(b"</svg>")


# -- going on ----------------------------------------------------------------------------------


def test_what_is_there_is_kept(copied, capsys):
    model, data, out = copied
    before = stamps(out)
    assert call("think", model, "--data", data, "--output", out, *SETTINGS) == 0
    assert stamps(out) == before
    # Without the data the probes that are there are taken; other settings measure them again.
    assert call("think", model, "--output", out, "--points", 3, "--max-suffix-tokens", 5) == 0
    changed = {name for name, stamp in stamps(out).items() if stamp != before[name]}
    assert {name for name in changed if "step" in name} == {
        f"{mode}/step-00000000.safetensors" for mode in ("on", "off")
    }
    assert not {"think.json", "probes-on.jsonl", "probes-off.jsonl"} & changed


def test_a_measurement_that_was_stopped_goes_on(copied):
    model, data, out = copied
    before = stamps(out)
    for name in ("off/step-00000000.safetensors", "off/probes.jsonl"):
        (out / name).unlink()
    with pytest.raises(SparksError, match="no snapshot with thinking off: finish it with sparks"):
        ThinkComparison.from_folder(out)
    assert call("think", model, "--data", data, "--output", out, *SETTINGS) == 0
    after = stamps(out)
    assert after["on/step-00000000.safetensors"] == before["on/step-00000000.safetensors"]
    assert after["probes-on.jsonl"] == before["probes-on.jsonl"]
    assert ThinkComparison.from_folder(out).num_probes == 4


def test_a_snapshot_of_other_probes_is_taken_again(copied):
    model, data, out = copied
    wanted = RunStore(out / "off").load(0).meta.probes_hash
    name = "step-00000000.safetensors"
    shutil.copy(out / "on" / name, out / "off" / name)
    assert RunStore(out / "off").load(0).meta.probes_hash != wanted
    assert call("think", model, "--data", data, "--output", out, *SETTINGS) == 0
    assert RunStore(out / "off").load(0).meta.probes_hash == wanted


def test_building_again_leaves_nothing_of_the_older_probes(copied, monkeypatch):
    model, data, out = copied

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sparks.thinking.measuring.take_snapshot", stop)
    config = SnapshotConfig(points=2, max_suffix_tokens=5)
    with pytest.raises(KeyboardInterrupt):
        measure_think(
            model, out, ThinkConfig(data=data, count=3, max_new_tokens=24), config=config,
            overwrite=True, progress=False,
        )  # fmt: skip
    assert len(ProbeSet.load(out / "probes-on.jsonl")) == 3
    assert RunStore(out / "on").steps() == RunStore(out / "off").steps() == []


@pytest.mark.parametrize("name", ["on/step-00000000.safetensors", "off/notes", "probes-on.jsonl"])
@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_what_no_measurement_wrote_is_not_replaced(name, more, measured, tmp_path, capsys):
    model, data, _ = measured
    path = tmp_path / "outputs" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of a run that is called so")
    asked = ("think", model, "--data", data, "--output", tmp_path / "outputs", *SETTINGS, *more)
    match = "is there, and no think.json says that `sparks think` wrote it: give another folder"
    capsys.readouterr()
    assert_refused(capsys, tmp_path, *asked, match=match)


@pytest.mark.parametrize("whole", [0, 1])
def test_a_build_that_was_killed_goes_on(whole, copied, monkeypatch):
    """`whole`: probes of the new build that were written."""
    model, data, out = copied
    save, saved = ProbeSet.save, []

    def stop(self, path):
        if len(saved) == whole:
            raise KeyboardInterrupt
        saved.append(save(self, path))

    asked = ("think", model, "--data", data, "--output", out, *SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(ProbeSet, "save", stop)
        assert call(*asked, "--overwrite") == 130
    assert ThinkRecord.find(out) is None
    assert call(*asked) == 0
    assert len(RunStore(out / "on").steps()) == len(RunStore(out / "off").steps()) == 1


def test_a_folder_of_other_probes_is_refused(copied, tmp_path, capsys):
    model, data, out = copied
    other = write_problems(tmp_path / "other.jsonl", 11)
    moved = shutil.copy(data, tmp_path / "moved.jsonl")
    asked = ["think", model, "--output", out]
    capsys.readouterr()
    assert_refused(capsys, out, *asked, "--data", data, *SETTINGS, "--seed", 1,
                   match="holds probes with seed=0, now it is 1: .* or --overwrite")  # fmt: skip
    assert_refused(capsys, out, *asked, "--data", other, *SETTINGS, match="with data.*=")
    assert_refused(capsys, out, *asked, "--points", 2, match="max_suffix_tokens=5, now it is 16")
    assert_refused(capsys, out, "think", tmp_path, "--output", out, match="with model='")
    assert call(*asked, "--data", moved, *SETTINGS) == 0


# -- refusals ----------------------------------------------------------------------------------


def test_mistakes_are_told_in_a_line(measured, tmp_path, capsys):
    model, data, _ = measured
    plain = save_thinking_model(tmp_path / "plain", chat=CHAT)
    out = tmp_path / "out"
    capsys.readouterr()
    for arguments, match in (
        (["--output", out], "holds no measurement of thinking on and off: measure it with sparks"),
        (["--output", out, "--data", data], "which model to measure\\? give MODEL"),
        ([model, "--output", out], "no problems: say with --data"),
        ([model, "--output", out, "--data", tmp_path / "none.jsonl"], "none.jsonl"),
        ([model, "--output", out, "--data", data, "--swap-base-roles"], "swap_base_roles must"),
        ([plain, "--output", out, "--data", data], "has no thinking mode: it takes none of"),
        ([tmp_path / "nobody", "--output", out, "--data", data], "cannot load checkpoint"),
    ):
        assert_refused(capsys, tmp_path, "think", *arguments, match=match)
    assert not out.exists()


def test_a_damaged_record_is_told(copied):
    _, _, out = copied
    (out / "think.json").write_text("{")
    with pytest.raises(SparksError, match=r"think.json: damaged or no record .* --overwrite"):
        ThinkRecord.find(out)
    (out / "think.json").write_text('{"schema": 99}')
    with pytest.raises(SparksError, match="of a newer sparks \\(schema 99\\)"):
        ThinkRecord.find(out)
    (out / "probes-on.jsonl").unlink()
    assert ThinkRecord.find(out) is None


# -- numbers -----------------------------------------------------------------------------------


def test_edges_and_heads_of_each_probe_are_those_of_the_snapshots(measured):
    _, _, out = measured
    comparison = ThinkComparison.from_folder(out)
    snapshots = comparison.on.snapshots[0], comparison.off.snapshots[0]
    found = edge_sets(*snapshots, (list(range(4)), list(range(4))))
    sets = [
        [set(zip(s.edge_source[a:b].tolist(), s.edge_destination[a:b].tolist(), strict=True))
         for a, b in itertools.pairwise(s.edge_offsets.tolist())]
        for s in snapshots
    ]  # fmt: skip
    for matrix, wanted in zip(found, sets, strict=True):
        assert matrix.sum(axis=1).tolist() == [len(edges) for edges in wanted]
    union = set().union(*sets[0], *sets[1])
    assert found[0].shape == (4, len(union))
    row = comparison.overlap().set_index(["what", "counted"]).loc["edges", "any"]
    on, off = (set().union(*edges) for edges in sets)
    assert (row["on"], row["off"], row["shared"]) == (len(on), len(off), len(on & off))
    assert row["jaccard"] == len(on & off) / len(on | off)


def test_overlap_agrees_with_brute_force():
    """Four probes have three ways to be halved: the draws must be those and no others."""
    rng = np.random.default_rng(3)
    on, off = (rng.integers(0, 10, (4, 30)) for _ in range(2))
    row = overlap(Sets(what="heads", counted="majority", on=on, off=off, cut=4.5), draws=300)

    def held(values, probes):
        return set(np.flatnonzero(values[list(probes)].mean(axis=0) > 4.5).tolist())

    def share(a, b):
        return len(a & b) / len(a | b)

    every = range(4)
    assert row["jaccard"] == share(held(on, every), held(off, every))
    one, two = set(), set()
    for half in itertools.combinations(every, 2):
        rest = [probe for probe in every if probe not in half]
        one.add(
            (share(held(on, half), held(on, rest)) + share(held(off, half), held(off, rest))) / 2
        )
        two.add(
            (share(held(on, half), held(off, rest)) + share(held(off, half), held(on, rest))) / 2
        )
    for name, values in (("one_mode", one), ("two_modes", two)):
        assert any(row[name] == pytest.approx(value) for value in values)
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(
            (min(values), max(values))
        )
    assert np.isnan(row["low"])


def test_overlap_of_single_probes_agrees_with_brute_force():
    rng = np.random.default_rng(4)
    on, off = (rng.random((4, 30)) < 0.5 for _ in range(2))
    row = overlap(Sets(what="edges", counted="each", on=on, off=off, cut=0.0), draws=500)

    def share(a, b):
        return (a & b).sum() / (a | b).sum()

    each = [share(a, b) for a, b in zip(on, off, strict=True)]
    assert row["jaccard"] == pytest.approx(np.mean(each))
    assert row["on"] == on.sum() / 4
    draws = [np.mean([each[i] for i in chosen]) for chosen in itertools.product(range(4), repeat=4)]
    wanted = np.quantile(draws, [0.025, 0.975])  # of all resamples; ours are 400 of them
    assert (row["low"], row["high"]) == pytest.approx(tuple(wanted), abs=0.02)
    one, two = set(), set()
    for a, b, c, d in itertools.permutations(range(4)):
        one.add(np.mean([share(m[i], m[j]) for m in (on, off) for i, j in ((a, c), (b, d))]))
        two.add(
            np.mean(
                [share(m[i], n[j]) for m, n in ((on, off), (off, on)) for i, j in ((a, c), (b, d))]
            )
        )
    for name, values in (("one_mode", one), ("two_modes", two)):
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(
            (min(values), max(values))
        )


def test_empty_sets_and_too_few_probes_give_no_number():
    nothing = np.zeros((3, 5), dtype=int)
    row = overlap(Sets(what="heads", counted="majority", on=nothing, off=nothing, cut=4.5))
    for name in ("jaccard", "low", "one_mode", "two_modes_high", "two_modes_lower"):
        assert np.isnan(row[name]), name
    one = np.array([[True, False], [False, False]])
    assert jaccard(one, one).tolist()[0] == 1
    assert np.isnan(jaccard(one, one)[1])


def test_exchange_draws_every_probe_half_of_the_time():
    seen = []
    median, low, high = exchanged(lambda mask: seen.append(mask) or int(mask.sum()), 20, draws=400)
    assert np.stack(seen).mean(axis=0) == pytest.approx(np.full(20, 0.5), abs=0.12)
    assert (median, low, high) == (10, pytest.approx(6, abs=1), pytest.approx(14, abs=1))
