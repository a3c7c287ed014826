"""What a report page was given, read out of the page."""

from __future__ import annotations

import base64
import json
import re
import zlib
from typing import Any

import numpy as np
import pytest


def payload(page: str) -> dict[str, Any]:
    """What a browser reads from the page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def raw(sent: dict[str, str]) -> bytes:
    """What a packed array holds."""
    return zlib.decompress(base64.b64decode(sent["packed"]))


def unpacked(text: dict[str, str], kind: str) -> np.ndarray:
    """Read as the page reads numbers of several bytes: the lowest bytes stand first."""
    planes = np.frombuffer(raw(text), np.uint8).reshape(np.dtype(kind).itemsize, -1)
    return np.ascontiguousarray(planes.T).view(kind).ravel()


def summed(text: dict[str, str], kind: str) -> np.ndarray:
    """Read where differences were sent."""
    return np.cumsum(unpacked(text, kind), dtype=kind)


def counts_of(run: dict[str, Any]) -> dict[str, list[float | None]]:
    values = unpacked(run["counts"], "<f4").reshape(-1, len(run["steps"])).tolist()
    return {
        name: [float(f"{value:.5g}") if np.isfinite(value) else None for value in row]
        for name, row in zip(run["count_names"], values, strict=True)
    }
