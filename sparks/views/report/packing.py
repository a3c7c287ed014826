"""Arrays as short text: deflated, in base64. The page unpacks them in `page/load.js`.

Little-endian numbers. What deflate cannot see is done before: series stand one after another and
hold differences, and numbers of several bytes stand byte by byte (all first bytes, all second
bytes, ...).
"""

from __future__ import annotations

import base64
import zlib

import numpy as np

Packed = dict[str, str]
"""`{"packed": text}`, where the page finds the bytes."""


def deflated(raw: bytes) -> str:
    """Bytes as text; what the browser calls `deflate`."""
    return base64.b64encode(zlib.compress(raw, 9)).decode("ascii")


def packed(values: np.ndarray) -> Packed:
    """The bytes of an array of one-byte numbers."""
    return {"packed": deflated(np.ascontiguousarray(values).tobytes())}


def packed_planes(values: np.ndarray) -> Packed:
    """Numbers of several bytes: all lowest bytes, then all second ones, and so on."""
    raw = np.ascontiguousarray(values).ravel()
    return packed(raw.view(np.uint8).reshape(-1, raw.dtype.itemsize).T)


def packed_numbers(values: np.ndarray) -> Packed:
    """Real numbers as float32 without its lowest byte: wrong by at most 1 part in 60,000."""
    limit = float(np.finfo("<f4").max)
    bits = np.clip(np.asarray(values, np.float64), -limit, limit).astype("<f4").view("<u4")
    rounded = np.where(bits & 0x7FFFFF00 >= 0x7F7FFF00, bits, bits + np.uint32(0x80))
    return packed_planes((rounded & np.uint32(0xFFFFFF00)).astype("<u4"))


def differences(values: np.ndarray) -> np.ndarray:
    """Each number less the one before, wrapped around; whole numbers of one type."""
    return np.diff(values, prepend=values.dtype.type(0))
