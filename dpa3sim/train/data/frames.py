"""Frames: structures with labels, many of them held as a few arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.structures.system import System

# Frames are packed into arrays as soon as there are so many.
_CHUNK = 1024
_COUNTER = ", frame "
# Arrays with a row for every frame, and for every atom, with the shapes of their rows; where the
# last dimension is None, it depends on the data, and the whole array is None if no frame has it.
_OF_FRAMES: dict[str, tuple[int | None, ...]] = {
    "cells": (3, 3),
    "pbc": (3,),
    "energies": (),
    "virials": (3, 3),
    "weights": (),
    "file_of": (),
    "number_of": (),
    "fparam": (None,),
    "charge_spin": (None,),
}
_OF_ATOMS: dict[str, tuple[int | None, ...]] = {
    "numbers": (),
    "positions": (3,),
    "forces": (3,),
    "atomic_energies": (),
    "aparam": (None,),
}
_DTYPES = {"numbers": np.uint8, "pbc": np.bool_, "file_of": np.int32, "number_of": np.int64}
# What tells where frames come from, which training does not read.
_ORIGINS = ("file_of", "number_of")


@dataclass(frozen=True)
class Frame:
    """One structure with its labels; a label that is missing is None.

    Attributes:
        system: the structure, with at least one atom; ``fparam`` is ``(k,)``, ``aparam``
            ``(n, k)`` and ``charge_spin`` ``(2,)``, or None.
        energy: eV.
        forces: ``(n, 3)`` eV/Å.
        virial: ``(3, 3)`` eV, symmetric, -dE/dstrain; ASE's stress is ``-virial / volume``.
        atomic_energies: ``(n,)`` eV.
        weight: factor of its loss.
        origin: where it comes from, such as ``water.xyz, frame 12``, counted from 0.
    """

    system: System
    energy: float | None
    forces: np.ndarray | None
    virial: np.ndarray | None
    atomic_energies: np.ndarray | None
    weight: float
    origin: str


@dataclass(frozen=True)
class Rejected:
    """A frame that cannot be used.

    Attributes:
        origin: see :class:`Frame`.
        reason: what is wrong with it.
    """

    origin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Frames:
    """Many frames of any sizes; NaN marks a label that is missing.

    Attributes:
        starts: ``(n_frames + 1,)`` int64, the first atom of every frame, and the number of atoms.
        numbers: ``(n_atoms,)`` uint8; positions, forces: ``(n_atoms, 3)`` Å and eV/Å.
        cells: ``(n_frames, 3, 3)`` Å, lattice vectors as rows; pbc: ``(n_frames, 3)`` bool.
        energies: ``(n_frames,)`` eV; virials: ``(n_frames, 3, 3)`` eV; weights: ``(n_frames,)``.
        files: the files that the frames come from.
        file_of: ``(n_frames,)`` int32, index into ``files``.
        number_of: ``(n_frames,)`` int64, place in the file, -1 where it has none.
        atomic_energies: ``(n_atoms,)`` eV.
        fparam: ``(n_frames, k)``; aparam: ``(n_atoms, k)``; charge_spin: ``(n_frames, 2)``. These
            and the atomic energies are None if no frame has them.
    """

    starts: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray
    forces: np.ndarray
    cells: np.ndarray
    pbc: np.ndarray
    energies: np.ndarray
    virials: np.ndarray
    weights: np.ndarray
    files: tuple[str, ...]
    file_of: np.ndarray
    number_of: np.ndarray
    atomic_energies: np.ndarray | None = None
    fparam: np.ndarray | None = None
    aparam: np.ndarray | None = None
    charge_spin: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Frame:
        """One frame; its arrays are views."""
        i = range(len(self))[index]
        atoms = slice(self.starts[i], self.starts[i + 1])
        system = System(
            numbers=self.numbers[atoms].astype(np.int64),
            positions=self.positions[atoms],
            cell=self.cells[i],
            pbc=self.pbc[i],
            fparam=_known(self.fparam, i),
            aparam=_known(self.aparam, atoms),
            charge_spin=_known(self.charge_spin, i),
        )
        energy = self.energies[i]
        return Frame(
            system=system,
            energy=None if np.isnan(energy) else float(energy),
            forces=_known(self.forces, atoms),
            virial=_known(self.virials, i),
            atomic_energies=_known(self.atomic_energies, atoms),
            weight=float(self.weights[i]),
            origin=self.origin(i),
        )

    def __iter__(self) -> Iterator[Frame]:
        return (self[i] for i in range(len(self)))

    def origin(self, index: int) -> str:
        """Where a frame comes from, such as ``water.xyz, frame 12``."""
        file, number = self.files[self.file_of[index]], self.number_of[index]
        return file if number < 0 else f"{file}{_COUNTER}{number}"

    @property
    def sizes(self) -> np.ndarray:
        """``(n_frames,)`` int64, atoms of each frame."""
        return np.diff(self.starts)

    @property
    def has_energy(self) -> np.ndarray:
        """``(n_frames,)`` bool."""
        return ~np.isnan(self.energies)

    @property
    def has_forces(self) -> np.ndarray:
        """``(n_frames,)`` bool."""
        return ~np.isnan(self.forces[self.starts[:-1], 0])

    @property
    def has_virial(self) -> np.ndarray:
        """``(n_frames,)`` bool."""
        return ~np.isnan(self.virials[:, 0, 0])

    @property
    def has_atomic_energies(self) -> np.ndarray:
        """``(n_frames,)`` bool."""
        if self.atomic_energies is None:
            return np.zeros(len(self), dtype=bool)
        return ~np.isnan(self.atomic_energies[self.starts[:-1]])

    @property
    def sha256(self) -> str:
        """Hash of everything that training reads, which is all but the origins."""
        digest = hashlib.sha256()
        for name, array in self._arrays().items():
            if name not in _ORIGINS:
                digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _arrays(self) -> dict[str, np.ndarray]:
        """All arrays that exist, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "files"}
        return {name: array for name, array in found.items() if array is not None}

    def select(self, indices: np.ndarray | Sequence[int]) -> Frames:
        """Some of the frames, copied.

        Args:
            indices: ``(n_chosen,)`` int, in any order.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        sizes = self.sizes[chosen]
        starts = _starts(sizes)
        atoms = np.repeat(self.starts[chosen] - starts[:-1], sizes) + np.arange(starts[-1])
        arrays = {
            name: array[atoms if name in _OF_ATOMS else chosen]
            for name, array in self._arrays().items()
            if name != "starts"
        }
        return Frames(starts=starts, files=self.files, **arrays)

    @classmethod
    def from_frames(cls, frames: Iterable[Frame]) -> Frames:
        """Pack frames, taking one after the other.

        Raises:
            InputError: there are none, or they have different numbers of extra inputs.
        """
        rest = iter(frames)
        blocks = []
        while chunk := list(islice(rest, _CHUNK)):
            blocks.append(_packed(chunk))
        if not blocks:
            raise InputError("there are no frames")
        return _merged(blocks)

    @classmethod
    def join(cls, parts: Sequence[Frames]) -> Frames:
        """The frames of all parts, one after the other.

        Raises:
            InputError: there are no parts, or they have different numbers of extra inputs.
        """
        if not parts:
            raise InputError("there are no frames")
        return _merged([{f.name: getattr(part, f.name) for f in fields(cls)} for part in parts])


def _known(array: np.ndarray | None, rows: Any) -> np.ndarray | None:
    """Rows of an array, unless they are missing."""
    if array is None:
        return None
    found: np.ndarray = array[rows]
    return None if np.isnan(found).all() else found


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _packed(frames: Sequence[Frame]) -> dict[str, Any]:
    """The fields of :class:`Frames` for a few frames."""
    sizes = np.array([len(frame.system) for frame in frames])
    systems = [frame.system for frame in frames]
    table, file_of, number_of = _origins([frame.origin for frame in frames])
    missing = np.full((3, 3), np.nan)
    per_atom: dict[str, list[Any]] = {
        "forces": [frame.forces for frame in frames],
        "atomic_energies": [frame.atomic_energies for frame in frames],
        "aparam": [system.aparam for system in systems],
    }
    packed = {name: _stacked(name, parts, sizes) for name, parts in per_atom.items()}
    if packed["forces"] is None:
        packed["forces"] = np.full((int(sizes.sum()), 3), np.nan)
    for name in ("fparam", "charge_spin"):
        rows = [getattr(system, name) for system in systems]
        rows = [None if row is None else np.atleast_2d(row) for row in rows]
        packed[name] = _stacked(name, rows, np.ones(len(rows), dtype=np.int64))
    return packed | {
        "starts": _starts(sizes),
        "numbers": np.concatenate([s.numbers for s in systems]).astype(np.uint8),
        "positions": np.concatenate([s.positions for s in systems]).astype(np.float64),
        "cells": np.stack([s.cell for s in systems]).astype(np.float64),
        "pbc": np.stack([s.pbc for s in systems]).astype(bool),
        "energies": np.array([np.nan if f.energy is None else f.energy for f in frames]),
        "virials": np.stack([missing if f.virial is None else f.virial for f in frames]),
        "weights": np.array([frame.weight for frame in frames], dtype=np.float64),
        "files": table,
        "file_of": file_of,
        "number_of": number_of,
    }


def _origins(origins: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """The files, and for every frame the index of its file and its place there."""
    table: dict[str, int] = {}
    pairs = []
    for origin in origins:
        file, found, number = origin.rpartition(_COUNTER)
        if not (found and number.isascii() and number.isdigit()):
            file, number = origin, "-1"
        pairs.append((table.setdefault(file, len(table)), int(number)))
    file_of, number_of = np.array(pairs, dtype=np.int64).T
    return tuple(table), file_of.astype(np.int32), number_of


def _merged(blocks: list[dict[str, Any]]) -> Frames:
    """The frames of all blocks, whose fields are taken out one by one to save memory."""
    sizes = [np.diff(block.pop("starts")) for block in blocks]
    lengths = np.array([len(s) for s in sizes])
    atoms = np.array([s.sum() for s in sizes])
    table: dict[str, int] = {}
    for block in blocks:
        places = [table.setdefault(file, len(table)) for file in block.pop("files")]
        block["file_of"] = np.array(places, dtype=np.int32)[block["file_of"]]
    arrays = {
        name: _stacked(name, [block.pop(name) for block in blocks], rows)
        for names, rows in ((_OF_FRAMES, lengths), (_OF_ATOMS, atoms))
        for name in names
    }
    found: dict[str, Any] = arrays
    return Frames(starts=_starts(np.concatenate(sizes)), files=tuple(table), **found)


def _stacked(name: str, parts: Sequence[np.ndarray | None], rows: np.ndarray) -> np.ndarray | None:
    """Parts below each other, NaN for those that are missing; None if all are.

    Args:
        name: for the message. parts: arrays of ``rows[k]`` rows.

    Raises:
        InputError: their rows have different shapes.
    """
    shapes = {part.shape[1:] for part in parts if part is not None}
    if not shapes:
        return None
    if len(shapes) > 1:
        widths = " and others ".join(str(int(np.prod(shape))) for shape in sorted(shapes))
        raise InputError(f"some frames have {widths} values of {name}; they must all have the same")
    shape = shapes.pop()
    return np.concatenate(
        [
            np.full((count, *shape), np.nan) if part is None else part
            for part, count in zip(parts, rows, strict=True)
        ]
    )
