"""`sparks watch RUN`: a training followed on a terminal, or a line a snapshot in a log file."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TextIO

from sparks.ground.errors import SparksError, reason
from sparks.ground.plain_text import inert
from sparks.runs.run_folder import RunStore
from sparks.timeline.input import steps_text
from sparks.timeline.regimes.turnover import Turnover
from sparks.timeline.timeline import Rule, Timeline
from sparks.views.live.follower import Changes, RunFollower, max_steps_of
from sparks.views.live.page import View, duration
from sparks.views.text.page import Page
from sparks.views.words import circuits_now

SHORTEST_INTERVAL = 0.1
"""Seconds between two looks."""
_ROWS = 28  # lines of a page where no terminal sets a height

# The other screen, no cursor, long lines cut; and all of it back.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"


def watch(
    path: str | os.PathLike[str],
    *,
    interval: float = 2.0,
    once: bool = False,
    group: str | None = None,
    rule: Rule = "growth",
    color: bool = False,
    out: TextIO | None = None,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> int:
    """Follow a run until Ctrl-C.

    On a terminal a page is drawn again and again; elsewhere each snapshot is a line. What is wrong
    with the folder is told in a line, and following goes on.

    Args:
        path: run folder, or a trainer's output folder; it need not exist yet.
        interval: seconds between two looks.
        once: print the page and leave.
        group: count only the probes of this group.
        rule: how heads are judged: `growth` or `paper`.
        color: with ANSI colours.
        out: where to print; None for standard output.
        sleep: waits a number of seconds.
        clock: seconds since 1970.

    Returns:
        The exit code: 0; with `once`, 2 where a file of the run is damaged.

    Raises:
        SparksError: `interval` is too small; `path` is a file; before anything was shown, the
            folder cannot be listed or its snapshots do not fit together; with `once`, there are
            none.
    """
    if not (math.isfinite(interval) and interval >= SHORTEST_INTERVAL):
        raise SparksError(
            f"interval must be at least {SHORTEST_INTERVAL} seconds, got {interval!r}: give "
            "another --interval"
        )
    out = out or sys.stdout
    watched = _Watched(path, group, rule)
    if once:
        return _print_once(watched, out, color, clock)
    try:
        if out.isatty() and os.environ.get("TERM") != "dumb":
            _follow_on_screen(watched, out, color, interval, sleep, clock)
        else:
            _follow_in_lines(watched, out, interval, sleep)
    except KeyboardInterrupt:  # how one leaves; no failure
        pass
    return 0


class _Watched:
    """The run as the last look found it."""

    def __init__(self, path: str | os.PathLike[str], group: str | None, rule: Rule) -> None:
        self.follower = RunFollower(path, group=group, rule=rule)
        self.view: View | None = None
        self.trouble = self._unshown = ""
        """Why what stands in the folder cannot be shown."""
        self.waiting = f"waiting for snapshots in {path} or {os.path.join(path, 'sparks')}"

    def look(self) -> Changes | None:
        """Look at the folder; None where there is nothing to tell.

        Raises:
            SparksError: it fails, and nothing was ever shown.
        """
        changes, unlisted = None, ""
        try:
            changes = self.follower.poll()
        except Exception as error:  # whatever the folder holds: what was there before is shown
            if self.view is None:
                raise
            unlisted = reason(error)
        if changes is not None:
            self._unshown = self._show()
        trouble = unlisted or self._unshown
        if trouble not in ("", self.trouble):
            changes = changes or Changes()
            changes = replace(changes, problems=(*changes.problems, trouble))
        self.trouble = trouble
        return changes

    def _show(self) -> str:
        """Take up what was read; returns why it cannot be shown, or nothing."""
        try:
            timeline = self.follower.timeline()
            if timeline is None or self.follower.folder is None:
                return "no snapshot is left" if self.view else "no snapshot can be read so far"
            self.view = View(timeline, max_steps_of(self.follower.folder), self._circuits(timeline))
        except SparksError as error:
            if self.view is None:
                raise
            return str(error)
        except Exception as error:  # whatever the files hold: what was there before is shown
            if self.view is None:
                raise SparksError(f"what was read cannot be shown ({reason(error)})") from error
            return reason(error)
        return ""

    def _circuits(self, timeline: Timeline) -> Turnover | None:
        """Of the last checkpoint; None where the files that it takes are gone again."""
        try:
            return circuits_now(timeline, self.follower.ends())
        except SparksError:
            return None


def _print_once(watched: _Watched, out: TextIO, color: bool, clock: Callable[[], float]) -> int:
    RunStore.find(watched.follower.path)  # says what is missing
    watched.look()
    problems = watched.follower.problems
    if watched.view is None:
        raise SparksError(f"no snapshot can be read: {' '.join(problems[:1]) or 'they are gone'}")
    page = Page(None, color)
    watched.view.write(page, clock(), rows=_ROWS)
    print("\n".join(page.lines), file=out)
    return 2 if problems else 0


def _news(changes: Changes | None) -> list[str]:
    """What happened in the folder beside snapshots that landed, a line each."""
    if changes is None:
        return []
    told = (
        (changes.set_aside, "set aside by a resumed training"),
        (changes.removed, "gone"),
        (changes.replaced, "replaced"),
    )
    lines = [f"{steps_text(steps)}: {what}" for steps, what in told if steps]
    return [*lines, *map(inert, changes.problems)]


# -- lines -----------------------------------------------------------------------------------


def _follow_in_lines(
    watched: _Watched, out: TextIO, interval: float, sleep: Callable[[float], object]
) -> None:
    """A line a snapshot; of those that were there before, the last."""
    first = True
    while True:
        changes = watched.look()
        if first and changes is None:
            print(inert(watched.waiting), file=out, flush=True)
        for line in _lines(watched, changes, first):
            print(line, file=out, flush=True)
        first = False
        sleep(interval)


def _lines(watched: _Watched, changes: Changes | None, first: bool) -> Iterator[str]:
    yield from _news(changes)
    if changes is None or watched.view is None or watched.trouble:
        return
    shown = sorted({*changes.landed, *changes.replaced})
    if first and len(shown) > 1:
        yield f"{watched.view.title}; the last of them:"
        shown = shown[-1:]
    for step in shown:
        yield watched.view.line(step)


# -- screen ----------------------------------------------------------------------------------


def _follow_on_screen(
    watched: _Watched,
    out: TextIO,
    color: bool,
    interval: float,
    sleep: Callable[[float], object],
    clock: Callable[[], float],
) -> None:
    """A page that is drawn where the last one stood; the last of all stays when one leaves."""
    started, news = clock(), list[str]()
    drawn: list[str] = []
    with _screen(out):
        try:
            while True:
                if (changes := watched.look()) is not None:
                    news = _news(changes)
                head = f"sparks watch: a look every {interval:g} s, Ctrl-C leaves"
                lines = _page_lines(watched, color, head, news, clock(), started)
                if lines != drawn:
                    drawn = lines  # first, as Ctrl-C may come while it is written
                    out.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
                    out.flush()
                sleep(interval)
        except KeyboardInterrupt:
            pass
    print("\n".join(drawn[1:]), file=out, flush=True)


def _page_lines(
    watched: _Watched, color: bool, head: str, news: list[str], now: float, started: float
) -> list[str]:
    page = Page(None, color)
    page.lines.append(page.styled(head, "quiet"))
    height = max(2, shutil.get_terminal_size().lines - 1)  # the cursor has the last line
    if watched.view is not None:
        old = ["shown is what was there before"] if watched.trouble else []
        watched.view.write(page, now, notes=[*news, *old], rows=height)
        return page.lines[:height]
    page.labelled("Run    ", f"{inert(watched.waiting)} ({duration(now - started)})")
    for problem in dict.fromkeys((*watched.follower.problems, *news)):
        page.labelled("Note   ", inert(problem), style="warning")
    return page.lines[:height]


@contextmanager
def _screen(out: TextIO) -> Iterator[None]:
    """The terminal's other screen, given back whatever happens; SIGTERM ends in order."""

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    out.write(_ENTER)
    try:
        yield
    finally:
        out.write(_LEAVE)
        out.flush()
        signal.signal(signal.SIGTERM, before)
