"""The callback that a training script adds: a snapshot of the base model, at each save, at the end.

What happens when:
1. `on_train_begin`: everything that can be wrong with probes, model or folder is found here, before
   a step is spent; then the base model is measured (step 0). A resumed run keeps the snapshots up
   to its checkpoint, sets later ones aside, and measures the checkpoint if it has none.
2. `on_save`, and every `every_n_steps` where asked: a snapshot; in W&B, if the trainer reports
   there, the numbers and two pictures of the timeline so far.
3. `on_train_end`: the last step if it has none, then the report.

Training is left untouched: weights, optimizer, random states and logs are bitwise what they are
without the callback. A step is measured once.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparks.anatomy import base_model
from sparks.config import SnapshotConfig
from sparks.errors import SparksError
from sparks.probes import ProbeSet
from sparks.report import write_report
from sparks.snapshot import Snapshot
from sparks.store import RunStore
from sparks.timeline import Timeline
from sparks.token_pairs import TokenizedProbes
from sparks.track import take_snapshot
from sparks.trainer_log import latest_metrics

FOLDER = "sparks"
REPORT = "report.html"


class SparksCallback(TrainerCallback):
    """Measures which attention heads carry the trained behaviour, at every checkpoint.

    Args:
        probes: a JSONL file (see `ProbeSet`) or a `ProbeSet`.
        config: what is measured and how; None takes the defaults.
        output_dir: the run folder; None takes `OUTPUT_DIR/sparks` of the trainer.
        every_n_steps: measure every that many optimizer steps too, whatever is saved.
        on_error: a snapshot that fails during training is told in a warning and left out (`warn`),
            or stops the training (`raise`). Mistakes found before the first step always stop it.
        report: write `report.html` into the run folder at the end.
        progress: show a bar while a snapshot is taken.
        settings: settings by name in place of `config`, as in `SparksCallback(probes, steps=20)`.

    Raises:
        SparksError: the probes cannot be read or a setting is out of range.
    """

    def __init__(
        self,
        probes: str | os.PathLike[str] | ProbeSet,
        *,
        config: SnapshotConfig | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        every_n_steps: int | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        report: bool = True,
        progress: bool = True,
        **settings: Any,
    ) -> None:
        if config is not None and settings:
            raise SparksError(
                f"give config or settings by name, not both (got config and {next(iter(settings))})"
            )
        if config is not None and not isinstance(config, SnapshotConfig):
            raise SparksError(
                f"config must be a SnapshotConfig, got {type(config).__name__}: give settings by "
                f"name, as in SparksCallback(probes, steps=20)"
            )
        if on_error not in ("warn", "raise"):
            raise SparksError(f"on_error must be warn or raise, got {on_error!r}")
        if every_n_steps is not None and (type(every_n_steps) is not int or every_n_steps < 1):
            raise SparksError(
                f"every_n_steps must be a whole number, at least 1, got {every_n_steps!r}"
            )
        self.probes = probes if isinstance(probes, ProbeSet) else ProbeSet.load(probes)
        self.config = config or SnapshotConfig.from_dict(settings)
        self.output_dir = output_dir
        self.every_n_steps = every_n_steps
        self.on_error = on_error
        self.report = report
        self.progress = progress
        self.store: RunStore | None = None
        """The run folder, once training has begun."""
        self._tokenized: TokenizedProbes | None = None
        self._snapshots: dict[int, Snapshot] = {}
        self._views_failed = False
        self._waits_for_log: int | None = None

    # -- events ------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prepare the run folder and measure the base model, or what a resumed run lacks."""
        if not state.is_world_process_zero:
            return
        model = kwargs["model"]
        _refuse_sharded(model)
        self._tokenized = self._tokenize(model, kwargs.get("processing_class"))
        self.store = RunStore(self.output_dir or Path(args.output_dir or ".") / FOLDER)
        self._open_store(self.store, state.global_step)
        if str(args.save_strategy) in ("no", "SaveStrategy.NO") and self.every_n_steps is None:
            warnings.warn(
                "sparks: save_strategy is 'no', so only the first and the last step are measured: "
                "set save_strategy, or SparksCallback(every_n_steps=...)",
                stacklevel=2,
            )
        if state.global_step not in self._snapshots:
            # Raises whatever `on_error` says: nothing is lost yet, and nothing would work later.
            self._keep(self._take(model, state), args, state)

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
        """Measure a step whose numbers have just been logged, unless its save follows."""
        if self._waits_for_log == state.global_step and not control.should_save:
            self._waits_for_log = None
            self._measure(args, state, kwargs["model"])

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure at a checkpoint."""
        self._measure(args, state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the last step if it has no snapshot, then write the log and the report."""
        if self.store is None:
            return
        # With load_best_model_at_end the weights are no longer those of the last step.
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            self._measure(args, state, kwargs["model"])
        try:
            self.store.write_metrics(state.log_history)
        except SparksError as error:
            if self.on_error == "raise":
                raise
            warnings.warn(f"sparks: the log is not kept ({error})", stacklevel=2)
        if self._snapshots:
            self._finish(args, state)

    # -- measuring ---------------------------------------------------------------------------

    def _tokenize(self, model: nn.Module, processing_class: Any) -> TokenizedProbes:
        if processing_class is None:
            raise SparksError(
                "the trainer has no processing_class: give it the model's tokenizer, as in "
                "SFTTrainer(processing_class=tokenizer)"
            )
        config = getattr(base_model(model), "config", None)
        return self.probes.tokenize(
            getattr(processing_class, "tokenizer", processing_class),
            max_suffix_tokens=self.config.max_suffix_tokens,
            max_context=getattr(config, "max_position_embeddings", None),
        )

    def _open_store(self, store: RunStore, step: int) -> None:
        """Check that the folder can be written and fits this run; keep what a resume keeps."""
        assert self._tokenized is not None
        store.prepare()
        # A new run (step 0) redoes the base model too.
        store.set_aside_after(step if step else -1)
        contents = store.read()
        for problem in contents.problems:
            warnings.warn(f"sparks: {problem}", stacklevel=3)
        for snapshot in contents.snapshots:
            if snapshot.meta.probes_hash != self._tokenized.hash:
                raise SparksError(
                    f"{store.path} holds snapshots of other probes (step {snapshot.step}, hash "
                    f"{snapshot.meta.probes_hash[:12]}, now {self._tokenized.hash[:12]}): resume "
                    f"with the same probes, or give another output_dir"
                )
            held = SnapshotConfig.from_dict(snapshot.meta.config).measurement()
            for name, value in self.config.measurement().items():
                if held[name] != value:
                    raise SparksError(
                        f"{store.path} holds a snapshot of step {snapshot.step} with {name}="
                        f"{held[name]!r}, now it is {value!r}: resume with the same settings, or "
                        f"give another output_dir"
                    )
        self._snapshots = {snapshot.step: snapshot for snapshot in contents.snapshots}
        store.write_probes(self.probes.to_jsonl())

    def _measure(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        if self.store is None or state.global_step in self._snapshots:
            return
        try:
            self._keep(self._take(model, state), args, state)
        except Exception as error:  # models and disks fail in many classes; hours may be at stake
            if self.on_error == "raise":
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(
                f"sparks: no snapshot of step {state.global_step} ({reason}); training goes on",
                stacklevel=3,
            )
            self.store.note_failure(state.global_step, reason)

    def _take(self, model: nn.Module, state: TrainerState) -> Snapshot:
        assert self._tokenized is not None
        return take_snapshot(
            model,
            self._tokenized,
            self.config,
            step=state.global_step,
            epoch=state.epoch,
            metrics=latest_metrics(state.log_history),
            source="callback",
            progress=self.progress and state.is_local_process_zero,
        )

    def _keep(self, snapshot: Snapshot, args: TrainingArguments, state: TrainerState) -> None:
        assert self.store is not None
        self.store.save(snapshot)
        self.store.write_metrics(state.log_history)
        self._snapshots[snapshot.step] = snapshot
        if (run := self._wandb_run(args)) is not None:
            self._view(lambda view, timeline: view.log(run, timeline), state)

    # -- views -------------------------------------------------------------------------------

    def _timeline(self, state: TrainerState) -> Timeline:
        assert self.store is not None
        snapshots = [self._snapshots[step] for step in sorted(self._snapshots)]
        return Timeline(snapshots, metrics=state.log_history, name=_run_name(self.store.path))

    def _finish(self, args: TrainingArguments, state: TrainerState) -> None:
        assert self.store is not None
        report = None
        if self.report:
            report = self.store.path / REPORT
            try:
                write_report([Timeline.from_run(self.store.path)], report)
            except SparksError as error:
                report = None
                warnings.warn(f"sparks: no report ({error})", stacklevel=3)
        if (run := self._wandb_run(args)) is not None:
            files = [self.store.file(step) for step in sorted(self._snapshots)]
            self._view(lambda view, timeline: view.finish(run, timeline, report, files), state)

    def _wandb_run(self, args: TrainingArguments) -> Any:
        """The trainer's W&B run, if it reports there."""
        if "wandb" not in (args.report_to or []) or self._views_failed:
            return None
        import wandb

        return wandb.run

    def _view(self, show: Any, state: TrainerState) -> None:
        """Show the timeline in W&B; the first failure is told, then the views stay away."""
        from sparks import wandb_view

        try:
            show(wandb_view, self._timeline(state))
        except Exception as error:
            self._views_failed = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            warnings.warn(
                f"sparks: nothing more goes to W&B ({reason}); snapshots go on to "
                f"{self.store.path if self.store else ''}",
                stacklevel=3,
            )


def _run_name(store: Path) -> str:
    """The trainer's output folder, by its last name."""
    path = store.resolve()
    return path.parent.name if path.name == FOLDER else path.name


def _refuse_sharded(model: nn.Module) -> None:
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id") or type(parameter.data).__name__ == "DTensor":
            raise SparksError(
                "sharded weights (FSDP, DeepSpeed ZeRO-3) are not supported yet: train on one "
                "process or with DDP, or measure the checkpoints afterwards with `sparks replay`"
            )
