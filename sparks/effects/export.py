"""Writes a model with an intervention folded into its weights: an ordinary checkpoint.

With W_h the columns of `o_proj.weight` that read head h, s the factor and m the head's mean
(`effects.interventions`), x becomes m + s (x - m) exactly where

1. W_h becomes s W_h (before a norm behind the attention, as there too x is what is edited);
2. with a mean, `o_proj.bias` grows by (1 - s) W_h m. An architecture whose `o_proj` has no bias
   gets one where its config can say so (`attention_bias`, with zeros elsewhere), and is refused
   otherwise.

Adapters are merged first. The checkpoint is written beside its place, loaded again and run: only
where its logits are those of the model under `intervene`, to rounding, it is put there. What it
replaces is an earlier export and nothing else: the record beside the weights lists the files.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sparks.effects.head_means import HeadMeans
from sparks.effects.interventions import checked, intervene
from sparks.ground.errors import SparksError, reason
from sparks.ground.files import check_writable
from sparks.ground.version import __version__
from sparks.models.anatomy import base_model, find, own_settings
from sparks.models.guard import undisturbed
from sparks.models.heads import Head, names
from sparks.models.hooks import relative_difference, tolerance

RECORD = "sparks-intervention.json"
"""Beside the weights: what was folded into them, and the files that were written with them."""
_TOKENS = 12


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A checkpoint that was written."""

    path: Path
    heads: tuple[Head, ...]
    difference: float
    """||logits of the checkpoint - of the hooked model|| / ||the latter||, on random tokens."""


def check_output(
    output: str | os.PathLike[str], *, overwrite: bool = False, sources: Iterable[str] = ()
) -> Path:
    """Prove that a checkpoint can be written to `output`, and touch nothing.

    Args:
        output: a folder.
        overwrite: replace an earlier export there; nothing else is ever replaced.
        sources: folders of the models that are read; names of the hub do no harm.

    Raises:
        SparksError: it is a file, a folder that holds something else than an export, or cannot be
            written; or it is, holds or lies in a source.
    """
    path = Path(output)
    for source in filter(None, sources):
        _refuse_shared(path, source)
    if path.is_file():
        raise SparksError(f"{path} is a file: give another folder")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            way = ", or --overwrite" if (path / RECORD).is_file() else ""
            raise SparksError(f"{path} is not empty: give another folder{way}")
        if (found := _foreign(path)) is not None:
            raise SparksError(
                f"{path} holds {found!r}, which no export wrote there as it is now: give another "
                f"folder"
            )
    check_writable(path / RECORD)
    return path


def _refuse_shared(path: Path, source: str) -> None:
    ours, theirs = path.resolve(), Path(source).resolve()
    if not theirs.exists():  # a name of the hub
        return
    if ours == theirs or ours in theirs.parents or theirs in ours.parents:
        verb = "is" if ours == theirs else "holds" if ours in theirs.parents else "lies in"
        raise SparksError(f"{path} {verb} the model that is read ({source}): give another folder")


def _foreign(folder: Path) -> str | None:
    """Something in a folder that no export wrote there, or that has changed since; None: nothing.

    An export's record lists its files with the sha256 of each.
    """
    try:
        known = dict(json.loads((folder / RECORD).read_bytes())["files"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # none, or another's
        return next(folder.iterdir()).name
    folders = {str(above) for name in known for above in PurePosixPath(name).parents}
    files = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or name not in (folders if path.is_dir() else {*known, RECORD}):
            return name
        if name in known:
            files.append((path, name))
    changed = (name for path, name in files if not path.is_file() or _sha256(path) != known[name])
    return next(changed, None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def export_model(
    model: nn.Module,
    heads: Iterable[Sequence[int]],
    output: str | os.PathLike[str],
    *,
    scale: float = 0.0,
    means: HeadMeans | None = None,
    tokenizer: Any = None,
    overwrite: bool = False,
    origin: str = "",
) -> Exported:
    """Write `model` with the intervention in its weights. The model is left as found.

    Args:
        model: as for `intervene`; with PEFT around it a merged copy is written.
        heads: pairs of layer and head.
        output: the folder to write; new or empty.
        scale: the factor.
        means: values of a mean ablation, not by position.
        tokenizer: saved beside, so that the folder is whole.
        overwrite: replace what an earlier export wrote there.
        origin: where the heads come from, for the record beside the weights.

    Raises:
        SparksError: as `intervene`; the architecture cannot hold the mean, the weights are
            quantised, the folder cannot be written, or the checkpoint does not give the same
            logits.
    """
    path = check_output(output, overwrite=overwrite, sources=_sources(model))
    if means is not None and means.by_position is not None:
        raise SparksError(
            "a mean by position cannot be folded into weights: take the mean over all positions, "
            "or run the model under intervene()"
        )
    anatomy, chosen = checked(model, heads, scale=scale, means=means)
    ids = torch.randint(
        anatomy.vocab_size, (2, _TOKENS), generator=torch.Generator().manual_seed(0)
    ).to(anatomy.device)
    with undisturbed(model), torch.no_grad(), intervene(model, chosen, scale=scale, means=means):
        expected = anatomy.call(input_ids=ids).logits.float()
    folded = _folded(_merged(model), chosen, scale, means)
    place = path.resolve()
    temporary = place.with_name(f".{place.name}-{secrets.token_hex(8)}")
    try:
        temporary.mkdir(parents=True)
        _save(folded, tokenizer, temporary)
        record = {
            "sparks": __version__,
            "heads": names(chosen),
            "scale": scale,
            "mean": means is not None,
            "model": _sources(model)[0],
            "origin": origin,
            "files": {
                file.relative_to(temporary).as_posix(): _sha256(file)
                for file in sorted(temporary.rglob("*"))
                if file.is_file()
            },
        }
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        _as_umask_says(temporary)
        difference = _compare(temporary, folded, ids, expected)
        _put(temporary, place)
    except OSError as error:
        raise SparksError(
            f"cannot write {path} ({error.strerror or error}): free the place, or give another "
            f"folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Exported(path=path, heads=chosen, difference=difference)


def _sources(model: nn.Module) -> list[str]:
    """Folders, or names of the hub, that the model says it comes from."""
    adapters = getattr(model, "peft_config", None) or {}
    bases = [str(config.base_model_name_or_path or "") for config in adapters.values()]
    return [str(getattr(base_model(model).config, "_name_or_path", "")), *bases]


def _as_umask_says(folder: Path) -> None:
    """Safetensors makes its files for their owner alone; the record was made as any file is."""
    mode = (folder / RECORD).stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _put(temporary: Path, place: Path) -> None:
    """A folder in the place of an older one, which goes only where the new one stands."""
    old = temporary.with_name(f"{temporary.name}.old")
    if place.exists():
        place.replace(old)
    try:
        temporary.replace(place)
    except OSError:
        if old.exists():
            old.replace(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _merged(model: nn.Module) -> Any:
    """The bare causal language model; a copy where adapters are merged into it."""
    if base_model(model) is model or isinstance(model, nn.parallel.DistributedDataParallel):
        bare = base_model(model)
    else:
        bare = copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]
    for index, layer in enumerate(find(bare).layers):
        kind = type(layer.output)
        own = kind.__module__.startswith("transformers.models.")  # such as FalconLinear
        if kind not in (nn.Linear, Conv1D) and not (own and issubclass(kind, nn.Linear)):
            raise SparksError(
                f"o_proj of layer {index} is {type(layer.output).__name__}, whose weights cannot "
                f"be edited: load the model unquantised"
            )
    return bare


def _folded(model: Any, heads: Sequence[Head], scale: float, means: HeadMeans | None) -> Any:
    """A model that shares all weights with `model` but those that change."""
    weights = dict(model.state_dict())
    config = copy.deepcopy(model.config)
    layers = find(model).layers
    modules = {module: name for name, module in model.named_modules()}
    if means is not None and any(layers[layer].output.bias is None for layer, _ in heads):
        config, added = _with_biases(model, config)
        weights |= added
    for index in sorted({layer for layer, _ in heads}):
        name = modules[layers[index].output]
        whole = weights[f"{name}.weight"].detach().clone()
        weight = whole.T if isinstance(layers[index].output, Conv1D) else whole
        bias = weights.get(f"{name}.bias")
        size = layers[index].query.head_dim
        for head in (head for layer, head in heads if layer == index):
            columns = slice(head * size, (head + 1) * size)
            if means is not None:
                assert bias is not None  # `_with_biases` has seen to it
                moved = weight[:, columns].float() @ means.overall[index, head].to(weight.device)
                bias = bias + ((1 - scale) * moved).to(bias.dtype)
            weight[:, columns] *= scale
        weights[f"{name}.weight"] = whole
        if bias is not None:
            weights[f"{name}.bias"] = bias
    return _assembled(model, config, weights)


def _with_biases(model: Any, config: Any) -> tuple[Any, dict[str, Tensor]]:
    """A config whose `o_proj` have biases, and zeros for all biases that it adds."""
    kind = config.model_type
    refusal = SparksError(
        f"the architecture {kind} has no bias behind its heads (o_proj), so its weights cannot "
        f"hold a mean: use --scale 0, or evaluate the mean with hooks (sparks evaluate --mean)"
    )
    if getattr(config, "attention_bias", None) is not False:
        raise refusal
    config.attention_bias = True
    with torch.device("meta"):
        bare = type(model)(config)
    own = model.state_dict()
    added = {name: value for name, value in bare.state_dict().items() if name not in own}
    outputs = [layer.output for layer in find(bare).layers]
    if any(output.bias is None for output in outputs) or any(
        not name.endswith(".bias") for name in added
    ):
        raise refusal
    like = next(model.parameters())
    return config, {
        name: torch.zeros(value.shape, dtype=like.dtype, device=like.device)
        for name, value in added.items()
    }


def _assembled(model: Any, config: Any, weights: dict[str, Tensor]) -> Any:
    """A model of the class with these weights; buffers that are not saved stay empty."""
    with torch.device("meta"):
        found = type(model)(config)
    found.load_state_dict(weights, strict=True, assign=True)
    found.tie_weights()
    found.generation_config = copy.deepcopy(model.generation_config)
    return found


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    try:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # settings that generation refuses, weights that share memory
        raise SparksError(
            f"cannot save the model: {reason(error)}; load it anew from its folder, and mend its "
            f"generation_config"
        ) from error


def _compare(folder: Path, like: Any, ids: Tensor, expected: Tensor) -> float:
    """Relative difference of the saved checkpoint's logits from those expected."""
    dtype = next(like.parameters()).dtype
    loaded = type(like).from_pretrained(folder, dtype=dtype).to(ids.device).eval()
    with torch.no_grad():
        found = loaded(input_ids=ids, **own_settings(loaded)).logits.float()
    difference = relative_difference(found, expected)
    if not difference < tolerance(dtype):
        raise SparksError(
            f"the checkpoint would not compute what the hooked model does (logits differ by "
            f"{difference:.1e}): it is not written; tell the authors which model this is"
        )
    return difference
