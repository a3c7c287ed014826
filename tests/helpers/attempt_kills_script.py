"""Run by test_run_identity.py: a new run begins over an old one and is killed at each file event.

Argument: a folder with `whole`, the run folder of the old run. Prints JSON: kills, and what was
wrong after any of them. Every beginning is a forked child; only files tell what happened.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparks.runs.run_folder import RunStore

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
PROBES = "the new probes\n"


def killed(folder: Path, number: int, work: Callable[[], None]) -> bool:
    """Do `work` in a child that is killed before its `number`-th file event in `folder`."""
    seen = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and str(args[0]).startswith(str(folder)):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if not pid:
        sys.addaudithook(watch)
        work()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"event {number}: exit code {code}")
    return code != 0


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def begin(folder: Path) -> None:
    store = RunStore(folder)
    store.undo_unfinished()
    store.begin(PROBES)


def flaws(folder: Path, old: dict[str, bytes], mine: set[str]) -> list[str]:
    """What is wrong after a kill: now, and after each way to go on. `mine` never moves."""
    found = []
    moved = {name: text for name, text in old.items() if name not in mine}
    left = files(folder)
    for name, text in old.items():
        places = [name, f"attempt.part/{name}", f"attempt-1/{name}"]
        held = [place for place in places if left.get(place) == text]
        if len(held) != 1 or (name in mine and held != [name]):
            found.append(f"{name} is in {held}")
    resumed = shutil.copytree(folder, folder.with_name("resumed"))
    RunStore(resumed).undo_unfinished()
    home = resumed / "attempt-1" if (resumed / "attempt-1").exists() else resumed
    after = files(home)
    found += [f"resumed: {name}" for name, text in moved.items() if after.get(name) != text]
    begin(folder)
    if files(folder / "attempt-1") != moved:
        found.append(f"begun again: attempt-1 holds {sorted(files(folder / 'attempt-1'))}")
    names = sorted(path.name for path in folder.iterdir())
    if names != ["attempt-1", "evaluation", "notes.txt", "probes.jsonl", "run.json"]:
        found.append(f"begun again: {names}")
    shutil.rmtree(resumed)
    return found


def main() -> None:
    """Kill at every event of a beginning; and, half-way, at every event of the next one."""
    base = Path(sys.argv[1])
    old = files(base / "whole")
    mine = {"notes.txt", "evaluation/mine.txt"}
    kills, found = 0, []
    run = base / "run"

    def case(*numbers: int) -> bool:
        """Copy the old run and begin so many times; False where the last one was not killed."""
        nonlocal kills
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(base / "whole", run)
        hit = [killed(run, number, lambda: begin(run)) for number in numbers][-1]
        if hit:
            kills += 1
            found.extend(f"killed at {numbers}: {flaw}" for flaw in flaws(run, old, mine))
        return hit

    first = next(number for number in itertools.count(1) if not case(number))
    next(number for number in itertools.count(1) if not case(first // 2, number))
    print(json.dumps({"kills": kills, "flaws": found}))


if __name__ == "__main__":
    main()
