"""Commands and answers between processes: words as JSON, and arrays; nothing is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

_SIZE = 8
"""Bytes of the length of the words."""


def packed(words: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """One message of words and arrays."""
    shapes = {name: (x.dtype.str, x.shape) for name, x in arrays.items()}
    head = json.dumps([words, shapes]).encode()
    parts = [np.ascontiguousarray(x).tobytes() for x in arrays.values()]
    return b"".join([len(head).to_bytes(_SIZE, "little"), head, *parts])


def unpacked(message: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What :func:`packed` made a message of."""
    start = _SIZE + int.from_bytes(message[:_SIZE], "little")
    words, shapes = json.loads(message[_SIZE:start])
    arrays = {}
    for name, (kind, shape) in shapes.items():
        dtype = np.dtype(kind)
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(message, dtype, count, start).reshape(shape).copy()
        start += count * dtype.itemsize
    return words, arrays
