"""Two processes (gloo): rank 0 measures, training is untouched, snapshots equal those of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparks.store import RunStore

HERE = Path(__file__).parent


def run(folder: Path, how: str, processes: int) -> dict[str, object]:
    folder.mkdir()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [sys.executable, *launch, str(HERE / "ddp_script.py"), str(folder), how],
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
def test_two_processes_train_as_without_us(tmp_path):
    alone = run(tmp_path / "alone", "alone", 2)
    watched = run(tmp_path / "watched", "watched", 2)
    assert alone["processes"] == 2
    assert "MULTI_CPU" in str(alone["kind"])
    assert watched == alone
    contents = RunStore.find(tmp_path / "watched").read()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 2, 4]
    # Step 0 is the same model whoever trains it.
    run(tmp_path / "one", "watched", 1)
    single = RunStore.find(tmp_path / "one").load(0)
    base = contents.snapshots[0]
    assert base.meta.model_hash == single.meta.model_hash
    np.testing.assert_array_equal(base.edge_destination, single.edge_destination)
    np.testing.assert_allclose(base.edge_score, single.edge_score, rtol=1e-5)
