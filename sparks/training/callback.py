"""The callback that a training script adds: a snapshot of the base model, at each save, at the end.

What happens when:
1. `on_train_begin`: probes are built where none were given (`own_probes`); everything that can be
   wrong with probes, model or folder is found here, before a step is spent; then the base model is
   measured (step 0). A resumed run keeps the snapshots up to its checkpoint, sets later ones aside,
   and measures the checkpoint if it has none. A training that begins anew moves the run that it
   finds in its folder to `attempt-N` there, whole. One that finds another training at work there is
   refused.
2. `on_save`, and every `every_n_steps` where asked: a snapshot; in the trackers that the trainer
   reports to, the numbers and two pictures of the timeline so far.
3. The trainer's closing log, with which it ends: the last step if it has none, then the report, and
   in the trackers table, report and snapshots. Not `on_train_end`: reporters close their runs there
   before other callbacks are called, and the best model may have been loaded by then.

Where a task is given, each checkpoint is evaluated after it was measured: answers to its problems
are sampled and checked, and kept in the run folder.

Training is left untouched: weights, optimizer, random states and logs are bitwise what they are
without the callback. A step is measured once. This module says when; `recorder` does the work, in
every process of the training.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparks.ground.config import (
    Method,
    Positions,
    Quadrature,
    SnapshotConfig,
    ThresholdMode,
    at_least,
    check_value,
)
from sparks.ground.errors import SparksError, reason
from sparks.models.adapters import can_be_disabled
from sparks.models.sharding import refuse_unknown_sharding
from sparks.probes.pairs import TokenPair
from sparks.probes.probes import ProbeSet
from sparks.probes.settings import NUM_CONTROLS, NUM_PROBES
from sparks.runs.run_folder import FOLDER, RunStore
from sparks.training.evaluator import CheckpointEvaluator
from sparks.training.own_probes import ProbesFromTraining, ProbesOfPairs, Wishes
from sparks.training.recorder import ProbeSource, Recorder, say

if TYPE_CHECKING:
    from sparks.evaluation.records import Task
    from sparks.evaluation.settings import EvaluationConfig
    from sparks.probes.probes import Probe

_CLOSING_METRIC = "train_runtime"
"""Stands in the last log of a training and in no other."""


class SparksCallback(TrainerCallback):
    """Measures which attention heads carry the trained behaviour, at every checkpoint.

    Without `probes` they are built from what is trained (`own_probes`), when training begins.

    Args:
        probes: a JSONL file (see `ProbeSet`), a `ProbeSet`, a data set or a list of dictionaries
            with its keys, or a list of `Probe` or `TokenPair`. None builds them.
        config: what is measured and how, in place of `method` and all that follow it below.
        evaluate: a task on which every measured checkpoint is evaluated too: a name (`gsm8k`,
            `gym:NAME`), a JSONL file of problems with answers, or a `Task`. See `load_task`.
        evaluation: how answers are sampled; None takes the defaults of `EvaluationConfig`.
        output_dir: the run folder; OUTPUT_DIR/sparks of the trainer where not given.
        every_n_steps: measure every that many optimizer steps too, whatever is saved.
        on_error: a snapshot, or an evaluation, that fails during training is told and left out
            (warn), or stops the training (raise). Mistakes found before the first step always stop
            it.
        report: write report.html into the run folder at the end.
        progress: show a bar while a snapshot is taken, and a line after it.
        alerts: have trackers that can do so tell of births and prunings.
        num_probes: probes to build where none are given.
        num_controls: control probes to build beside them.
        reference: column of the training data that holds a reference answer, where its name is no
            usual one.
        reward_funcs: ask these for a better and a worse answer, where the training data hold
            prompts alone; `attach` takes those of the trainer.
        method: how edges are scored: eap-ig, derivatives along a path (the paper's); or secant, one
            pass between its two ends, exact without points (points, tolerance, max_points and
            quadrature then serve models that have no secants, for which EAP-IG is taken).
        points: points m on the path from corrupted to clean (4 where not given; paper A.5: 100);
            with a tolerance, the m to start from (12 where not given).
        tolerance: completeness gap aimed at, a share of L such as 0.05: m grows, probe by probe,
            until the gap is not above it; without it, every probe has the same m.
        max_points: with a tolerance, m grows while it stays at most this.
        quadrature: where the points lie: midpoint; left (official code); right (paper's Eq. 3);
            pilot (closer where six forward passes see L move; pays below about 40 points).
        positions: KL divergence at the last position, or its mean over all continuation positions.
        top_n: edges kept a probe, the strongest first (paper: 5000).
        top_share: keep this share (0..1] of the model's edges instead of top_n.
        threshold: tau: kept edges have at least this |score| (paper: 0.1).
        threshold_mode: threshold as it is, or relative to the probe's largest |score|.
        max_suffix_tokens: continuations are cut to this many tokens.
        swap_base_roles: at step 0 swap clean and corrupted, as the paper does for its base model.
        faithfulness: also measure how much of L each circuit carries alone (a little more time).
        faithfulness_probes: on how many probes at most that is measured: the same at every
            checkpoint.
        memory_gib: memory for activations, GiB; pairs and points are split to stay under it.

    Raises:
        SparksError: the probes or the task cannot be read or a setting is out of range.
    """

    def __init__(
        self,
        probes: str
        | os.PathLike[str]
        | ProbeSet
        | Iterable[Mapping[str, Any] | Probe | TokenPair]
        | None = None,
        *,
        config: SnapshotConfig | None = None,
        evaluate: str | os.PathLike[str] | Task | None = None,
        evaluation: EvaluationConfig | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        every_n_steps: int | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        report: bool = True,
        progress: bool = True,
        alerts: bool = False,
        num_probes: int = NUM_PROBES,
        num_controls: int = NUM_CONTROLS,
        reference: str | None = None,
        reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        method: Method = SnapshotConfig.method,
        points: int | None = SnapshotConfig.points,
        tolerance: float | None = SnapshotConfig.tolerance,
        max_points: int = SnapshotConfig.max_points,
        quadrature: Quadrature = SnapshotConfig.quadrature,
        positions: Positions = SnapshotConfig.positions,
        top_n: int = SnapshotConfig.top_n,
        top_share: float | None = SnapshotConfig.top_share,
        threshold: float = SnapshotConfig.threshold,
        threshold_mode: ThresholdMode = SnapshotConfig.threshold_mode,
        max_suffix_tokens: int = SnapshotConfig.max_suffix_tokens,
        swap_base_roles: bool = SnapshotConfig.swap_base_roles,
        faithfulness: bool = SnapshotConfig.faithfulness,
        faithfulness_probes: int = SnapshotConfig.faithfulness_probes,
        memory_gib: float = SnapshotConfig.memory_gib,
    ) -> None:
        given = locals()  # the settings by name, which the signature spells out for readers
        settings = SnapshotConfig(
            **{item.name: given[item.name] for item in fields(SnapshotConfig)}
        )
        if config is not None:
            _refuse_both(config, settings)
        if on_error not in ("warn", "raise"):
            raise SparksError(f"on_error must be warn or raise, got {on_error!r}")
        check_value("every_n_steps", every_n_steps, int | None, at_least(1))
        check_value("num_probes", num_probes, int, at_least(1))
        check_value("num_controls", num_controls, int, at_least(0))
        if evaluate is None and evaluation is not None:
            raise SparksError(
                "evaluation says how to evaluate, but not on what: give evaluate=TASK, such as a "
                "JSONL file or gsm8k"
            )
        self.evaluator = None if evaluate is None else CheckpointEvaluator(evaluate, evaluation)
        self.probes = None if probes is None else _probes(probes)
        self.wishes = Wishes(
            num_probes=num_probes,
            num_controls=num_controls,
            reference=reference,
            reward_funcs=_listed(reward_funcs),
        )
        self.config = config or settings
        self.output_dir = output_dir
        self.every_n_steps = every_n_steps
        self.on_error = on_error
        self.report = report
        self.progress = progress
        self.alerts = alerts
        self.recorder: Recorder | None = None
        """What is measured and kept, once training has begun."""
        self._waits_for_log: int | None = None
        self._is_finished = False
        self._farewell: weakref.finalize[..., Any] | None = None

    @classmethod
    def attach(cls, trainer: Any, callback: SparksCallback | None = None) -> SparksCallback:
        """Add a callback to a trainer whose rewards, or teacher, its probes are built with.

            SparksCallback.attach(trainer)
            SparksCallback.attach(trainer, SparksCallback(points=4))

        Args:
            trainer: one of TRL's, before `train`.
            callback: None makes one with the defaults.

        Returns the callback.
        """
        callback = cls() if callback is None else callback
        given = callback.wishes.reward_funcs
        callback.wishes = replace(
            callback.wishes,
            reward_funcs=given or _listed(getattr(trainer, "reward_funcs", None)),
            reward_weights=None if given else _plain(getattr(trainer, "reward_weights", None)),
            teacher=getattr(trainer, "teacher_model", None),
        )
        trainer.add_callback(callback)
        return callback

    # -- events ------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prepare the run folder and measure the base model, or what a resumed run lacks.

        Raises:
            SparksError: whatever `on_error` says, while there is no snapshot: nothing is lost yet,
                and nothing would work later.
        """
        _refuse_split_sequences(args)
        refuse_unknown_sharding(kwargs["model"])
        if state.is_world_process_zero and not self._is_asked_to_measure(args):
            warnings.warn(
                "sparks: save_strategy is 'no', so only the first and the last step are measured: "
                "set save_strategy, or SparksCallback(every_n_steps=...)",
                stacklevel=2,
            )
        self._tell_broken_off()
        self.recorder = Recorder(
            self._source(args, state, kwargs.get("train_dataloader")),
            self.config,
            RunStore(self.output_dir or Path(args.output_dir or ".") / FOLDER),
            progress=self.progress,
            evaluator=self.evaluator,
        )
        model = kwargs["model"]
        self._is_finished = False
        self.recorder.begin(model, kwargs.get("processing_class"), state)
        if self.progress and state.is_world_process_zero:
            self._farewell = weakref.finalize(self, self.recorder.tell_broken_off)
        self.recorder.start_trackers(args, state, alerts=self.alerts)
        if not self.recorder.measured:
            self.recorder.record(model, state)
            if self.evaluator is not None:
                self.recorder.evaluate(model, state)
            self.recorder.show(state)
        if state.global_step and can_be_disabled(model):
            self._measure(args, state, model, base=True)
        self._measure(args, state, model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure every `every_n_steps`; a step that is about to be logged waits for its log."""
        if self.every_n_steps is None or state.global_step % self.every_n_steps:
            return
        if control.should_log or control.should_save:
            self._waits_for_log = state.global_step
        else:
            self._measure(args, state, kwargs["model"])

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure a step whose numbers have just been logged, unless its save follows.

        The trainer's closing log is the end: see `_finish`.
        """
        if self._waits_for_log == state.global_step and not control.should_save:
            self._waits_for_log = None
            self._measure(args, state, kwargs["model"])
        if _CLOSING_METRIC in (kwargs.get("logs") or {}):
            self._finish(args, state, kwargs["model"])

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure at a checkpoint."""
        self._measure(args, state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close what is open; finish a training whose trainer has no closing log."""
        if self.recorder is None:
            return
        self._finish(args, state, kwargs["model"])
        self.recorder.close()

    # -- what they share ---------------------------------------------------------------------

    def _source(
        self, args: TrainingArguments, state: TrainerState, loader: Any
    ) -> ProbeSet | ProbeSource:
        """The probes, or what builds them."""
        if self.probes is not None:
            return self.probes
        dataset = getattr(loader, "dataset", None)
        while isinstance(dataset, IterableDataset) and hasattr(dataset, "dataset"):  # a shard
            dataset = dataset.dataset
        if dataset is None:
            raise SparksError("no probes, and no training data to build them from: give probes")
        return ProbesFromTraining(
            self.wishes, dataset, args, state, say=say, progress=self.progress
        )

    def _tell_broken_off(self) -> None:
        """Of a training before this one, in a notebook, that never came to its end."""
        if self._farewell is not None:
            self._farewell()

    def _is_asked_to_measure(self, args: TrainingArguments) -> bool:
        saves = str(args.save_strategy) not in ("no", "SaveStrategy.NO")
        return saves or self.every_n_steps is not None

    def _measure(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module, *, base: bool = False
    ) -> None:
        """What the step, or its `base`, lacks of a snapshot and an evaluation.

        Without a snapshot there is no evaluation. Errors as `on_error` says.
        """
        recorder, step = self.recorder, 0 if base else state.global_step
        if recorder is None:
            return
        is_new = False
        if step not in recorder.measured:
            is_new = self._attempt(
                "snapshot", step, state, lambda: recorder.record(model, state, base=base)
            )
        if (
            self.evaluator is not None
            and step in recorder.measured
            and step not in recorder.evaluated
        ):
            is_new |= self._attempt(
                "evaluation", step, state, lambda: recorder.evaluate(model, state, base=base)
            )
        if is_new:
            recorder.show(state)

    def _attempt(self, what: str, step: int, state: TrainerState, work: Callable[[], None]) -> bool:
        """Do a snapshot or an evaluation; False where it failed and training goes on."""
        assert self.recorder is not None
        try:
            work()
        except Exception as error:  # models and disks fail in many classes; hours may be at stake
            why = reason(error)
            if self.on_error == "raise":
                raise SparksError(
                    f"no {what} of step {step} ({why}); with on_error='warn' training would go on"
                ) from error
            if state.is_world_process_zero:
                warnings.warn(
                    f"sparks: no {what} of step {step} ({why}); training goes on",
                    stacklevel=4,
                )
            self.recorder.note_failure(what, step, why)
            return False
        return True

    def _finish(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        """Once: measure the last step if it has no snapshot; write log and report, and show them.

        Process 0 alone writes and shows; all of them measure.
        """
        recorder = self.recorder
        if recorder is None or self._is_finished:
            return
        self._is_finished = True
        if self._farewell is not None:
            self._farewell.detach()
        # With load_best_model_at_end the weights may no longer be those of the last step.
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            self._measure(args, state, model)
        try:
            recorder.write_log(state)
        except SparksError as error:
            if self.on_error == "raise":
                raise
            if state.is_world_process_zero:
                warnings.warn(f"sparks: the log is not kept ({error})", stacklevel=2)
        recorder.tell_holes()
        if state.is_world_process_zero and recorder.snapshots:
            report = recorder.write_report() if self.report else None
            recorder.show_end(state, report)
            if self.progress:
                for line in (recorder.summary(), *recorder.end_lines(report)):
                    say(line)


def _refuse_both(config: Any, settings: SnapshotConfig) -> None:
    """Refuse a `config` that is none, and settings by name beside it."""
    if not isinstance(config, SnapshotConfig):
        raise SparksError(
            f"config must be a SnapshotConfig, got {type(config).__name__}: give settings by name, "
            f"as in SparksCallback(probes, points=20)"
        )
    defaults = SnapshotConfig()
    for item in fields(settings):
        if getattr(settings, item.name) != getattr(defaults, item.name):
            raise SparksError(f"give config or settings by name, not both (got {item.name} too)")


def _probes(given: Any) -> ProbeSet | ProbesOfPairs:
    """Probes that the user gave, in whatever form."""
    if isinstance(given, Sequence) and any(isinstance(item, TokenPair) for item in given):
        return ProbesOfPairs(given)
    return ProbeSet.of(given)


def _listed(functions: Any) -> tuple[Callable[..., Any], ...]:
    if functions is None:
        return ()
    return tuple(functions) if isinstance(functions, Sequence) else (functions,)


def _plain(weights: Any) -> list[float] | None:
    return None if weights is None else [float(weight) for weight in weights]


def _refuse_split_sequences(args: TrainingArguments) -> None:
    parallelism = getattr(args, "parallelism_config", None)
    for name, what in (("tp", "tensor"), ("cp", "context"), ("sp", "sequence")):
        if getattr(parallelism, f"{name}_enabled", False):
            raise SparksError(
                f"{what} parallelism ({name}_size {getattr(parallelism, f'{name}_size', '?')}) is "
                f"not supported: use DDP, FSDP2 or ZeRO, or measure the checkpoints afterwards "
                f"with `sparks replay`"
            )
