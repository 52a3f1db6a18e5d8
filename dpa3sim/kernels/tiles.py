"""Sizes of the tiles of the Triton programs, and how many threads share one.

They decide the speed, not the results beyond rounding. ``tiles.json`` beside this file holds what
``benchmarks/gpu.py`` found to be fastest on a GPU; others use the defaults.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from dpa3sim.common.errors import InputError

VARIABLE = "DPA3SIM_TILES"
"""Environment variable that names another file of tiles."""
# What tensor cores need of a tile in each direction.
LEAST = 16


@dataclass(frozen=True)
class Tiles:
    """Sizes of tiles; each is a power of two.

    Attributes:
        edge_rows: edges of a tile.
        columns, depth: columns of a tile and depth of a step of its product.
        chained_columns: columns of angles, and of tiles whose product is the input of another one.
        angle_rows: other edges k of a tile of angles, at most.
        receivers: edges q of a job of the backward pass of angles.
        warps: groups of 32 threads that share a tile. wide_warps: the same where its columns are
            so many that the registers of fewer threads would limit how many tiles run at a time.
        stages: steps of a product whose loads are under way at a time.
    """

    edge_rows: int = 32
    columns: int = 64
    depth: int = 32
    chained_columns: int = 32
    angle_rows: int = 32
    receivers: int = 8
    warps: int = 4
    wide_warps: int = 8
    stages: int = 3

    @classmethod
    def default(cls, dtype: torch.dtype) -> Tiles:
        """Where nothing was measured: as many registers in both precisions."""
        return cls() if dtype == torch.float32 else cls(edge_rows=16)

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, matmul: str) -> Tiles:
        """The tiles for a GPU, a precision, and the rounding of products.

        Raises:
            InputError: the file cannot be read, or says what is no size of a tile.
        """
        default = cls.default(dtype)
        if device.type != "cuda":
            return default
        path = Path(os.environ.get(VARIABLE) or Path(__file__).with_name("tiles.json"))
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            entry = known.get(key(torch.cuda.get_device_name(device), dtype, matmul))
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: the tiles in it cannot be read: {error}") from error
        return default if entry is None else cls.checked(entry, str(path))

    @classmethod
    def checked(cls, entry: Mapping[str, Any], where: str) -> Tiles:
        """Tiles from an entry of a file.

        Raises:
            InputError: a name is missing or unknown, or a value is no size of a tile.
        """
        names = [field.name for field in fields(cls)]
        if sorted(entry) != sorted(names):
            raise InputError(f"{where}: an entry of tiles needs exactly {', '.join(names)}")
        for name, value in entry.items():
            sized = name in ("edge_rows", "columns", "depth", "chained_columns", "angle_rows")
            least, power = LEAST if sized else 1, name != "stages"
            if type(value) is not int or value < least or (power and value & (value - 1)):
                kind = "a power of two" if power else "a number"
                raise InputError(f"{where}: {name} = {value!r} must be {kind} from {least} on")
        return cls(**entry)


def key(name: str, dtype: torch.dtype, matmul: str) -> str:
    """Of an entry in a file: the name of the GPU, the precision, the rounding of products."""
    return f"{name}, {str(dtype).removeprefix('torch.')}, {matmul}"
