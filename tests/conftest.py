"""What every test stands on: no network, one thread, checked shapes, a table of tolerances."""

# The environment and the import hook come before what they act on.
# ruff: noqa: E402

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile

# trackio reads once, when it is imported by anyone, where its store lies: not in the user's.
STORE = tempfile.mkdtemp(prefix="trackio-")
atexit.register(shutil.rmtree, STORE, ignore_errors=True)

os.environ |= {
    "TRACKIO_DIR": STORE,
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}

import shape_check
import started

shape_check.install("sparks")
started.prepare()

from collections.abc import Callable, Generator

import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)

TOLERANCE = {
    # Against the official scores and against the definition of a score; the figure of the issue.
    "parity": 1e-5,
    # The same sums in another order: another split, batch, route, attention kernel or merged LoRA.
    "same": 5e-6,
    # Against patching single edges of a model that is affine after the patch.
    "affine": 1e-5,
    # KL of an exact patch against the same KL by another way, float32, nats.
    "patched": 1e-5,
    # A narrow model against float32 with the same weights: its activations are rounded.
    "bfloat16": 5e-2,
    "float16": 1e-2,
}
"""Largest ||found - expected|| / ||expected|| (Frobenius) of each kind of comparison."""


def pytest_collection_finish() -> None:
    """Nothing imported is searched for garbage again: trainers do that, 0.3 s each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        started.end_all_of(item.nodeid, report.when)
    return report


AssertClose = Callable[[str, Tensor, Tensor], None]


@pytest.fixture
def assert_close() -> AssertClose:
    """`assert_close(kind, found, expected)` to `TOLERANCE[kind]`; `-rP` shows the figures."""

    def check(kind: str, found: Tensor, expected: Tensor) -> None:
        assert found.shape == expected.shape
        assert float(expected.norm()) > 0
        difference = float((found - expected).norm() / expected.norm())
        print(f"{kind}: {difference:.1e}, allowed {TOLERANCE[kind]:g}")
        assert difference <= TOLERANCE[kind]

    return check
