"""Settings of the callback for a script's own command line and YAML, as TRL's scripts read them.

    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, SparksArguments))
    script_args, training_args, model_args, sparks_args = parser.parse_args_and_config()
    trainer = SFTTrainer(..., callbacks=[sparks_args.callback()])

Then `--sparks_probes probes.jsonl --sparks_points 20` works, and so do the same keys in the file
given with `--config`. Every name begins with `sparks_`, since the trainers' own settings share one
command line with them. What a snapshot measures (`SnapshotConfig`) and how checkpoints are
evaluated (`EvaluationConfig`, as `sparks_evaluation_<name>`) is taken over field by field: names,
types, defaults and help stand there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from sparks.evaluation.settings import EvaluationConfig
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.probes.settings import NUM_CONTROLS, NUM_PROBES

if TYPE_CHECKING:
    import os

    from sparks.probes.probes import ProbeSet
    from sparks.training.callback import SparksCallback

PREFIX = "sparks_"
EVALUATION = "sparks_evaluation_"


def _option(default: Any, help: str) -> Any:
    """A field with the help that the command line shows (argparse reads `%` as a format)."""
    return field(default=default, metadata={"help": help.replace("%", "%%")})


def _fields_of(kind: Any, prefix: str) -> list[tuple[str, Any, Any]]:
    """Name, type and field of every setting of a class."""
    types = get_type_hints(kind)
    return [
        (prefix + item.name, types[item.name], _option(item.default, item.metadata["help"]))
        for item in fields(kind)
    ]


_TakenOver: Any = make_dataclass(
    "_TakenOver",
    _fields_of(SnapshotConfig, PREFIX) + _fields_of(EvaluationConfig, EVALUATION),
    namespace={"__module__": __name__},
)


@dataclass
class SparksArguments(_TakenOver):
    """Settings of `SparksCallback`, for `TrlParser` and `HfArgumentParser`.

    Besides the fields below it has `sparks_<name>` for every field of `SnapshotConfig`, and
    `sparks_evaluation_<name>` for every field of `EvaluationConfig`.
    """

    sparks_probes: str | None = _option(
        None, "JSONL file of probes; where not given, they are built from what is trained"
    )
    sparks_evaluate: str | None = _option(
        None,
        "evaluate every measured checkpoint on this task: a name, gym:NAME, or a JSONL file with "
        "problems and answers",
    )
    sparks_output_dir: str | None = _option(
        None, "the run folder; OUTPUT_DIR/sparks of the trainer where not given"
    )
    sparks_every_n_steps: int | None = _option(
        None, "measure every that many optimizer steps too, whatever is saved"
    )
    sparks_on_error: Literal["warn", "raise"] = _option(
        "warn",
        "a snapshot, or an evaluation, that fails during training is told and left out (warn), or "
        "stops the training (raise)",
    )
    sparks_report: bool = _option(True, "write report.html into the run folder at the end")
    sparks_progress: bool = _option(
        True, "show a bar while a snapshot is taken, and a line after it"
    )
    sparks_alerts: bool = _option(False, "have trackers that can do so tell of births and prunings")
    sparks_num_probes: int = _option(NUM_PROBES, "probes to build where none are given")
    sparks_num_controls: int = _option(NUM_CONTROLS, "control probes to build beside them")
    sparks_reference: str | None = _option(
        None,
        "column of the training data that holds a reference answer, where its name is no usual one",
    )

    def snapshot_config(self) -> SnapshotConfig:
        """What is measured, and how.

        Raises:
            SparksError: a value is outside its range.
        """
        return SnapshotConfig(
            **{item.name: getattr(self, PREFIX + item.name) for item in fields(SnapshotConfig)}
        )

    def evaluation_config(self) -> EvaluationConfig | None:
        """How checkpoints are evaluated; None where no task is given.

        Raises:
            SparksError: a value is outside its range, or there are settings and no task.
        """
        values = {f.name: getattr(self, EVALUATION + f.name) for f in fields(EvaluationConfig)}
        config = EvaluationConfig(**values)
        if self.sparks_evaluate is not None:
            return config
        given = next((f.name for f in fields(config) if values[f.name] != f.default), None)
        if given is not None:
            raise SparksError(
                f"{EVALUATION}{given} says how to evaluate, but not on what: give "
                f"--sparks_evaluate TASK, or leave it out"
            )
        return None

    def callback(self, probes: str | os.PathLike[str] | ProbeSet | None = None) -> SparksCallback:
        """The callback with these settings.

        Args:
            probes: in place of `sparks_probes`.

        Raises:
            SparksError: probes cannot be read, or a value is outside its range.
        """
        from sparks.training.callback import SparksCallback

        ours = [item.name for item in fields(SparksArguments)]
        inherited = {item.name for item in fields(_TakenOver)} | {"sparks_probes"}
        settings = {
            name.removeprefix(PREFIX): getattr(self, name) for name in ours if name not in inherited
        }
        return SparksCallback(
            self.sparks_probes if probes is None else probes,
            config=self.snapshot_config(),
            evaluation=self.evaluation_config(),
            **settings,
        )
