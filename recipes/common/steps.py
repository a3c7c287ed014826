"""The steps around `trainer.train()`: model, probes, the checkpoint to go on from, the end."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, Trainer
from transformers import TrainingArguments as Training
from trl import ModelConfig

from sparks import SparksArguments, SparksCallback
from sparks.ground.errors import SparksError
from sparks.models.loading import load_model, load_tokenizer
from sparks.probes.building import write_probes
from sparks.probes.settings import ProbeBuildingConfig

from .data import system_prompt
from .settings import RecipeArguments


def load_models(training: Training, model: ModelConfig) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model to train, and its tokenizer.

    Raises:
        SparksError: none is named, or it cannot be loaded.
    """
    name = model.model_name_or_path
    if name is None:
        raise SparksError("no model: give a folder or hub id with --model_name_or_path")
    return load_causal_model(name, training, model), load_own_tokenizer(name, training, model)


def load_causal_model(name: str, training: Training, model: ModelConfig) -> Any:
    """A model under the settings of `model`, whatever its name there, where loading puts it.

    Raises:
        SparksError: it cannot be loaded, or weights are missing.
    """
    with _told():
        return load_model(
            name,
            _revision(name, model),
            device=None,
            dtype=model.dtype,
            attention=model.attn_implementation,
            trust_remote_code=training.trust_remote_code,
        )


def load_own_tokenizer(
    name: str, training: Training, model: ModelConfig
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises:
        SparksError: it cannot be loaded.
    """
    with _told():
        return load_tokenizer(
            name, _revision(name, model), trust_remote_code=training.trust_remote_code
        )


def _revision(name: str, model: ModelConfig) -> str | None:
    own = name == model.model_name_or_path and model.model_revision != "main"
    return model.model_revision if own else None


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except SparksError as error:
        raise SparksError(f"{error}; the recipe's YAML says what makes a local one") from error


def watch(
    recipe: RecipeArguments, training: Training, model: ModelConfig, sparks: SparksArguments
) -> SparksCallback:
    """The callback, after its probes have been built where their file is not there.

    The first process builds, the others wait for the file: its folder is shared between machines.

    Raises:
        SparksError: a setting is out of range, or probes cannot be built or read.
    """
    sparks.snapshot_config(), sparks.evaluation_config()
    if sparks.sparks_probes is None:
        raise SparksError("no probes: name their file with --sparks_probes; it is built if missing")
    path = Path(sparks.sparks_probes)
    if not path.is_file():
        if training.process_index == 0:
            _build_probes(path, recipe, training, model, sparks)
        else:
            wait_for(path)
    return sparks.callback()


def _build_probes(
    path: Path,
    recipe: RecipeArguments,
    training: Training,
    model: ModelConfig,
    sparks: SparksArguments,
) -> None:
    if recipe.probe_data is None:
        raise SparksError(f"no probes: {path} does not exist, and no --probe_data to build it from")
    assert model.model_name_or_path is not None
    print(
        f"building {recipe.probe_count} probes from {recipe.probe_data}, and "
        f"{recipe.control_count} control probes",
        flush=True,
    )
    config = ProbeBuildingConfig(
        data=recipe.probe_data,
        subset=recipe.probe_config,
        split=recipe.probe_split,
        model=model.model_name_or_path,
        clean_model=recipe.probe_clean_model,
        output=str(path),
        count=recipe.probe_count,
        control=recipe.control_count,
        control_probes=recipe.control_probes if recipe.control_count else None,
        system_prompt=system_prompt(recipe),
        max_new_tokens=recipe.probe_max_new_tokens,
        max_suffix_tokens=sparks.snapshot_config().max_suffix_tokens,
        device="cpu" if training.use_cpu else "auto",
        trust_remote_code=training.trust_remote_code,
    )
    with whole_models(training):
        built = write_probes(config)
    print(f"{len(built.probes)} probes in {path}, {len(built.skipped)} problems passed over")


@contextmanager
def whole_models(training: Training) -> Iterator[None]:
    """Models that one process loads here are whole: ZeRO-3 would share them out over all."""
    plugin = getattr(training, "deepspeed_plugin", None)
    with plugin.zero3_init_context_manager(enable=False) if plugin else nullcontext():
        yield


def wait_for(path: Path) -> None:
    """Return once the first process has written a file; if it fails, the launcher ends us."""
    while not path.is_file():
        time.sleep(0.5)


def checkpoint_to_resume(training: Training) -> str | None:
    """The checkpoint that `resume_from_checkpoint` asks for; `true` asks for the last whole one.

    Raises:
        SparksError: a folder is named that is no checkpoint.
    """
    asked = training.resume_from_checkpoint
    if not asked or str(asked).lower() == "false":
        return None
    if str(asked).lower() != "true":
        if not _is_whole(Path(asked)):
            raise SparksError(
                f"cannot resume: {asked} is no checkpoint; `--resume_from_checkpoint true` takes "
                f"the last one of {training.output_dir}"
            )
        return str(asked)
    folders = [item for item in Path(training.output_dir).glob("checkpoint-*") if _step(item) >= 0]
    last = next(filter(_is_whole, sorted(folders, key=_step, reverse=True)), None)
    if training.process_index == 0:
        print(f"resuming from {last}" if last else "no checkpoint yet: from the start", flush=True)
    return None if last is None else str(last)


def _step(folder: Path) -> int:
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1


def _is_whole(folder: Path) -> bool:
    """The state is written last: a checkpoint that was cut off has none, or half of one."""
    try:
        json.loads((folder / "trainer_state.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return True


def train(trainer: Trainer) -> None:
    """Train, from the checkpoint that is asked for; save the model, say where to look, and leave.

    A run that is at its end is left as it is: the trainer would take one step more.

    Raises:
        SparksError: as `checkpoint_to_resume`.
    """
    training = trainer.args
    checkpoint = checkpoint_to_resume(training)
    if checkpoint is not None and _is_at_its_end(Path(checkpoint), training):
        if training.process_index == 0:
            _save_from(Path(checkpoint), Path(training.output_dir))
        trainer.accelerator.wait_for_everyone()
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
    if trainer.is_world_process_zero():
        folder = training.output_dir
        print(f"trained: {folder}; look: sparks timeline {folder}; sparks report {folder}")
    trainer.end()


def _is_at_its_end(checkpoint: Path, training: Training) -> bool:
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    step, end = state.get("global_step", 0), state.get("max_steps", 0)
    if training.max_steps > 0:
        return step >= training.max_steps
    return 0 < end <= step and training.num_train_epochs <= state.get("num_train_epochs", 0)


def _save_from(checkpoint: Path, folder: Path) -> None:
    """The model of the last checkpoint, where the run was stopped before it saved its own."""
    if any(folder.glob("*.safetensors")):
        return
    kinds = (".json", ".jinja", ".txt", ".model", ".safetensors")
    files = [path for path in checkpoint.iterdir() if path.suffix in kinds]
    for path in sorted(files, key=lambda path: kinds.index(path.suffix)):  # weights come last
        if path.name != "trainer_state.json":
            shutil.copyfile(path, folder / path.name)
