"""A run that is followed: each snapshot is read once, and nothing in the folder ends the watch."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from evaluations_made_here import SOLVING, write_evaluations
from factories import STORY, make_metrics, make_run, make_snapshot, write_run, write_unshowable
from started import started

from sparks.ground.errors import SparksError
from sparks.runs.run_folder import RunStore
from sparks.timeline.regimes.regime import circuit_turnover
from sparks.timeline.timeline import Timeline
from sparks.views.live.follower import Changes, RunFollower, max_steps_of, pace
from sparks.views.live.page import View, duration
from sparks.views.live.terminal import watch
from sparks.views.text.page import Page
from sparks.views.words import circuits_now

LOG = [
    {"step": step, "loss": loss} for step, loss in zip(STORY, (2, 1.5, 1.25, 1.1, 1), strict=True)
]
NOON = 1_767_268_800  # 2026-01-01 12:00 UTC


def at(second: int) -> str:
    """A time as snapshots hold it, seconds after noon."""
    return f"2026-01-01T12:{second // 60:02}:{second % 60:02}+00:00"


def story(**meta: object) -> list:
    """STORY with a snapshot every 60 seconds."""
    return [
        make_snapshot(step, heads, **({"created": at(6 * step)} | meta))
        for step, heads in STORY.items()
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run folder of a trainer's output folder, with its last checkpoint beside it."""
    folder = write_run(tmp_path / "out" / "sparks", story(), LOG)
    checkpoint(tmp_path / "out", 40, max_steps=100)
    return folder


def checkpoint(output: Path, step: int, **state: object) -> None:
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps(state))


def damage(run: Path, step: int) -> Path:
    path = RunStore(run).file(step)
    path.write_bytes(b"\x00" * 99)
    return path


# -- the folder ------------------------------------------------------------------------------------


def test_each_snapshot_is_read_once(run, monkeypatch):
    read, load = [], RunStore.load
    monkeypatch.setattr(RunStore, "load", lambda self, step: read.append(step) or load(self, step))
    follower = RunFollower(run)
    assert follower.poll() == Changes(landed=(0, 10, 20, 30, 40))
    assert follower.poll() is None
    RunStore(run).save(make_snapshot(50, ["L0H0"]))
    assert follower.poll() == Changes(landed=(50,))
    RunStore(run).save(make_snapshot(20, ["L0H0", "L1H2"]))
    assert follower.poll() == Changes(replaced=(20,))
    RunStore(run).write_metrics([{"step": 50, "loss": 1.0}])
    assert follower.poll() == Changes()
    assert follower.timeline().metrics().loc[50, "loss"] == 1
    assert read == [0, 10, 20, 30, 40, 50, 20]


def test_the_timeline_is_that_of_the_folder(run):
    follower, whole = RunFollower(run.parent), Timeline.from_run(run)
    follower.poll()
    found = follower.timeline()
    for table in ("events", "heads", "cohorts", "metrics"):
        pd.testing.assert_frame_equal(getattr(found, table)(), getattr(whole, table)())
    assert (found.counts()["edges"] > 0).all()
    pd.testing.assert_frame_equal(found.counts(), whole.counts())
    assert (found.name, found.problems) == (whole.name, whole.problems) == ("out", ())


def test_a_resume_a_removal_and_a_damaged_file_are_told_once(run):
    follower = RunFollower(run)
    follower.poll()
    RunStore(run).set_aside_after(20)
    assert follower.poll() == Changes(set_aside=(30, 40))
    RunStore(run).file(0).unlink()
    assert follower.poll() == Changes(removed=(0,))
    damage(run, 10)
    changes = follower.poll()
    assert re.search(r"step-00000010\.safetensors: damaged", *changes.problems)
    assert follower.problems == changes.problems
    assert list(follower.timeline().steps) == [20]
    RunStore(run).note_failure(50, "out of memory")
    assert follower.poll() == Changes(problems=("step 50: no snapshot (out of memory)",))
    RunStore(run).save(make_snapshot(10))
    assert follower.poll() == Changes(landed=(10,))
    assert follower.problems == ("step 50: no snapshot (out of memory)",)


def test_edges_of_the_first_and_the_last_two_are_kept_or_read_again(run, monkeypatch):
    read, load = [], RunStore.load
    monkeypatch.setattr(RunStore, "load", lambda self, step: read.append(step) or load(self, step))
    follower = RunFollower(run)
    follower.poll()
    expected = circuit_turnover(Timeline.from_run(run))
    read.clear()

    def found() -> tuple[list[int], int]:
        return [s.step for s in follower.ends()], min(len(s.edge_score) for s in follower.ends())

    assert found()[0] == [0, 30, 40]
    assert found()[1] > 0
    assert circuits_now(follower.timeline(), follower.ends()) == expected[-1]
    RunStore(run).save(make_snapshot(50, ["L0H0"]))
    follower.poll()
    assert (found()[0], read) == ([0, 40, 50], [50])
    RunStore(run).set_aside_after(20)
    follower.poll()
    assert (found()[0], read) == ([0, 10, 20], [50, 10, 20])
    RunStore(run).set_aside_after(10)
    follower.poll()
    assert (found()[0], read) == ([0, 10], [50, 10, 20])


def test_edges_that_are_gone_again_are_left_out_of_the_page(run):
    follower = RunFollower(run)
    follower.poll()
    RunStore(run).set_aside_after(20)
    follower.poll()
    damage(run, 10)
    with pytest.raises(SparksError, match=r"step-00000010\.safetensors: damaged"):
        follower.ends()
    assert "Edges" not in page(follower.timeline())


def test_a_file_that_goes_on_being_written_is_read_again(run, tmp_path):
    """As a plain copy writes it: damaged until it is whole."""
    whole = RunStore(run).file(40).read_bytes()
    follower = RunFollower(run)
    RunStore(run).file(40).write_bytes(whole[:1000])
    assert len(follower.poll().problems) == 1
    RunStore(run).file(40).write_bytes(whole)
    assert follower.poll() == Changes(landed=(40,))


def test_a_folder_may_come_late_go_and_come_back(tmp_path):
    follower = RunFollower(tmp_path / "out")
    assert follower.poll() is follower.timeline() is None
    write_run(tmp_path / "out" / "sparks", [make_snapshot(0)])
    assert follower.poll() == Changes(landed=(0,))
    shutil.rmtree(tmp_path / "out")
    assert follower.poll() == Changes(removed=(0,))
    assert follower.timeline() is None
    assert follower.poll() is None
    write_run(tmp_path / "out", [make_snapshot(10)])
    assert follower.poll() == Changes(landed=(10,))
    assert follower.timeline().name == "out"


def test_a_folder_that_cannot_be_listed_is_named(run, monkeypatch):
    follower = RunFollower(run)
    follower.poll()

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sparks.views.live.follower.os.scandir", refuse)
    with pytest.raises(SparksError, match=r"cannot read .*sparks \(Permission denied\)"):
        follower.poll()


# -- the pace --------------------------------------------------------------------------------------


def metas(*times: tuple[int, str]) -> list:
    return [make_snapshot(step, created=created).meta for step, created in times]


def test_the_pace_by_hand():
    found = pace(metas((0, at(0)), (10, at(20)), (30, at(80))), max_steps=100)
    # 2 and 3 seconds a step: 2.5; the next step is as far as the last was, 20.
    assert (found.last_at, found.next_step, found.next_at) == (NOON + 80, 50, NOON + 80 + 50)
    assert found.end_at == NOON + 80 + 2.5 * 70
    assert pace(metas((0, at(0)), (10, at(20)), (30, at(80)))).end_at is None
    assert pace(metas((0, at(0)), (30, at(60))), max_steps=40).next_step == 40


def test_a_pause_hardly_moves_the_pace():
    steady = metas(*[(step, at(step)) for step in range(0, 50, 10)])
    paused = metas(*[(step, at(step + (1000 if step > 20 else 0))) for step in range(0, 50, 10)])
    assert pace(paused).next_at - pace(paused).last_at == 10
    assert pace(steady).next_at == pace(paused).next_at - 1000


@pytest.mark.parametrize("created", ["", "soon", "9999-99-99", None, 7])
def test_times_that_cannot_be_read_give_no_pace(created):
    assert pace(metas((0, at(0)), (10, created))) is None
    assert pace(metas((0, at(0)), (10, created), (20, at(40)))).next_at == NOON + 80


def test_no_pace_before_two_snapshots_or_after_the_end():
    assert pace([]) is pace(metas((0, at(0)))) is None
    assert pace(metas((0, at(5)), (10, at(5)))) is None
    assert pace(metas((0, at(0)), (10, at(5))), max_steps=10) is None


def test_the_last_step_is_that_of_the_newest_checkpoint(tmp_path):
    run = tmp_path / "sparks"
    assert max_steps_of(run) is None
    checkpoint(tmp_path, 9, max_steps=10)
    checkpoint(tmp_path, 10, max_steps=200)
    assert max_steps_of(run) == 200
    for step, state in enumerate([{}, {"max_steps": -1}, {"max_steps": "many"}, [3]], start=11):
        checkpoint(tmp_path, step)
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
        assert max_steps_of(run) is None
    (tmp_path / "checkpoint-99").mkdir()
    assert max_steps_of(run) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (45.4, "45 s"),
        (59.6, "1 min"),
        (3599, "1 h 0 min"),
        (7800, "2 h 10 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# -- the page --------------------------------------------------------------------------------------


def page(timeline: Timeline, *, now: float = NOON, rows: int = 40, **keywords) -> str:
    out = Page(keywords.pop("width", 80), color=False)
    View(timeline, keywords.pop("max_steps", None)).write(out, now, rows=rows, **keywords)
    return "\n".join(out.lines)


def test_the_last_evaluation_stands_on_the_page(run):
    """At step 40: 9 of 16 samples right; two problems newly solved, one newly missed."""
    write_evaluations(run, {0: SOLVING[0]})
    assert "Answers  pass@1 37.5% (" in (first := page(Timeline.from_run(run), width=160))
    assert "newly" not in first
    write_evaluations(run, SOLVING)
    shown = page(Timeline.from_run(run), width=160)
    (line,) = [line for line in shown.splitlines() if line.startswith("Answers")]
    told = (
        r"Answers  pass@1 56.2% \(\d+ to \d+\) on sums at step 40; 2 newly solved, 1 newly missed, "
    )
    assert re.fullmatch(told + r"\d\.\d of each by luck", line)


def test_the_page_once(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = io.StringIO()
    assert watch(run.parent, once=True, out=out, clock=lambda: NOON + 250) == 0
    assert (
        out.getvalue()
        == """\
Verdict  2 heads grew, 10 shrank (of 12, by 5% or more since step 0, at most 5%
         of those named false); 3 were born (rose above an even share), 4 fell
         silent (below it); an unchanged model gives 0; L is 1.57 nats, 16
         probes
Run      out: 5 snapshots, steps 0 to 40 of 100 (rule of growth)
Model    tiny/llama (llama, 3 layers x 4 heads)
Heads    4 active: 2 of 3 base heads retained, 2 emergent
Paper    4 active, 2 emergent by its rule
Null     0 emergent on an unchanged model: here more
Edges    69.9% (68 to 72) moved; two probes share 73.7% (71 to 76)
Error    1% completeness gap (median; 1% at most), up to 4 points
Cost     1.5 s for the last snapshot, 1.5 s median
Next     step 50 in about 50 s; the end, step 100, in about 6 min

  active    ▆▆█▆█  3 to 4
  emergent  ▁▅█▅█  0 to 2
  loss      █▅▃▂▁  2 to 1

Last changes
  40  born      L2H0
      revived   L1H1
      pruned    L2H3
  30  pruned    L1H1
  20  born      L2H3
      returned  L1H0
      silenced  L0H1
  10  born      L1H1
      silenced  L1H0
"""
    )


@pytest.mark.parametrize(
    ("now", "max_steps", "text"),
    [
        (240, None, "Next     step 50 in about 1 min\n"),
        (310, 100, "Next     step 50 is due; the end, step 100, in about 5 min\n"),
        (600, 100, "Next     step 50 is 5 min late: has the training stopped? The last snapshot"),
        (240, 40, "Next     nothing: step 40 is the trainer's last\n"),
    ],
)
def test_what_comes_next(now, max_steps, text):
    assert text in page(Timeline(story()), now=NOON + now, max_steps=max_steps)


def test_a_single_snapshot_has_no_strip_and_no_change():
    text = page(Timeline([make_snapshot(0, ["L0H0"])]))
    assert "Next     not known so far" in text
    assert "Run      (no name): 1 snapshot, step 0 (rule of growth)" in text
    assert "active  " not in text
    assert "changes" not in text
    assert "No head was born" in page(Timeline(make_run({0: ["L0H0"], 10: ["L0H0"]})))


def test_what_weakens_the_numbers_and_what_they_cost_is_said():
    run = [make_snapshot(step, gap=1.5, overhead=0.0213) for step in (10, 20)]
    text = " ".join(page(Timeline(run), notes=["steps 30: gone"]).split())
    assert "Note there is no snapshot of step 0" in text
    assert "Note the scores are coarse at steps 10, 20" in text
    assert "Note steps 30: gone" in text
    assert "2.13% of the time so far" in text


def test_a_curve_below_zero_has_a_strip():
    log = [{"step": step, "reward": value} for step, value in [(0, -2.0), (10, -1.0), (20, -2.0)]]
    assert "reward    ▁█▁  -2 to -2" in page(Timeline(story(), metrics=log))


@pytest.mark.parametrize("rows", [8, 12, 14, 16])
def test_the_newest_changes_stay_where_rows_are_few(rows):
    text = page(Timeline(story()), rows=rows)
    assert len(text.splitlines()) <= rows
    assert ("L2H0" in text) == (rows > 10)
    assert "L0H1" not in text


@pytest.mark.parametrize("width", [40, 60])
def test_narrow_pages_keep_their_width(width):
    text = page(Timeline(story(), metrics=make_metrics(range(200))), width=width, max_steps=100)
    assert max(map(len, text.splitlines())) <= width


def test_many_names_are_counted():
    graph_heads = [f"L{layer}H{head}" for layer in range(3) for head in range(4)]
    few = View(Timeline(make_run({0: ["L0H0"], 10: graph_heads[:9]})), None).line(10)
    assert few.endswith(
        "9 active heads, 8 emergent; born " + ", ".join(graph_heads[1:9]) + "; 1.5 s"
    )


def test_hostile_text_is_inert(tmp_path):
    evil = "\x1b[2J\x1b]0;owned\x07\nRun \u202e"
    folder = write_run(tmp_path / "x\x1b[1my", [make_snapshot(0, model_name=evil, created=evil)])
    RunStore(folder).note_failure(10, evil)
    for once in (True, False):
        out = io.StringIO()
        watch(folder, once=once, out=out, sleep=stop)
        bad = {c for c in out.getvalue() if unicodedata.category(c) in ("Cc", "Cf")} - {"\n"}
        assert not bad
        assert "no snapshot" in out.getvalue()
        assert r"x\x1b[1my" in out.getvalue() or not once


FLICKERING = [make_snapshot(step, {"L1H1": rising}) for step, rising in ((0, 0), (10, 3), (20, 16))]
"""L1H1 is born at 20, where it is sure, and undecided before."""


def test_heads_that_may_be_active_widen_the_count_and_a_late_birth_is_marked():
    view = View(Timeline(FLICKERING), None)
    assert "step 10: 0-12 active heads, 0 emergent; 1.5 s" in view.line(10)
    assert "1 active head, 1 emergent; born L1H1 (since 10); 1.5 s" in view.line(20)
    assert "Heads    0-12 active" in page(Timeline(FLICKERING[:2]))
    assert "20  born      L1H1 (since 10)" in page(Timeline(FLICKERING))


def test_the_papers_rule_is_named_and_its_births_are_its_own(run):
    assert "1 active head, 1 emergent by the paper's rule; 1.5 s" in View(
        Timeline(FLICKERING, rule="paper"), None
    ).line(20)
    out = io.StringIO()
    assert watch(run, once=True, rule="paper", out=out) == 0
    assert "40 of 100 (paper's rule)" in out.getvalue()
    assert "Paper " not in out.getvalue()
    null = next(line for line in out.getvalue().splitlines() if line.startswith("Null"))
    assert null == "Null     0 emergent on an unchanged model: here more"


def test_control_probes_are_told():
    groups = [""] * 16 + ["control"] * 8
    run = [
        make_snapshot(step, heads, probes=24, groups=groups)
        for step, heads in ((0, ["L0H0"]), (10, {"L0H0": 24, "L1H1": 24, "L1H2": 16}))
    ]
    text = " ".join(page(Timeline(run)).split())
    assert "Control 8 probes: 2 active heads, 1 born there; of 2 births on the other" in text


# -- following -------------------------------------------------------------------------------------


def stop(seconds: float) -> None:
    raise KeyboardInterrupt


def doing(*actions: Callable[[], object]) -> Callable[[float], None]:
    """A sleep that does one thing after another in the place of waiting, and then Ctrl-C."""
    left = iter(actions)

    def sleep(seconds: float) -> None:
        try:
            next(left)()
        except StopIteration:
            raise KeyboardInterrupt from None

    return sleep


def lines_of(path: Path, *actions: Callable[[], object]) -> list[str]:
    out = io.StringIO()
    assert watch(path, out=out, sleep=doing(*actions)) == 0
    return out.getvalue().splitlines()


def test_a_line_a_snapshot(run):
    store = RunStore(run)
    found = lines_of(
        run.parent,
        lambda: store.save(make_snapshot(50, ["L2H0"], overhead=0.05, created=at(300))),
        lambda: None,
        lambda: store.save(make_snapshot(50, ["L0H0", "L2H1"], created="?")),
        lambda: store.set_aside_after(30),
        lambda: damage(run, 30),
        lambda: shutil.rmtree(run),
        lambda: None,
        lambda: store.save(make_snapshot(0, ["L0H0"], created="?")),
    )
    assert found[:6] == [
        "out: 5 snapshots, steps 0 to 40 of 100 (rule of growth); the last of them:",
        "2026-01-01 12:04:00Z step 40: 4 active heads, 2 emergent; born L2H0; revived L1H1; "
        "pruned L2H3; loss 1; 1.5 s",
        "2026-01-01 12:05:00Z step 50: 1 active head, 1 emergent; pruned L1H1; "
        "silenced L0H0, L1H0; loss 1; 1.5 s (5% of the time so far)",
        "step 50: replaced",
        "step 50: 2 active heads, 1 emergent; born L2H1; pruned L1H1, L2H0; silenced L1H0; "
        "loss 1; 1.5 s",
        "steps 40, 50: set aside by a resumed training",
    ]
    assert re.search(r"step-00000030\.safetensors: damaged", found[6])
    assert found[7:] == [
        "steps 0, 10, 20, 30: gone",
        "no snapshot is left",
        "step 0: 1 active head, 0 emergent; 1.5 s",
    ]


def test_a_run_that_is_not_there_yet_is_waited_for(tmp_path):
    folder = tmp_path / "out"
    found = lines_of(
        folder, lambda: None, lambda: write_run(folder / "sparks", [make_snapshot(0, created="?")])
    )
    assert found == [
        f"waiting for snapshots in {folder} or {folder / 'sparks'}",
        "step 0: 0 active heads, 0 emergent; 1.5 s",
    ]


def test_a_snapshot_that_cannot_be_shown_is_told_and_following_goes_on(run):
    store = RunStore(run)
    lines = lines_of(
        run,
        lambda: write_unshowable(store, 50),
        lambda: None,
        store.file(50).unlink,
        lambda: store.save(make_snapshot(60, ["L0H0"])),
    )
    assert "step 40" in lines[1]
    assert lines[2] != ""  # why
    assert "step 50: gone" in lines[3:]
    assert "step 60: " in lines[-1]


def test_snapshots_that_stop_fitting_are_told_and_following_goes_on(run):
    store = RunStore(run)
    found = lines_of(
        run,
        lambda: store.save(make_snapshot(50, probes=3)),
        lambda: None,
        lambda: store.file(50).unlink(),
        lambda: store.save(make_snapshot(50, created="?")),
    )
    assert re.match("snapshots of one timeline must have the same probes", found[2])
    assert found[3] == "step 50: gone"
    assert found[4].startswith("step 50: 0 active heads")
    assert len(found) == 5


def test_a_listing_that_fails_is_told_once(run, monkeypatch):
    def refuse(path):
        raise OSError(5, "Input/output error")

    found = lines_of(
        run,
        lambda: monkeypatch.setattr("sparks.views.live.follower.os.scandir", refuse),
        lambda: None,
        monkeypatch.undo,
        lambda: RunStore(run).save(make_snapshot(50, created="?")),
    )
    assert found[2] == f"cannot read {run} (Input/output error)"
    assert [line[:9] for line in found[3:]] == ["step 50: "]


def test_a_listing_that_fails_at_once_is_refused(run, monkeypatch):
    def refuse(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("sparks.views.live.follower.os.scandir", refuse)
    with pytest.raises(SparksError, match=r"cannot read .* \(Input/output error\)"):
        watch(run, sleep=stop)


def test_a_run_without_a_readable_snapshot_is_told(tmp_path):
    folder = write_run(tmp_path / "run", [make_snapshot(0)])
    damage(folder, 0)
    first, second = lines_of(folder)
    assert "damaged" in first
    assert second == "no snapshot can be read so far"
    with pytest.raises(SparksError, match=r"no snapshot can be read: .*damaged"):
        watch(folder, once=True)


def test_damage_is_the_exit_code_of_once(run):
    damage(run, 20)
    out = io.StringIO()
    assert watch(run, once=True, out=out) == 2
    assert "4 snapshots" in out.getvalue()
    assert "Note " in out.getvalue()


@pytest.mark.parametrize("interval", [0, 0.05, -1, float("nan"), float("inf")])
def test_an_interval_that_is_none_is_refused(run, interval):
    with pytest.raises(SparksError, match=r"interval must be at least 0\.1 seconds, got .*--inter"):
        watch(run, interval=interval)


def test_mistakes_are_refused(run, tmp_path):
    with pytest.raises(SparksError, match=r"trainer_state\.json is a file: give a run folder"):
        watch(run.parent / "checkpoint-40" / "trainer_state.json")
    with pytest.raises(SparksError, match=r"no snapshots in .*nowhere"):
        watch(tmp_path / "nowhere", once=True)
    with pytest.raises(SparksError, match=r"group must be one of .* got 'none'"):
        watch(run, group="none", sleep=stop)


# -- the screen ------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def frames(self) -> list[str]:
        """Each drawing, without the codes that place it."""
        inside = self.getvalue().partition("\x1b[?7l")[2].partition("\x1b[?7h")[0]
        drawings = inside.split("\x1b[H")[1:]
        return [text.removesuffix("\x1b[J").replace("\x1b[K", "") for text in drawings]


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    for name, value in {"COLUMNS": "70", "LINES": "16", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    return Terminal()


def test_the_screen_is_drawn_where_something_changes_and_given_back(run, terminal):
    times = iter([0, 240, 240, 250, 250, 260])  # the start, and each look
    sleep = doing(
        lambda: None,
        lambda: None,
        lambda: RunStore(run).save(make_snapshot(50, ["L2H0"], created=at(300))),
        lambda: shutil.rmtree(run),
    )
    assert watch(run, out=terminal, sleep=sleep, clock=lambda: NOON + next(times)) == 0
    first, later, landed, gone = terminal.frames
    assert first.startswith("sparks watch: a look every 2 s, Ctrl-C leaves\nVerdict  2 heads grew")
    assert "\nRun      out: 5" in first
    assert len(first.splitlines()) == 15
    assert "step 50 in about 1 min" in first
    assert "step 50 in about 50 s" in later
    assert "  50  pruned    L1H1" in landed
    assert "steps 0, 10, 20, 30, 40, 50: gone" in " ".join(gone.split())
    assert "shown is what was there before" in gone
    kept = terminal.getvalue().partition("\x1b[?1049l")[2]
    assert kept == gone.partition("\n")[2]
    assert "\x1b" not in "".join(terminal.frames)  # no colours unless asked for


def test_the_screen_waits_with_a_clock(tmp_path, terminal):
    times = iter([0, 0, 75])
    sleep = doing(lambda: None)
    watch(tmp_path / "out", out=terminal, sleep=sleep, clock=lambda: next(times))
    first, later = (" ".join(frame.split()) for frame in terminal.frames)
    assert re.search(r"Run waiting for snapshots in .*out or .*sparks \(0 s\)$", first)
    assert later == first.replace("(0 s)", "(1 min)")


@pytest.mark.parametrize("lines", [3, 6, 40])
def test_the_screen_is_no_higher_than_the_terminal(run, terminal, monkeypatch, lines):
    monkeypatch.setenv("LINES", str(lines))
    watch(run, out=terminal, sleep=stop, clock=lambda: NOON)
    assert len(terminal.frames[0].splitlines()) == min(lines - 1, 29)


def test_colours_are_on_the_screen_when_asked_for(run, terminal):
    watch(run, out=terminal, color=True, sleep=stop)
    assert "\x1b[1;34m" in terminal.frames[0]


def test_a_dumb_terminal_gets_lines(run, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    watch(run, out=terminal, sleep=stop)
    assert "\x1b" not in terminal.getvalue()


def test_a_failure_gives_the_screen_back(run, terminal):
    def fail(seconds):
        raise RuntimeError("broken")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="broken"):
        watch(run, out=terminal, sleep=fail)
    assert terminal.getvalue().endswith("\x1b[?7h\x1b[?25h\x1b[?1049l")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_real_terminal_is_left_in_order(run, number, code):
    import pty

    ours, theirs = pty.openpty()
    program = (
        "import sys; from sparks.views.live.terminal import watch; sys.exit(watch(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, run]
    terminal = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    shown = b""
    with started(command, **terminal, env=os.environ | {"TERM": "xterm"}) as process:
        os.close(theirs)
        while b"\x1b[J" not in shown:
            shown += os.read(ours, 4096)
        process.send_signal(number)
        try:
            while more := os.read(ours, 4096):
                shown += more
        except OSError:  # the other end is closed
            pass
        assert process.wait(60) == code
    os.close(ours)
    assert b"\x1b[?1049l" in shown
    assert b"Traceback" not in shown
    after = shown.partition(b"\x1b[?1049l")[2].decode()
    assert ("Run      out: 5 snapshots" in after) == (number == signal.SIGINT)
