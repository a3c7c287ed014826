"""What is wrong in a run folder, file by file: for tests that kill trainings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sparks.attribution.snapshot import Snapshot
from sparks.ground.errors import SparksError
from sparks.probes.probes import ProbeSet
from sparks.runs.identity import read_id


def flaws(folder: Path, *, steps: Sequence[int] | None = None) -> list[str]:
    """One line a flaw: a file that does not load, or a name that nobody knows.

    Args:
        folder: the run folder; one that does not exist has no flaws.
        steps: of a finished run: it has a snapshot of each, of no other step, a log and a report,
            and nothing that a kill left behind.
    """
    found, measured, names = [], [], set()
    for path in sorted(folder.glob("*")):
        names.add(path.name)
        if path.name.startswith("attempt-"):
            found += [f"{path.name}/{flaw}" for flaw in flaws(path)]
            continue
        try:
            measured += _check(path)
        except Exception as error:
            found.append(f"{path.name}: {' '.join(str(error).split())}")
    if steps is None:
        return [flaw for flaw in found if not flaw.endswith(LEFTOVER)]
    if sorted(measured) != list(steps):
        found.append(f"snapshots of steps {sorted(measured)}, expected {list(steps)}")
    found += [f"no {name}" for name in ("metrics.json", "report.html") if name not in names]
    return found


LEFTOVER = "left behind"


def _check(path: Path) -> list[int]:
    """Steps that the file measures: none or one."""
    name = path.name
    if name.endswith(".safetensors"):
        return [_snapshot(path).step]
    if ".safetensors.stale" in name:
        _snapshot(path)
    elif name == "metrics.json":
        rows = json.loads(path.read_text())
        assert all("step" in row for row in rows), "a row without a step"
    elif name == "run.json":
        assert read_id(path.parent), "no id"
    elif name == "probes.jsonl":
        ProbeSet.load(path)
    elif name == "report.html":
        assert path.read_text().rstrip().endswith("</html>"), "cut short"
    else:
        raise ValueError(LEFTOVER)
    return []


def _snapshot(path: Path) -> Snapshot:
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Snapshot.from_arrays(arrays, file.metadata())
    except (SafetensorError, SparksError, KeyError, OSError) as error:
        raise ValueError(f"torn ({error})") from error
