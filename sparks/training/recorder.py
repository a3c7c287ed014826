"""A training run on its way into its run folder: what is measured, kept and shown; not when.

Every process of the training holds one. Process 0 alone reads and writes the folder and shows the
views; all of them measure, and whatever process 0 decides or fails at, all of them learn
(`models.processes`). The clock of the overhead runs from `begin`.
"""

from __future__ import annotations

import shlex
import sys
import time
import warnings
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from tqdm import tqdm
from transformers import TrainerState, TrainingArguments

from sparks.attribution.secant_proof import settle
from sparks.attribution.snapshot import Snapshot, SnapshotMeta
from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError, printable, reason
from sparks.models import processes
from sparks.models.adapters import without_adapter
from sparks.models.anatomy import base_model
from sparks.models.sharding import whole
from sparks.probes.pairs import TokenizedProbes
from sparks.probes.probes import ProbeSet
from sparks.runs.evaluations import StepEvaluation
from sparks.runs.lock import RunLock
from sparks.runs.run_folder import FOLDER, RunStore
from sparks.runs.trainer_log import latest_metrics
from sparks.timeline.history import History
from sparks.timeline.input import steps_text
from sparks.timeline.timeline import Timeline
from sparks.training.evaluator import CheckpointEvaluator
from sparks.training.probe_count import few_probes
from sparks.views.report import followers, write_report
from sparks.views.trackers.trackers import Trackers
from sparks.views.words import growth_in_words, heads_at

REPORT = "report.html"


class ProbeSource(Protocol):
    """Builds probes when a training begins."""

    def build(
        self, model: nn.Module, tokenizer: Any, config: SnapshotConfig, folder: Path, *, step: int
    ) -> ProbeSet:
        """The probes; every process makes this call and gets the same."""
        ...


class Recorder:
    """Measures a model in training and keeps what was found.

    Args:
        probes: what is measured; or what builds it once the model is there.
        config: how.
        store: the run folder.
        progress: show a bar while a snapshot is taken, and a line after it.
        evaluator: evaluates every checkpoint too; None evaluates none.
    """

    def __init__(
        self,
        probes: ProbeSet | ProbeSource,
        config: SnapshotConfig,
        store: RunStore,
        *,
        progress: bool,
        evaluator: CheckpointEvaluator | None = None,
    ) -> None:
        self.probes, self.config, self.store, self.progress = probes, config, store, progress
        self.evaluator = evaluator
        self.measured: set[int] = set()
        """Steps that have a snapshot; the same in every process."""
        self.snapshots = History.empty(store.load)
        """Their numbers; whole, the first and the last two. In process 0 alone."""
        self.evaluated: set[int] = set()
        """Steps that have an evaluation; the same in every process."""
        self.evaluations: dict[int, StepEvaluation] = {}
        """By step; in process 0 alone."""
        self._holes: dict[tuple[str, int], str] = {}
        """Why a step has no snapshot, or no evaluation; in process 0 alone."""
        self._unwritten: set[tuple[str, int]] = set()
        """Holes that the folder does not tell of, as it could not be written."""
        self._lock = RunLock(store.path)
        self._tokenizer: Any = None
        self._state: TrainerState | None = None
        self._spent_evaluating = 0.0
        self._tokenized: TokenizedProbes | None = None
        self._trackers: Trackers | None = None  # in process 0 alone
        self._began, self._spent, self._first_step = time.perf_counter(), 0.0, 0

    # -- beginning ---------------------------------------------------------------------------

    def begin(self, model: nn.Module, processing_class: Any, state: TrainerState) -> None:
        """Read or build the probes with the trainer's tokenizer, and open the folder.

        A resumed run keeps the snapshots up to its checkpoint; a new one keeps nothing of an
        earlier run but moves it away whole.

        Raises:
            SparksError: probes, tokenizer or folder are not as they must be. The folder is as it
                was.
        """
        self._began, self._first_step = time.perf_counter(), state.global_step
        self._state = state

        if processing_class is None:
            raise SparksError(
                "the trainer has no processing_class: give it the model's tokenizer, as in "
                "SFTTrainer(processing_class=tokenizer)"
            )
        self._tokenizer = _tokenizer_of(processing_class)
        if self.config.method == "secant":  # what is asked for, held against what the folder has
            self.config = settle(whole(model), self.config)
        probes = self._settle_probes(model, state.global_step)

        def prepare() -> tuple[TokenizedProbes, set[int], set[int]]:
            config = getattr(base_model(model), "config", None)
            tokenized = probes.tokenize_for(config, self._tokenizer, self.config)
            few = few_probes(tokenized.groups)
            if few is not None and not state.global_step:  # a resumed run cannot have others
                say(f"warning: {few}")
            if self.evaluator is not None:
                self.evaluator.check(model, self._tokenizer)
            self._open_store(tokenized, probes.to_jsonl(), state.global_step)
            return tokenized, set(self.snapshots.steps), set(self.evaluations)

        self._tokenized, self.measured, self.evaluated = processes.first_does(prepare)

    def _settle_probes(self, model: nn.Module, step: int) -> ProbeSet:
        """The probes that were given, else those that a resumed run has, else new ones."""
        if isinstance(self.probes, ProbeSet):
            return self.probes
        folder = self.store.path

        def kept() -> ProbeSet | None:
            self.store.prepare()  # what cannot be written is told before anything is built
            path = folder / "probes.jsonl"
            if not step or not path.exists():
                return None
            probes = ProbeSet.load(path)
            say(f"{len(probes)} probes of the run that is resumed, from {printable(path)}")
            return probes

        found = processes.first_does(kept)
        if found is None:
            found = self.probes.build(model, self._tokenizer, self.config, folder, step=step)
        return found

    def _open_store(self, tokenized: TokenizedProbes, probes: str, step: int) -> None:
        """Be the only one to write the folder, from now to `close`, and take up what is there."""
        self.store.prepare()
        self._lock.take()
        try:
            self.store.undo_unfinished()
            self._take_up(tokenized, probes, step)
        except BaseException:
            self._lock.free()
            raise

    def _take_up(self, tokenized: TokenizedProbes, probes: str, step: int) -> None:
        """Begin a new run, or go on with the one that is there from its checkpoint of `step`."""
        store = self.store
        if step == 0:
            if (earlier := store.begin(probes)) is not None:
                say(f"{store.path} held an earlier run, which is now in {earlier}")
            return
        snapshots, contents = History.read(store, until=step)
        for outline in snapshots.outlines:
            self._refuse_other_run(outline.meta, tokenized)
        if self.evaluator is not None:
            store.evaluations.refuse_other_settings(
                self.evaluator.task.hash,
                self.evaluator.config,
                except_steps=[later for later in store.evaluations.steps() if later > step],
            )
        # Nothing was touched until here.
        for problem in contents.problems:
            warnings.warn(f"sparks: {problem}", stacklevel=3)
        store.set_aside_after(step, contents.strangers)
        store.go_on(contents.run_id, probes)
        self.snapshots = snapshots
        self.evaluations = {item.step: item for item in contents.evaluations}

    def _refuse_other_run(self, meta: SnapshotMeta, tokenized: TokenizedProbes) -> None:
        if meta.probes_hash != tokenized.hash:
            raise SparksError(
                f"{self.store.path} holds snapshots of other probes (step {meta.step}, hash "
                f"{meta.probes_hash[:12]}, now {tokenized.hash[:12]}): resume "
                f"with the same probes, or give another output_dir"
            )
        if found := meta.settings.difference(self.config):
            name, held, now = found
            raise SparksError(
                f"{self.store.path} holds a snapshot of step {meta.step} with {name}={held!r}, now "
                f"it is {now!r}: resume with the same settings, or give another output_dir"
            )

    # -- measuring ---------------------------------------------------------------------------

    def record(self, model: nn.Module, state: TrainerState, *, base: bool = False) -> None:
        """Measure `model` and keep the snapshot; `base` does it without the adapter, as step 0.

        Raises:
            SparksError: as `take_snapshot` and `RunStore.save` do.
        """
        assert self._tokenized is not None
        start = time.perf_counter()
        with without_adapter(model) if base else nullcontext():
            snapshot = take_snapshot(
                model,
                self._tokenized,
                self.config,
                step=0 if base else state.global_step,
                epoch=0.0 if base else state.epoch,
                metrics={} if base else latest_metrics(state.log_history),
                source="callback",
                progress=self.progress and processes.index() == 0,
                shared=True,
            )
        if state.global_step > self._first_step:
            share = (self._spent + time.perf_counter() - start) / self.seconds
            snapshot = replace(snapshot, meta=replace(snapshot.meta, overhead=round(share, 5)))
        processes.first_does(lambda: self._keep(snapshot, state))
        self.measured.add(snapshot.step)
        self._spent += time.perf_counter() - start
        if self.progress and processes.index() == 0:
            say(_line(self._timeline(state), snapshot))

    def _keep(self, snapshot: Snapshot, state: TrainerState) -> None:
        self.store.save(snapshot)
        self.snapshots = self.snapshots.without([snapshot.step]).extended(snapshot)
        self._fill_hole("snapshot", snapshot.step)
        try:
            self.store.write_metrics(state.log_history)
        except SparksError as error:  # the snapshot stands; the next one writes the log again
            warnings.warn(f"sparks: the log is not kept ({error})", stacklevel=3)

    def evaluate(self, model: nn.Module, state: TrainerState, *, base: bool = False) -> None:
        """Evaluate `model` and keep its samples; `base` does it without the adapter, as step 0.

        Raises:
            SparksError: as `CheckpointEvaluator.run` does.
        """
        assert self.evaluator is not None
        start, step = time.perf_counter(), 0 if base else state.global_step
        with without_adapter(model) if base else nullcontext():
            found = self.evaluator.run(
                model,
                self._tokenizer,
                self.store.evaluations,
                step,
                progress=self.progress,
                shared=True,
            )
        self.evaluated.add(step)
        if processes.index() == 0:
            self.evaluations[step] = found
            self._fill_hole("evaluation", step)
        seconds = time.perf_counter() - start
        self._spent += seconds
        self._spent_evaluating += seconds
        if self.progress and processes.index() == 0:
            share = self._spent / self.seconds if step > self._first_step else None
            say(evaluation_line(found, seconds, share))

    def note_failure(self, what: str, step: int, reason: str) -> None:
        """Remember that `step` has no `what` (snapshot or evaluation) and why.

        In the folder too, and as soon as that can be written.
        """
        if processes.index() == 0:
            self._holes[what, step] = reason
            self._unwritten.add((what, step))
            self._write_holes()

    def _fill_hole(self, what: str, step: int) -> None:
        """The step has one after all; and the folder could be written."""
        self._holes.pop((what, step), None)
        self._unwritten.discard((what, step))
        self._write_holes()

    def _write_holes(self) -> None:
        for what, step in sorted(self._unwritten):
            kept = self.store if what == "snapshot" else self.store.evaluations
            if kept.note_failure(step, self._holes[what, step]):
                self._unwritten.discard((what, step))

    def write_log(self, state: TrainerState) -> None:
        """Bring the folder's copy of the trainer's log, and its holes, up to date.

        Raises:
            SparksError: it cannot be written.
        """

        def write() -> None:
            self._write_holes()
            self.store.write_metrics(state.log_history)

        processes.first_does(write)

    # -- showing -----------------------------------------------------------------------------

    def start_trackers(self, args: TrainingArguments, state: TrainerState, *, alerts: bool) -> None:
        """Take the trackers that the trainer reports to; its reporters have begun.

        Raises:
            SparksError: one of them cannot start.
        """

        def start() -> None:
            self._trackers = Trackers(args, state, alerts=alerts, folder=self.store.path)

        processes.first_does(start)

    def show(self, state: TrainerState) -> None:
        """Show the timeline so far in the trackers."""
        if self._trackers:
            self._trackers.log(cache(lambda: self._timeline(state)))

    def show_end(self, state: TrainerState, report: Path | None) -> None:
        """Show what is known only at the end, while the trainer's runs are still open."""
        if self._trackers and self.snapshots:
            files = self.store.kept_files(self.snapshots.steps)
            self._trackers.finish(cache(lambda: self._timeline(state)), report, files)

    def close(self) -> None:
        """Give back the folder, and what was opened for the trackers."""
        self._lock.free()
        if self._trackers is not None:
            self._trackers.close()

    def _timeline(self, state: TrainerState) -> Timeline:
        return Timeline(
            self.snapshots,
            metrics=state.log_history,
            name=self.store.name,
            evaluations=list(self.evaluations.values()),
        )

    def write_report(self) -> Path | None:
        """The report of the run folder; None, and a warning, if it cannot be written."""
        path = self.store.path / REPORT
        try:
            write_report([Timeline.from_run(self.store.path, followers=followers(None))], path)
        except Exception as error:  # the trainer has its best model to load, and runs to close
            warnings.warn(f"sparks: no report ({reason(error)})", stacklevel=3)
            return None
        return path

    def end_lines(self, report: Path | None) -> list[str]:
        """How many heads changed, and where the report lies; how to look again."""
        assert self._state is not None
        try:
            verdict = growth_in_words(self._timeline(self._state))
        except Exception as error:  # as for the report
            verdict = f"no verdict ({reason(error)})"
        folder = self.store.path
        run = shlex.quote(printable(folder.parent if folder.name == FOLDER else folder))
        again = f"look again with `sparks timeline {run}`"
        if report is None:
            return [verdict, f"{again}; `sparks report {run}` writes the page"]
        return [f"{verdict}; see {printable(report)}", again]

    def tell_broken_off(self) -> None:
        """Say what a training that never came to its end has left, if it is still all there is."""
        if not self.measured or self.store.steps() != sorted(self.measured):
            return
        say(
            f"the training broke off: {len(self.measured)} snapshots in "
            f"{printable(self.store.path)}; resumed, it goes on with them"
        )
        for line in self.end_lines(None):
            say(line)

    @property
    def seconds(self) -> float:
        """Time since the training began, or was resumed."""
        return time.perf_counter() - self._began

    def tell_holes(self) -> None:
        """Say which steps of this training have no snapshot or no evaluation; once, at its end."""
        for kind in ("snapshot", "evaluation"):
            steps = sorted(step for what, step in self._holes if what == kind)
            if steps:
                why = self._holes[kind, steps[-1]]
                say(
                    f"no {kind} of {steps_text(steps)} ({'the last: ' * (len(steps) > 1)}{why}); "
                    f"`sparks replay` takes it from a checkpoint"
                )

    def summary(self) -> str:
        """What the snapshots of this training, or since it was resumed, cost, in a line."""
        line = (
            f"{len(self.measured)} snapshots in {printable(self.store.path)}, {self._spent:.1f} s "
            f"of {self.seconds:.1f} s ({self._spent / self.seconds:.1%})"
        )
        if self.evaluator is not None:
            line += f", {self._spent_evaluating:.1f} s of it on {len(self.evaluated)} evaluations"
        return line


def say(line: str) -> None:
    """On standard error, above the bars."""
    tqdm.write(f"sparks: {line}", file=sys.stderr)


def _tokenizer_of(processing_class: Any) -> Any:
    return getattr(processing_class, "tokenizer", processing_class)


def evaluation_line(found: StepEvaluation, seconds: float, share: float | None) -> str:
    """What an evaluation found, the time that it took, and the share of all until now."""
    score = found.pass_at_1()
    line = (
        f"step {found.step}: pass@1 {score.value:.1%} ({score.low:.1%} to {score.high:.1%}) on "
        f"{len(found.ids)} problems of {printable(found.task)}, {seconds:.1f} s"
    )
    return line if share is None else f"{line}, {share:.1%} of the time so far"


def _line(timeline: Timeline, snapshot: Snapshot) -> str:
    """Heads as every view counts them; what the snapshot cost."""
    heads = heads_at(timeline, timeline.steps.tolist().index(snapshot.step))
    line = f"step {snapshot.step}: {heads}, {snapshot.meta.seconds:.1f} s"
    if snapshot.meta.router_share is not None:
        line += f", {snapshot.meta.router_share:.0%} of L to routers that switch experts"
    if snapshot.meta.overhead is not None:
        line += f", {snapshot.meta.overhead:.1%} of the time so far"
    return line
