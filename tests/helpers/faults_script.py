"""Run by test_faults.py as one process: real trainings, killed at many moments and resumed.

Torch is imported once; every training is a forked child, which starts in a fraction of a second.
Only files tell what happened: nothing of a killed child is asked for.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)

from run_folder import flaws  # noqa: E402
from tiny_training import PROBES, tiny_trainer  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from transformers.utils import logging  # noqa: E402

from sparks.training.callback import SparksCallback  # noqa: E402

MAX_STEPS = 6
KILLS = 18
FILE_EVENTS = {"open": 20, "os.rename": 7, "os.remove": 6}
"""A child is killed at one of the first so many of these in the run folder."""


def train(
    folder: Path, *callbacks: TrainerCallback, every_n_steps: int | None = None, **settings: Any
) -> None:
    """Train in this process; from the last whole checkpoint, if there is one."""
    measuring = {"points": 4, "threshold": 0.0, "top_n": 60}
    sparks = SparksCallback(PROBES, progress=False, every_n_steps=every_n_steps, **measuring)
    defaults = {"max_steps": MAX_STEPS, "save_steps": 1, "save_total_limit": 3}
    trainer = tiny_trainer(folder, callbacks=[*callbacks, sparks], **defaults | settings)
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))


def last_whole_checkpoint(folder: Path) -> str | None:
    """The last one before the end that a kill has not left half.

    `resume_from_checkpoint=True` takes the newest folder, whole or not; and a Trainer that is
    resumed from its last step takes one step more.
    """
    steps = {int(path.name[11:]): path for path in folder.glob("checkpoint-*")}
    for step in sorted(steps.keys() - {MAX_STEPS}, reverse=True):
        path = steps[step]
        try:
            json.loads((path / "trainer_state.json").read_text())  # the file that is written last
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        return str(path)
    return None


def child(work: Callable[[], None], out: int) -> int:
    """Start `work` in a child whose output goes to the file descriptor `out`; the child's id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """Exit code; -9 for a killed child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at_file_event(kind: str, number: int, folder: Path) -> None:
    """Be killed as the `number`-th file of the run folder is opened, renamed or removed.

    Of every second renaming to a final name, the file is cut in half first: a kill in the middle
    of its writing.
    """
    seen = 0
    inside = str(folder / "sparks") + os.sep

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event != kind or not str(args[0]).startswith(inside):
            return
        seen += 1
        if seen < number:
            return
        if event == "os.rename" and number % 2 and str(args[0]).endswith(".tmp"):
            os.truncate(args[0], os.path.getsize(args[0]) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def killed_runs(folder: Path, life: float) -> None:
    """Trainings that are killed and resumed until they are done, until there were enough kills.

    Args:
        folder: every training gets a folder in it.
        life: seconds that an unharmed training takes.
    """
    moments = random.Random(7)
    kinds = itertools.cycle(FILE_EVENTS)
    kills: list[dict[str, Any]] = []
    for number_of_run in itertools.count():
        if len(kills) >= KILLS:
            break
        run = folder / f"run-{number_of_run}"
        run.mkdir(parents=True)
        while True:
            delay = moments.random() * life
            event = next(kinds)
            number = moments.randrange(1, FILE_EVENTS[event] + 1)
            doomed = len(kills) < KILLS
            by_clock = len(kills) % 2 == 0 and len(kills) > 0
            if not kills:  # one dies before anything is measured, whatever the machine's speed
                number = 1

            def work(
                run: Path = run,
                event: str | None = event if doomed and not by_clock else None,
                number: int = number,
            ) -> None:
                if event:
                    die_at_file_event(event, number, run)
                train(run)

            with (run / "log.txt").open("a") as log:
                pid = child(work, log.fileno())
            if doomed and by_clock:
                time.sleep(delay)
                os.kill(pid, signal.SIGKILL)
            code = wait(pid)
            if code != -signal.SIGKILL:
                break
            moment = (
                {"after_seconds": delay} if by_clock else {"at_file_event": f"{event} {number}"}
            )
            kills.append({"run": run.name, **moment, "left": left_behind(run), **torn(run)})
        if code:
            raise SystemExit(
                f"{run.name} failed with {code}: {(run / 'log.txt').read_text()[-3000:]}"
            )
    (folder / "kills.json").write_text(json.dumps(kills, indent=1))


def left_behind(run: Path) -> list[str]:
    """Names in the run folder after a kill."""
    return sorted(path.name for path in (run / "sparks").glob("*"))


def torn(run: Path) -> dict[str, Any]:
    """What a reader would stumble over after a kill, in the middle of the run."""
    whole = last_whole_checkpoint(run)
    return {"flaws": flaws(run / "sparks"), "checkpoint": whole and Path(whole).name}


class FullDisk(TrainerCallback):
    """Between steps 2 and 3 no file of this process may grow beyond some hundred bytes."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            _limit_files(300)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            _limit_files(resource.RLIM_INFINITY)


def _limit_files(num_bytes: int) -> None:
    """The system refuses a write beyond that with EFBIG, as a full disk does with ENOSPC."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def full_disk(folder: Path) -> None:
    """A training whose snapshot of step 2 cannot be written; the trainer itself writes nothing."""
    end, out = os.pipe()  # a log file would be limited too
    pid = child(lambda: train(folder, FullDisk(), every_n_steps=1, save_strategy="no"), out)
    os.close(out)
    with open(end) as pipe:
        said = pipe.read()
    (folder / "said.json").write_text(json.dumps({"code": wait(pid), "said": said}))


def straight(folder: Path) -> float:
    """An unharmed training; the seconds that it took."""
    folder.mkdir()
    start = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        code = wait(child(lambda: train(folder), log.fileno()))
    if code:
        raise SystemExit((folder / "log.txt").read_text()[-3000:])
    return time.perf_counter() - start


def main() -> None:
    """Argument: a folder that takes everything."""
    folder = Path(sys.argv[1])
    logging.disable_progress_bar()
    # Children do not search what they share for garbage, which would also copy it.
    gc.freeze()
    life = straight(folder / "straight")
    killed_runs(folder / "killed", life)
    (folder / "full").mkdir()
    full_disk(folder / "full")


if __name__ == "__main__":
    main()
