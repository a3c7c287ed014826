"""Settings of the callback for a script's own command line and YAML, as TRL's scripts read them.

    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, SparksArguments))
    script_args, training_args, model_args, sparks_args = parser.parse_args_and_config()
    trainer = SFTTrainer(..., callbacks=[sparks_args.callback()])

Then `--sparks_probes probes.jsonl --sparks_steps 20` works, and so do the same keys in the file
given with `--config`. Every name begins with `sparks_`, since the trainers' own settings share one
command line with them. What a snapshot measures (`SnapshotConfig`) is taken over field by field:
names, types, defaults and help stand there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from sparks.config import SnapshotConfig
from sparks.errors import SparksError

if TYPE_CHECKING:
    import os

    from sparks.callback import SparksCallback
    from sparks.probes import ProbeSet

PREFIX = "sparks_"


def _option(default: Any, help: str) -> Any:
    """A field with the help that the command line shows (argparse reads `%` as a format)."""
    return field(default=default, metadata={"help": help.replace("%", "%%")})


def _snapshot_fields() -> list[tuple[str, Any, Any]]:
    """Name, type and field of every setting of a snapshot."""
    types = get_type_hints(SnapshotConfig)
    return [
        (PREFIX + item.name, types[item.name], _option(item.default, item.metadata["help"]))
        for item in fields(SnapshotConfig)
    ]


_SnapshotArguments: Any = make_dataclass(
    "_SnapshotArguments", _snapshot_fields(), namespace={"__module__": __name__}
)


@dataclass
class SparksArguments(_SnapshotArguments):
    """Settings of `SparksCallback`, for `TrlParser` and `HfArgumentParser`.

    Besides the fields below it has `sparks_<name>` for every field of `SnapshotConfig`.
    """

    sparks_probes: str | None = _option(None, "JSONL file of probes")
    sparks_output_dir: str | None = _option(
        None, "folder for the snapshots; the trainer's OUTPUT_DIR/sparks where not given"
    )
    sparks_every_n_steps: int | None = _option(
        None, "measure every that many optimizer steps too, whatever is saved"
    )
    sparks_on_error: Literal["warn", "raise"] = _option(
        "warn", "what a snapshot that fails during training does: warn and go on, or raise"
    )
    sparks_report: bool = _option(True, "write report.html into the run folder at the end")
    sparks_progress: bool = _option(
        True, "show a bar while a snapshot is taken, and a line after it"
    )
    sparks_alerts: bool = _option(False, "have trackers tell of births and prunings")

    def snapshot_config(self) -> SnapshotConfig:
        """What is measured, and how.

        Raises:
            SparksError: a value is outside its range.
        """
        return SnapshotConfig(
            **{item.name: getattr(self, PREFIX + item.name) for item in fields(SnapshotConfig)}
        )

    def callback(self, probes: str | os.PathLike[str] | ProbeSet | None = None) -> SparksCallback:
        """The callback with these settings.

        Args:
            probes: in place of `sparks_probes`.

        Raises:
            SparksError: no probes are named, they cannot be read, or a value is outside its range.
        """
        from sparks.callback import SparksCallback

        probes = self.sparks_probes if probes is None else probes
        if probes is None:
            raise SparksError(
                "no probes: give their JSONL file with --sparks_probes (`sparks probes` builds one)"
            )
        ours = [item.name for item in fields(SparksArguments)]
        inherited = {PREFIX + item.name for item in fields(SnapshotConfig)} | {"sparks_probes"}
        settings = {
            name.removeprefix(PREFIX): getattr(self, name) for name in ours if name not in inherited
        }
        return SparksCallback(probes, config=self.snapshot_config(), **settings)
