"""The peak of a process is its own, whatever program has started it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from sparks.models import memory
from sparks.models.memory import peak_process_gib


def told_by(code: str) -> list[float]:
    """The numbers that a new Python prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def test_the_peak_grows_with_what_was_held():
    code = """
import numpy
from sparks.models.memory import peak_process_gib
before = peak_process_gib()
held = numpy.ones(int(before * 2**30) // 8 + 2**25)  # 0.25 GiB above the peak so far
after = peak_process_gib()
del held
print(before, after, peak_process_gib())
"""
    before, after, later = told_by(code)
    assert after > before
    assert later > 0.99 * after  # the kernel counts in batches


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is ru_maxrss")
def test_a_small_process_of_a_large_one_is_small():
    large = np.ones(2**27)  # 1 GiB
    (peak,) = told_by(
        "from sparks.models.memory import peak_process_gib; print(peak_process_gib())"
    )
    assert peak < 0.8 < large.nbytes / 2**30


def test_without_the_kernels_number_it_is_that_of_getrusage(monkeypatch):
    monkeypatch.setattr(memory.Path, "read_text", lambda self: "Name:\tpython\n")
    assert 0.05 < peak_process_gib() < 64


def test_without_getrusage_as_on_windows_it_is_the_process_s_own(monkeypatch):
    monkeypatch.setattr(memory.Path, "read_text", lambda self: "Name:\tpython\n")
    monkeypatch.setitem(sys.modules, "resource", None)  # an import of it fails
    assert 0.05 < peak_process_gib() < 64
    code = (
        "import sys; sys.modules['resource'] = None; "
        "import sparks.models.memory, sparks.attribution.eap_ig"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
