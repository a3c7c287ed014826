"""Nothing that is read from a disk is trusted: bytes, numbers, kinds of files, names."""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations_made_here import SOLVING, write_evaluations
from factories import make_run, make_snapshot, write_run
from safetensors.numpy import load_file, save_file

from sparks.attribution.snapshot import SCHEMA_VERSION, checksum
from sparks.cli import main
from sparks.effects.plan import Plan
from sparks.evaluation.results import Evaluation
from sparks.ground.errors import SparksError
from sparks.ground.files import MOST_BYTES, read_jsonl, write_atomically
from sparks.runs.run_folder import RunStore
from sparks.runs.trainer_log import TrainerLog
from sparks.thinking.record import ThinkRecord
from sparks.timeline.timeline import Timeline
from sparks.views.live.follower import max_steps_of


@pytest.fixture
def store(tmp_path) -> RunStore:
    """A run with a snapshot, evaluations and a log."""
    run = RunStore(write_run(tmp_path / "run", make_run({0: ["L0H0"], 20: ["L0H0", "L1H1"]})))
    run.write_metrics([{"step": 0, "loss": 1.0}, {"step": 20, "loss": 0.5}])
    write_evaluations(run.path, SOLVING)
    return run


# -- bytes -----------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_snapshot_is_named(store):
    path = store.file(20)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    flips = {*range(0, 8 * 64, 7), *rng.choice(8 * len(whole), 600, replace=False).tolist()}
    for place in flips:
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(SparksError) as caught:
            store.load(20)
        assert str(caught.value).startswith(f"{path}: "), place
        assert "\n" not in str(caught.value)
    assert [snapshot.step for snapshot in store.read().snapshots] == [0]
    path.write_bytes(whole)
    assert store.load(20).step == 20


def test_a_snapshot_of_this_schema_has_a_checksum_and_an_old_one_need_not(store):
    arrays, metadata = make_snapshot(20, ["L0H0"]).to_arrays()
    save_file(arrays, store.file(20), {"sparks": metadata["sparks"]})
    with pytest.raises(SparksError, match=r"damaged or not a snapshot \(its checksum is \w{8}, no"):
        store.load(20)
    old = metadata["sparks"].replace(f'"schema": {SCHEMA_VERSION}', '"schema": 2')
    save_file(arrays, store.file(20), {"sparks": old})
    assert store.load(20).step == 20


def test_a_later_schema_with_other_types_of_arrays_asks_for_an_upgrade(store):
    arrays, metadata = make_snapshot(20).to_arrays()
    later = metadata["sparks"].replace(f'"schema": {SCHEMA_VERSION}', '"schema": 99')
    save_file(arrays | {"news": np.zeros(3, np.uint16)}, store.file(20), {"sparks": later})
    with pytest.raises(SparksError, match=r"schema 99 is newer .*upgrade"):
        store.load(20)


def test_the_checksum_covers_names_types_shapes_values_and_the_header():
    arrays = {"a": np.arange(6, dtype=np.int32), "b": np.zeros(2, np.float32)}
    found = {
        checksum("x", arrays),
        checksum("y", arrays),
        checksum("x", {"c": arrays["a"], "b": arrays["b"]}),
        checksum("x", arrays | {"a": arrays["a"].reshape(2, 3)}),
        checksum("x", arrays | {"a": arrays["a"].view(np.float32)}),
        checksum("x", arrays | {"a": arrays["a"][::-1]}),
        checksum("x", {"a": arrays["a"]}),
    }
    assert len(found) == 7
    assert checksum("x", dict(reversed(arrays.items()))) == checksum("x", arrays)


def test_the_fast_reading_gives_what_the_library_gives(store):
    fast, arrays = store.load(20), load_file(store.file(20))
    for name, array in arrays.items():
        found = getattr(fast, name)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array, err_msg=name)


# -- numbers ---------------------------------------------------------------------------------------


def signed(store: RunStore, header: str, arrays: dict[str, np.ndarray]) -> None:
    """A snapshot file of step 20 with a right checksum."""
    save_file(arrays, store.file(20), {"sparks": header, "checksum": checksum(header, arrays)})


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("importance", np.nan, "importance must lie from 0 to 1e.15, found nan"),
        ("importance", -1, "importance must lie from 0"),
        ("importance", 3e38, "importance must lie from 0"),
        ("node_totals", np.inf, "node_totals must lie"),
        ("loss_corrupted", np.nan, "loss_corrupted must lie"),
        ("loss_circuit", -np.inf, "loss_circuit must lie"),
        ("points", -1, "points must lie from 0"),
        ("edge_offsets", 10**9, "edge_offsets must"),
        ("edge_source", 16, "the graph has no edge from source 16"),
        ("edge_source", -1, "the graph has no edge from source -1"),
        ("edge_destination", 28, "edge_destination must be from 0 to 27, found 28"),
        ("edge_destination", -1, "edge_destination must be from 0 to 27, found -1"),
        ("edge_score", np.nan, "edge_score must lie"),
    ],
)
def test_a_number_out_of_its_range_is_named_though_the_checksum_is_right(store, name, value, match):
    arrays, metadata = make_snapshot(20, ["L0H0"]).to_arrays()
    arrays[name].reshape(-1)[1 if name == "edge_offsets" else 0] = value
    signed(store, metadata["sparks"], arrays)
    with pytest.raises(SparksError, match=f"damaged or not a snapshot .{match}"):
        store.load(20)


def test_a_truth_value_is_0_or_1(store):
    arrays, metadata = make_snapshot(20, ["L0H0"]).to_arrays()
    arrays["active"].view(np.uint8)[0] = 2
    signed(store, metadata["sparks"], arrays)
    with pytest.raises(SparksError, match="active must lie from 0 to 1, found 0 to 2"):
        store.load(20)


@pytest.mark.parametrize(
    ("keys", "value", "match"),
    [
        (("meta", "precision"), 7, "meta.precision must be a valid string, got 7"),
        (("meta", "seconds"), "x", "meta.seconds must be a valid number, got 'x'"),
        (("meta", "step"), -1, "meta.step must be greater than or equal to 0, got -1"),
        (("meta", "step"), 10**400, "meta.step must be less than"),
        (("meta", "overhead"), -0.5, "meta.overhead must be"),
        (("meta", "model_name"), "x" * 20_000, "meta.model_name String should have at most"),
        (("meta", "config", "points"), [1], "meta.config.points must be text, a number"),
        (("meta", "config", "threshold"), 1e308, "meta.config.threshold numbers must be"),
        (("graph", "num_heads"), 0, "graph.num_heads must be"),
        (("graph", "num_kv_heads"), 3, "graph: num_heads must be a multiple"),
        (("grid",), [[0.5, "x"]], "grid.0.1 must be a valid number"),
        (("grid",), [[2.0, 0.1]], "grid.0.0 must be less than or equal to 1"),
        (("grid",), [[0.5, 0.1]] * 256, "grid .*at most 255"),
        (("probe_ids",), [], "probe_ids .*at least 1"),
        (("probe_groups",), "abc", "probe_groups must be a valid array"),
    ],
)
def test_a_header_that_breaks_a_rule_is_named_though_the_checksum_is_right(
    store, keys, value, match
):
    arrays, metadata = make_snapshot(20, ["L0H0"]).to_arrays()
    header = inner = json.loads(metadata["sparks"])
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    signed(store, json.dumps(header), arrays)
    with pytest.raises(SparksError, match=f"damaged or not a snapshot .{match}"):
        store.load(20)


def test_a_deep_header_is_named(store):
    arrays, _ = make_snapshot(20, ["L0H0"]).to_arrays()
    signed(store, "[" * 100_000, arrays)
    with pytest.raises(SparksError, match=r"not JSON .recursion limit exceeded"):
        store.load(20)


def test_what_no_reader_would_take_is_not_written(tmp_path):
    snapshot = make_snapshot(0, ["L0H0"])
    huge = snapshot.importance.copy()
    huge[0] = 1e30
    with pytest.raises(SparksError, match="importance must lie from 0"):
        RunStore(tmp_path).save(replace(snapshot, importance=huge))
    assert list(tmp_path.iterdir()) == []
    vast = make_snapshot(0, metrics={"perplexity": 1e300, "loss": 700.0, "tokens": 10**400})
    RunStore(tmp_path).save(vast)
    assert RunStore(tmp_path).load(0).meta.metrics == {"loss": 700.0}


@pytest.mark.parametrize("value", ["1e308", "-1e300", "1" * 400])
def test_a_logged_number_out_of_range_is_named_and_left_out(store, value):
    text = f'[{{"step": 5, "loss": {value}, "reward": 1}}, {{"step": {value}}}]'
    (store.path / "metrics.json").write_text(text)
    contents = store.read()
    assert contents.metrics == ({"step": 5, "reward": 1},)
    (problem,) = contents.problems
    assert problem.endswith("metrics.json: 'loss' beyond 3.4e+38 at step 5; left out")
    assert Timeline.from_run(store.path).problems == contents.problems


def test_a_deep_or_odd_line_of_an_evaluation_is_named_and_skipped(store):
    path = store.evaluations.file(20)
    lines = path.read_text().splitlines(keepends=True)
    for odd, match in (
        ("[" * 100_000 + "\n", "damaged, not JSON"),
        (lines[1].replace('"tokens": 3', f'"tokens": {"1" * 400}'), "damaged, tokens must be"),
        (lines[1].replace('"text": "', '"text": "\\ud800'), "damaged, not JSON"),
        (lines[1].replace('"seconds": 0.25', '"seconds": "x"'), "damaged, seconds must be"),
    ):
        path.write_text("".join([lines[0], odd, *lines[2:]]))
        contents = store.read()
        assert [evaluation.step for evaluation in contents.evaluations] == [0, 40]
        (problem,) = contents.problems
        assert f"{path}:2: {match}" in problem
        assert "\n" not in problem
        with pytest.raises(SparksError, match=match):
            Evaluation.load(path)


def test_a_trainer_state_of_any_content_does_no_harm(tmp_path):
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    rows = [{"loss": 1.0, "step": 1}, 7, {"loss": 10**400}]
    state: dict[str, Any] = {"global_step": 5, "epoch": 10**400, "log_history": rows}
    (folder / "trainer_state.json").write_text(json.dumps(state | {"max_steps": 10**400}))
    log = TrainerLog.read(folder)
    assert log is not None
    assert (log.step, log.epoch, len(log.rows)) == (5, None, 2)
    assert max_steps_of(tmp_path / "sparks") is None
    for text in ("[" * 100_000, "[]", '{"global_step": "5"}', '{"global_step": -1}'):
        (folder / "trainer_state.json").write_text(text)
        assert TrainerLog.read(folder) is None


# -- kinds of files --------------------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def outside(path: Path) -> None:
    beside = path.parents[2] / "elsewhere"
    beside.write_text("[]")
    path.symlink_to(beside)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 * 2**30)


NAMES = (
    "step-00000020.safetensors",
    "metrics.json",
    "null.json",
    "step-00000030.failed",
    "evaluation/step-00000020.jsonl",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (pipe, "a pipe, no plain file"),
        (device, "a link that leads out of"),
        (outside, "a link that leads out of"),
        (sparse, "3221225472 bytes, [0-9]+ are the most"),
        (Path.mkdir, "a folder, no plain file"),
    ],
)
def test_what_is_no_plain_file_is_refused_before_it_is_opened(
    store, name, make: Callable[[Path], None], match
):
    path = store.path / name
    path.unlink(missing_ok=True)
    make(path)
    contents = store.read()
    (problem,) = contents.problems
    assert path.name in problem
    assert re.search(match, problem)
    assert Timeline.from_run(store.path).problems == contents.problems


@pytest.mark.parametrize("make", [pipe, sparse])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("study.json", lambda folder: Plan.load(folder)),
        ("think.json", lambda folder: ThinkRecord.load(folder)),
        ("probes.jsonl", lambda folder: list(read_jsonl(folder / "probes.jsonl", what="probes"))),
        ("samples.jsonl", lambda folder: Evaluation.load(folder / "samples.jsonl")),
    ],
)
def test_other_files_are_refused_by_kind_and_size_too(tmp_path, make, name, read):
    for mode in ("on", "off"):
        (tmp_path / f"probes-{mode}.jsonl").write_text("")
    make(tmp_path / name)
    with pytest.raises(SparksError, match=r"no plain file|are the most that are read"):
        read(tmp_path)


def test_a_link_within_the_run_is_read(store):
    kept = store.path / "kept"
    store.file(20).rename(kept)
    store.file(20).symlink_to("kept")
    assert [snapshot.step for snapshot in store.read().snapshots] == [0, 20]
    link = store.path.parent / "link"
    link.symlink_to(store.path)
    assert RunStore(link).read().problems == ()
    assert MOST_BYTES < 3 * 2**30


def test_a_file_that_may_not_be_read_is_told_as_that(store, monkeypatch):
    denied = {str(store.file(20)), str(store.path / "metrics.json")}
    real = os.open

    def guarded(path: Any, *args: Any, **keywords: Any) -> int:
        if str(path) in denied:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *args, **keywords)

    monkeypatch.setattr(os, "open", guarded)
    snapshot, log = store.read().problems
    assert snapshot == f"cannot read {store.file(20)} (Permission denied)"
    assert log.startswith(f"cannot read {store.path / 'metrics.json'} (Permission denied)")


def test_a_folder_of_evaluations_that_may_not_be_listed_is_told(store, monkeypatch):
    real = os.listdir

    def guarded(path: Any) -> list[str]:
        if path == store.evaluations.path:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "listdir", guarded)
    (problem,) = store.read().problems
    assert problem == f"cannot read {store.evaluations.path} (Permission denied)"


# -- temporary names -------------------------------------------------------------------------------


def test_a_link_under_a_temporary_name_cannot_lead_a_write_elsewhere(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (f".page.html.{os.getpid()}.tmp", ".page.html.tmp"):
        (tmp_path / name).symlink_to(victim)
    write_atomically(tmp_path / "page.html", "page")
    assert victim.read_text() == "precious"
    assert (tmp_path / "page.html").read_text() == "page"


def test_writers_of_one_process_do_not_meet(tmp_path):
    target, failed = tmp_path / "page.html", []
    texts = [str(number) * 200_000 for number in range(4)]

    def write(text: str) -> None:
        try:
            for _ in range(20):
                write_atomically(target, text)
        except SparksError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert target.read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_written_file_has_the_rights_that_the_umask_gives(tmp_path):
    old = os.umask(0o027)
    try:
        assert write_atomically(tmp_path / "a", "x").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old)


# -- names -----------------------------------------------------------------------------------------


def test_a_folder_whose_name_is_not_utf8_is_shown_with_escapes(tmp_path, capsys):
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    write_run(run, make_run({0: ["L0H0"], 10: ["L0H0", "L1H1"]}))
    assert RunStore(run).name == r"caf\udce9"
    assert main(["timeline", str(run)]) == 0
    assert r"caf\udce9" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    assert r"caf\\udce9" in (run / "report.html").read_text(encoding="utf-8")
    RunStore(run).file(10).write_bytes(b"x")
    (problem,) = RunStore(run).read().problems
    assert problem.encode().startswith(os.fsencode(tmp_path) + rb"/caf\udce9/step-00000010")
    assert main(["timeline", str(run / "none")]) == 2
    assert r"caf\udce9" in capsys.readouterr().err
