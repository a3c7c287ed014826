"""One model with thinking on and off: probes of both modes, measured, in one folder.

    DIR/
      think.json          what was asked, and what the probes are (`ThinkRecord`)
      probes-on.jsonl     clean: the beginning with thinking on; corrupted: with thinking off
      probes-off.jsonl    the roles swapped
      on/, off/           run folders with one snapshot each, of step 0

1. Probes are built once (`probes`) and kept; a later call with other settings for them is
   refused, so that no folder mixes two questions.
2. Both modes are measured on one model in memory, by the `take_snapshot` of every run. A snapshot
   that is there for the same probes and settings is kept: an interrupted call goes on.
3. In the contrast `beginnings` the pairs are longer than `max_suffix_tokens` by the longest marker,
   so that as many tokens of the model's own words as were asked for stand behind it.

Source: "Thinking Sparks!", https://arxiv.org/abs/2509.25758, section 6.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.ground.files import check_writable, write_atomically
from sparks.models.loading import load_model, load_tokenizer
from sparks.probes.pairs import TokenizedProbes
from sparks.probes.probes import ProbeSet
from sparks.probes.thinking_switch import MODES
from sparks.runs.run_folder import RunStore
from sparks.thinking.probes import ThinkProbes, build_think_probes
from sparks.thinking.record import ThinkRecord, probes_file
from sparks.thinking.settings import ThinkConfig


def measure_think(
    model: str,
    output: str | os.PathLike[str],
    probes: ThinkConfig | None = None,
    *,
    config: SnapshotConfig | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> ThinkRecord:
    """Build the probes of both modes and measure the model on them; what is there is kept.

    Args:
        model: folder or hub id of a chat model whose template has a thinking mode.
        output: the folder to write.
        probes: what they are built from; None takes those that the folder holds.
        config: settings of the snapshots; `max_suffix_tokens` counts the model's own words.
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...
        trust_remote_code: run Python code that comes with a model.
        overwrite: build and measure again what the folder holds.
        progress: show bars.

    Raises:
        SparksError: the folder holds other probes or cannot be written, the model has no thinking
            mode, or as `build_think_probes` and `take_snapshot` do.
    """
    config = config or SnapshotConfig()
    if config.swap_base_roles:
        raise SparksError(
            "swap_base_roles must be False, got True: it is for the base model of a training; both "
            "ways round are measured here"
        )
    folder = Path(output)
    check_writable(folder / "think.json")
    ThinkRecord.refuse_foreign(folder)
    how = {"device": device, "trust_remote_code": trust_remote_code}
    wanted = _request(model, probes or ThinkConfig(), config)
    record = None if overwrite else ThinkRecord.find(folder)
    if record is None:
        record = _build(model, folder, wanted, probes or ThinkConfig(), config, how, progress)
    else:
        record.refuse_other(wanted, given=probes is not None and probes.data is not None)
    _measure(model, folder, record, config, how, progress=progress)
    return record


def _build(
    model: str,
    folder: Path,
    wanted: Mapping[str, Any],
    probes: ThinkConfig,
    config: SnapshotConfig,
    how: Mapping[str, Any],
    progress: bool,
) -> ThinkRecord:
    """The probes, written; the record first, so that what stands in the folder is known as ours.

    A folder is whole where it holds both probes too (`ThinkRecord.find`).
    """
    built: ThinkProbes = build_think_probes(
        model,
        probes,
        max_suffix_tokens=config.max_suffix_tokens,
        progress=progress,
        **how,
    )
    # Nothing of an older call may stand beside the new probes, wherever this one is stopped.
    for mode in MODES:
        RunStore(folder / mode).file(0).unlink(missing_ok=True)
        probes_file(folder, mode).unlink(missing_ok=True)
    record = ThinkRecord(
        request=dict(wanted),
        switch=built.switch,
        contrast=built.contrast,
        marker_tokens=built.marker_tokens,
        skipped=built.skipped,
    )
    write_atomically(folder / "think.json", record.to_json())
    for mode in MODES:
        built.of(mode).save(probes_file(folder, mode))
    return record


def _measure(
    model: str,
    folder: Path,
    record: ThinkRecord,
    config: SnapshotConfig,
    how: Mapping[str, Any],
    *,
    progress: bool,
) -> None:
    tokenizer = load_tokenizer(model, trust_remote_code=how["trust_remote_code"])
    longer = replace(config, max_suffix_tokens=config.max_suffix_tokens + record.marker_tokens)
    loaded: Any = None  # only where there is something to measure
    for mode in MODES:
        store = RunStore(folder / mode)
        kept = ProbeSet.load(probes_file(folder, mode))
        tokenized = kept.tokenize(tokenizer, max_suffix_tokens=longer.max_suffix_tokens)
        if _is_done(store, tokenized, longer):
            continue
        loaded = loaded or load_model(model, **how)
        tokenized = kept.tokenize_for(loaded.config, tokenizer, longer)
        store.save(take_snapshot(loaded, tokenized, longer, source="replay", progress=progress))
        store.write_probes(kept.to_jsonl())


def _is_done(store: RunStore, probes: TokenizedProbes, config: SnapshotConfig) -> bool:
    try:
        meta = store.load(0).meta
        return meta.probes_hash == probes.hash and meta.settings.difference(config) is None
    except SparksError:  # none, or damaged: it is taken again
        return False


def _request(model: str, probes: ThinkConfig, config: SnapshotConfig) -> dict[str, Any]:
    """All that decides what the probes are."""
    values = {"model": model, **asdict(probes), "max_suffix_tokens": config.max_suffix_tokens}
    data = Path(probes.data) if probes.data else None
    if data is not None and data.is_file():
        values["data_sha256"] = hashlib.sha256(data.read_bytes()).hexdigest()
    return json.loads(json.dumps(values))
