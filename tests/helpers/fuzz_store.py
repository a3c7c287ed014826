"""Thousands of damaged stores, each read by all that reads: one clear line, or it is read.

    PYTHONPATH=tests/helpers python tests/helpers/fuzz_store.py --count 10000 --seed 1

A mutation is drawn by its number: a file of a store, and what happens to it (bytes, a JSON value, a
value of an array, its end, the whole file). Half of the changed snapshots get a right checksum, so
that ranges alone stand against them. `test_fuzz_store.py` runs some hundreds; an outcome that is no
`SparksError` is a fault, as are 10 seconds in one call and a gigabyte more of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from evaluations_made_here import SOLVING, make_samples, write_evaluations
from factories import STORY, make_metrics, make_run, write_run
from safetensors.numpy import load, save

from sparks.attribution.faithfulness.mib import read_mib, write_mib
from sparks.attribution.faithfulness.results import FaithfulnessCurves
from sparks.attribution.faithfulness.settings import CurveConfig
from sparks.attribution.snapshot import checksum
from sparks.cli import main
from sparks.effects.plan import Plan, PlannedSet
from sparks.effects.study import read_study
from sparks.evaluation.results import Evaluation
from sparks.evaluation.samples_file import SamplesFile
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.probes.probes import ProbeSet
from sparks.runs.run_folder import RunStore
from sparks.runs.trainer_log import TrainerLog, latest_metrics
from sparks.thinking.comparison import ThinkComparison
from sparks.thinking.record import ThinkRecord
from sparks.timeline.nulls import resampled
from sparks.timeline.timeline import Timeline
from sparks.views.live.follower import max_steps_of
from sparks.views.text.effects import render as effects_text
from sparks.views.text.evaluation import render as evaluation_text
from sparks.views.text.faithfulness import render as faithfulness_text
from sparks.views.text.thinking import render as think_text

MOST_SECONDS = 10
MOST_GROWTH_KIB = 2**20


class HangError(BaseException):
    """A call that does not come back; no handler of the program catches it."""


# -- the stores ------------------------------------------------------------------------------------

Reader = Callable[[Path], Any]


def make_stores(root: Path) -> None:
    """One of everything that is read."""
    output = root / "run"
    run = write_run(output / "sparks", make_run(STORY), make_metrics(range(0, 41, 5)))
    write_evaluations(run, SOLVING)
    store = RunStore(run)
    store.note_failure(50, "no memory")
    store.write_probes('{"prompt": "1 + 1 =", "clean": "2", "corrupted": "5", "id": "a"}\n')
    band = resampled(Timeline.from_run(run))
    assert band is not None
    store.write_nulls([band])
    write_run(root / "other", make_run(STORY, seed=1))
    state = {"global_step": 40, "epoch": 1.0, "max_steps": 60, "log_history": make_metrics((5, 40))}
    (output / "checkpoint-40").mkdir()
    (output / "checkpoint-40" / "trainer_state.json").write_text(json.dumps(state))
    _make_study(root / "study")
    _make_thinking(root / "think")
    _make_curves(root / "curves.json")
    graph = Graph(num_layers=2, num_heads=2, num_kv_heads=2)
    write_mib(root / "mib.json", np.zeros(graph.edge_mask.shape), graph, d_model=8)


def _make_study(folder: Path) -> None:
    planned = PlannedSet(
        name="a", heads=((0, 0),), found=1, origin="by hand", done="set to 0", scale=0.0,
        random=(((0, 1),), ((0, 2),)), moved=(0, 0),
    )  # fmt: skip
    plan = Plan(
        model="m",
        task="sums",
        metric="pass@1",
        margin=0.1,
        settings={"samples": 4},
        sets=(planned,),
    )
    plan.save(folder)
    for condition in plan.conditions():
        header, lines = make_samples(0, SOLVING[0])
        header = type(header)(**vars(header) | {"intervention": condition.intervention})
        with SamplesFile(folder / condition.file, header) as file:
            file.write(lines)


def _make_thinking(folder: Path) -> None:
    folder.mkdir()
    record = ThinkRecord(
        request={"model": "m", "max_suffix_tokens": 16, "data": "d"}, switch="enable_thinking",
        contrast="words", marker_tokens=2, skipped=("one",),
    )  # fmt: skip
    (folder / "think.json").write_text(record.to_json())
    for mode in ("on", "off"):
        (folder / f"probes-{mode}.jsonl").write_text('{"prompt":"x","clean":"a","corrupted":"b"}\n')
        write_run(folder / mode, make_run({0: ["L0H0", "L1H1"]}, model_hash="same"))


def _make_curves(path: Path) -> None:
    rng = np.random.default_rng(0)
    config = CurveConfig(shares=(0.5, 1), draws=1)
    FaithfulnessCurves(
        model="m", probe_ids=("a", "b"), probe_groups=("", ""), num_edges=8, num_heads=2,
        settings={"scores": {}, "circuits": config.as_dict()}, shares=config.shares,
        sets=("shared", "own", "random"), clean=np.zeros((2, 2)), empty=np.full((2, 2), -1.0),
        kept=-rng.random((2, 3, 2, 2)), removed=-rng.random((2, 3, 2, 2)),
        edges=np.full((3, 2, 2), 3), heads=np.ones((3, 2, 2), dtype=int),
    ).save(path)  # fmt: skip


# -- who reads them --------------------------------------------------------------------------------


def _command(*words: Any) -> None:
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as told,
    ):
        main([str(word) for word in words])
    if "sparks: error: " in told.getvalue():  # not for what is read though a part is damaged
        raise SparksError(told.getvalue())


def _read_run(root: Path) -> None:
    contents = RunStore.find(root / "run").read()
    Timeline.from_run(root / "run")
    for problem in contents.problems:
        assert "\n" not in problem
        if problem != "step 50: no snapshot (no memory)":
            raise SparksError(problem)


def _read_trainer(root: Path) -> None:
    max_steps_of(root / "run" / "sparks")
    if (log := TrainerLog.read(root / "run" / "checkpoint-40")) is None:
        raise SparksError("no log")
    latest_metrics(log.rows)


def _read_curves(root: Path) -> None:
    curves = FaithfulnessCurves.load(root / "curves.json")
    faithfulness_text(curves, width=100)
    curves.points()
    curves.areas()


RUN_READERS: tuple[Reader, ...] = (
    lambda root: _command("timeline", root / "run"),
    lambda root: _command("report", root / "run", "-o", root / "page.html"),
    lambda root: _command("compare", root / "run", root / "other"),
    lambda root: _command("regimes", root / "run", root / "other"),
    lambda root: _command("watch", root / "run", "--once"),
    lambda root: _command("timeline", root / "run", "--table", "problems", "--format", "csv"),
)
"""One of them for each mutation of a run, beside `_read_run`; `--all` takes all."""


def readers_of(path: Path, root: Path, number: int, everything: bool) -> list[Reader]:
    """Those that meet a file."""
    first, name = path.relative_to(root).parts[0], path.name
    if name == "trainer_state.json":
        return [_read_trainer]
    if first == "study":
        return [lambda root: effects_text(read_study(root / "study"))]
    if first == "think":
        return [lambda root: think_text(ThinkComparison.from_folder(root / "think"), width=100)]
    if first == "curves.json":
        return [_read_curves]
    if first == "mib.json":
        return [lambda root: read_mib(root / "mib.json")]
    if name == "probes.jsonl":
        return [lambda root: ProbeSet.load(path)]
    chosen = RUN_READERS if everything else (RUN_READERS[number % len(RUN_READERS)],)
    found: list[Reader] = [_read_run, *chosen]
    if path.suffix == ".jsonl":
        found.append(lambda root: evaluation_text(Evaluation.load(path), width=100))
    return found


# -- mutations -------------------------------------------------------------------------------------

DEEP = "[" * 100_000
ODD: tuple[str, ...] = (
    "null", "true", "-1", "0", "1", "7", "1.5", "-0.5", "255", "256", "65536", "2147483648", "1e30",
    "9007199254740993", "9223372036854775808", "1e308", "-1e308", "1e999", "NaN", "Infinity",
    "1" * 400, "1" * 5000, DEEP, "[]", "{}", "[[]]", '[1, "x"]', '{"a": {"b": 1}}', '""', '"x"',
    '"L0H0"', '"pass@99"', '"step"', '"' + "y" * 20_000 + '"',
    r'"\ud800"', r'"\u0000"', r'"\u001b[31m"',
)  # fmt: skip
"""JSON texts in the place of a value."""
HOLE = "\ue000hole"


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value inside."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def odd_json(text: str, rng: np.random.Generator) -> str:
    """JSON with one value replaced by an odd one, taken out, or doubled."""
    value = json.loads(text)
    where = list(places(value))
    if not where:
        return ODD[rng.integers(len(ODD))]
    container, key = where[rng.integers(len(where))]
    match int(rng.integers(8)):
        case 0:
            del container[key]
        case 1 if isinstance(container, list):
            container.insert(key, container[key])
        case 2 if isinstance(container[key], dict | list):
            container[key] = type(container[key])()
        case 3 if isinstance(container, dict):
            container["an unknown key"] = container.pop(key)
        case _:
            container[key] = HOLE
    odd = ODD[rng.integers(len(ODD))]
    return json.dumps(value, ensure_ascii=False).replace(f'"{HOLE}"', odd)


def odd_lines(content: bytes, rng: np.random.Generator) -> bytes:
    """JSONL with one line changed."""
    lines = content.decode().split("\n")
    at = int(rng.integers(max(1, len(lines) - 1)))
    lines[at] = odd_json(lines[at], rng) if rng.random() < 0.9 else DEEP
    return "\n".join(lines).encode()


def odd_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Flipped, overwritten, cut, doubled or inserted bytes."""
    data = bytearray(content)
    if not data:
        return b"x"
    start = int(rng.integers(len(data)))
    end = min(len(data), start + int(rng.integers(1, 64)))
    match int(rng.integers(5)):
        case 0:
            data[start] ^= 1 << int(rng.integers(8))
        case 1:
            data[start:end] = rng.bytes(end - start)
        case 2:
            del data[start:]
        case 3:
            del data[start:end]
        case _:
            data[start:start] = data[start:end]
    return bytes(data)


NUMBERS = (np.nan, np.inf, -np.inf, -1, 0, 1, 2, 255, 1e9, 3e38, -(2**31), 2**31 - 1, 2**62)


def odd_array(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An array with odd values, of another type or of another shape."""
    array = array.copy()
    match int(rng.integers(6)):
        case 0:
            return array[: len(array) // 2]
        case 1:
            return array.reshape(-1)
        case 2:
            return array.astype((np.float64, np.int32, np.int64, np.float32)[rng.integers(4)])
        case _:
            raw = array.view(np.uint8) if array.dtype == np.bool_ else array
            odd = NUMBERS[rng.integers(len(NUMBERS))]
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = np.array(odd).astype(raw.dtype)
            if rng.random() < 0.3:
                raw[...] = value
            elif raw.size:
                raw.reshape(-1)[rng.integers(raw.size)] = value
            return array


def odd_snapshot(content: bytes, rng: np.random.Generator) -> bytes:
    """Another header or other arrays; with a right checksum, a wrong one, or of an old schema."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    arrays = {name: array.copy() for name, array in load(content).items()}
    text = metadata["sparks"]
    if rng.random() < 0.5:
        text = odd_json(text, rng)
    else:
        name = sorted(arrays)[rng.integers(len(arrays))]
        if rng.random() < 0.1:
            del arrays[name]
        else:
            arrays[name] = np.ascontiguousarray(odd_array(arrays[name], rng))
    kind = rng.random()
    if kind < 0.5:
        metadata = {"sparks": text, "checksum": checksum(text, arrays)}
    elif kind < 0.8:
        metadata = {"sparks": text.replace('"schema": 3', '"schema": 2')}
    else:
        metadata = {**metadata, "sparks": text}
    return save(arrays, metadata)


def mutate(path: Path, content: bytes, rng: np.random.Generator) -> bytes | None:
    """What the file holds after the mutation; None where it is taken away."""
    kind = rng.random()
    if kind < 0.03:
        return None
    if kind < 0.05:
        return b""
    if kind < 0.25:
        return odd_bytes(content, rng)
    if path.suffix == ".safetensors":
        return odd_snapshot(content, rng)
    if path.suffix == ".jsonl":
        return odd_lines(content, rng)
    if path.suffix == ".json":
        return odd_json(content.decode(), rng).encode()
    return odd_bytes(content, rng)


# -- the run ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Of all mutations."""

    calls: Counter[str]
    """`read`, `told` (a `SparksError`), `fault`."""
    faults: tuple[str, ...]
    """Number of the mutation, file, and the last lines of what came."""


def fuzz(
    root: Path,
    numbers: Sequence[int],
    seed: int,
    *,
    everything: bool = False,
    mutation: Callable[[Path, bytes, np.random.Generator], bytes | None] = mutate,
) -> Outcome:
    """Mutate the stores in `root`, one file at a time, and read them."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    contents: Mapping[Path, bytes] = {path: path.read_bytes() for path in files}
    calls: Counter[str] = Counter()
    faults: list[str] = []
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        path = files[rng.integers(len(files))]
        changed = mutation(path, contents[path], rng)
        path.unlink()
        if changed is not None:
            path.write_bytes(changed)
        for reader in readers_of(path, root, number, everything):
            outcome, said = _called(reader, root)
            calls[outcome] += 1
            if outcome == "fault":
                faults.append(f"mutation {number} of {path.relative_to(root)}: {said}")
        path.write_bytes(contents[path])
    return Outcome(calls, tuple(faults))


def _called(reader: Reader, root: Path) -> tuple[str, str]:
    def late(*_: object) -> None:
        raise HangError(f"more than {MOST_SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(MOST_SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of huge numbers: they stay numbers
            reader(root)
        outcome, said = "read", ""
    except SparksError as error:
        outcome, said = "told", str(error)
    except (Exception, HangError):
        outcome, said = "fault", " | ".join(traceback.format_exc().strip().splitlines()[-3:])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return ("fault", f"{grown} KiB more") if grown > MOST_GROWTH_KIB else (outcome, said)


def _main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="every command for every mutation")
    options = parser.parse_args()
    numbers = range(options.start, options.start + options.count)
    with tempfile.TemporaryDirectory() as folder:
        make_stores(Path(folder))
        found = fuzz(Path(folder), numbers, options.seed, everything=options.all)
    for fault in found.faults:
        print(fault)
    print(f"{options.count} mutations of seed {options.seed}: {dict(found.calls)}")
    return int(bool(found.faults))


if __name__ == "__main__":
    sys.exit(_main())
