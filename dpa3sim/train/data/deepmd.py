"""deepmd-kit's data: folders of numpy files, or groups of an HDF5 file with the same names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dpa3sim.common.elements import ATOMIC_NUMBERS
from dpa3sim.common.errors import InputError
from dpa3sim.structures.formats import short
from dpa3sim.structures.given import ISOTOPES
from dpa3sim.structures.system import System
from dpa3sim.train.data.frames import Frame, Rejected
from dpa3sim.train.data.labels import symmetric

TYPES = "type.raw"
# So many frames are taken from the disk at once.
_CHUNK = 1024


class Store(Protocol):
    """Where the files of one system are."""

    name: str

    def has(self, name: str) -> bool:
        """Whether there is such a file."""

    def sets(self) -> list[str]:
        """The names ``set.*``, in order."""

    def words(self, name: str) -> list[str]:
        """The words of a text."""

    def array(self, name: str) -> Any:
        """An array that is read when it is sliced."""


class Folder:
    """A system in a folder."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self._path / name).exists()

    def sets(self) -> list[str]:
        """The names ``set.*``, in order."""
        return sorted(path.name for path in self._path.glob("set.*") if path.is_dir())

    def words(self, name: str) -> list[str]:
        """The words of a text."""
        try:
            return (self._path / name).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self._path / name}: cannot be read ({error})") from None

    def array(self, name: str) -> np.ndarray:
        """A memory-mapped array."""
        path = self._path / name
        try:
            found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # numpy raises all kinds of errors for damaged files
            raise InputError(f"{path}: not an array of numbers ({short(error)})") from None
        return found


class Group:
    """A system in a group of an HDF5 file, which stays open meanwhile.

    Args:
        group: an ``h5py.Group``. name: of file and group.
    """

    def __init__(self, group: Any, name: str) -> None:
        self.name, self._group = name, group

    def has(self, name: str) -> bool:
        """Whether there is such a dataset."""
        return name in self._group

    def sets(self) -> list[str]:
        """The names ``set.*``, in order."""
        return sorted(name for name in self._group if name.startswith("set."))

    def words(self, name: str) -> list[str]:
        """The entries of a dataset of texts or whole numbers."""
        found = np.asarray(self.array(name)[()]).reshape(-1).tolist()
        return [x.decode(errors="replace") if isinstance(x, bytes) else str(x) for x in found]

    def array(self, name: str) -> Any:
        """An ``h5py.Dataset``."""
        found = self._group[name]
        if not hasattr(found, "shape"):
            raise InputError(f"{self.name}/{name}: not an array")
        return found


def find(folder: Path) -> list[Folder]:
    """The systems in a folder and its subfolders, in order; it may be a system itself."""
    return [Folder(path.parent) for path in sorted(folder.rglob(TYPES))]


def hdf5_frames(
    path: str, group: str | None, type_map: Sequence[str] | None
) -> Iterator[Frame | Rejected]:
    """The frames of all systems of an HDF5 file, or of one of its groups.

    Raises:
        InputError: the file or group cannot be read, or has no systems.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            start = file if group is None else file.get(group)
            if not isinstance(start, h5py.Group):
                raise InputError(f"{path}: has no group {group!r}")
            found = [start.name] if TYPES in start else []

            def visit(_: str, node: Any) -> None:
                if isinstance(node, h5py.Group) and TYPES in node:
                    found.append(node.name)

            start.visititems(visit)
            if not found:
                raise InputError(f"{path}: has no group with {TYPES}, as deepmd-kit's data have")
            for name in found:
                yield from frames(Group(file[name], f"{path}#{name.rstrip('/')}"), type_map)
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # of h5py for damaged files
        raise InputError(f"{path}: not a readable HDF5 file ({short(error)})") from None


def frames(store: Store, type_map: Sequence[str] | None) -> Iterator[Frame | Rejected]:
    """The frames of one system.

    Args:
        store: its files. type_map: what the types are if the data do not say.

    Raises:
        InputError: a file is absent or damaged, or does not fit the others.
    """
    system = _System(store, _types(store), _elements(store, type_map), not store.has("nopbc"))
    names = store.sets()
    if not names:
        raise InputError(f"{store.name}: has no folders set.*")
    mixed = {name for name in names if store.has(f"{name}/real_atom_types.npy")}
    if mixed and mixed != set(names):
        other = next(name for name in names if name not in mixed)
        raise InputError(f"{store.name}: {other} has no real_atom_types.npy, other sets have it")
    for name in names:
        yield from _Set(system, name).frames()


@dataclass(frozen=True)
class _System:
    """What the sets of a system share.

    Attributes:
        store: the files.
        types: ``(n_slots,)`` of every atom.
        elements: the name of each type.
        periodic: whether there are cells.
    """

    store: Store
    types: np.ndarray
    elements: tuple[str, ...]
    periodic: bool

    def numbers(self, types: np.ndarray) -> np.ndarray:
        """The atomic numbers of types, of any shape; 0 where the type is -1, an empty slot.

        Raises:
            InputError: there is no such type, or its name is not an element.
        """
        table = np.zeros(len(self.elements) + 1, dtype=np.int64)
        for t in np.unique(types[types != -1]):
            if not 0 <= t < len(self.elements) or t != int(t):
                raise InputError(
                    f"{self.store.name}: has the type {t:g}, but names {len(self.elements)} types"
                )
            name = self.elements[int(t)]
            table[int(t)] = 1 if name in ISOTOPES else ATOMIC_NUMBERS.get(name, 0)
            if not table[int(t)]:
                raise InputError(f"{self.store.name}: unknown element {name!r} of type {t:g}")
        numbers: np.ndarray = table[types.astype(np.int64)]  # the last entry is that of -1
        return numbers


def _types(store: Store) -> np.ndarray:
    words = store.words(TYPES)
    try:
        types = np.array([int(word) for word in words], dtype=np.int64)
    except (ValueError, OverflowError):
        raise InputError(f"{store.name}/{TYPES}: has entries that are not whole numbers") from None
    if not len(types) or types.min() < 0:
        raise InputError(f"{store.name}/{TYPES}: is empty, or has negative types")
    return types


def _elements(store: Store, type_map: Sequence[str] | None) -> tuple[str, ...]:
    if store.has("type_map.raw"):
        return tuple(store.words("type_map.raw"))
    if type_map is None:
        raise InputError(
            f"{store.name}: has no type_map.raw, which names the elements of the types 0, 1, ...; "
            "write one, such as 'O H'"
        )
    return tuple(type_map)


class _Set:
    """One folder ``set.*``: the arrays of its frames.

    Args:
        system: what it shares with others. name: of the folder.

    Raises:
        InputError: an array is absent, or its shape does not fit the others.
    """

    def __init__(self, system: _System, name: str) -> None:
        self._system, self._name = system, name
        n = len(system.types)
        self._count = self._frame_count(3 * n)
        self._widths: dict[str, int] = {}
        self._arrays: dict[str, Any] = {}
        known: dict[str, int | None] = {"coord": 3 * n, "energy": 1, "force": 3 * n, "virial": 9}
        known |= {"atom_ener": n, "real_atom_types": n, "fparam": None, "aparam": None}
        known |= {"box": 9} if system.periodic else {}
        for key, width in known.items():
            if system.store.has(f"{name}/{key}.npy"):
                self._add(key, width)
        if system.periodic and "box" not in self._arrays:
            raise InputError(f"{self._where('box')}: is absent, and so is the file nopbc")

    def _where(self, key: str) -> str:
        return f"{self._system.store.name}/{self._name}/{key}.npy"

    def _frame_count(self, width: int) -> int:
        """The number of frames, which the coordinates tell."""
        if not self._system.store.has(f"{self._name}/coord.npy"):
            raise InputError(f"{self._where('coord')}: is absent")
        shape = self._array("coord").shape
        if shape == (width,):
            return 1
        if len(shape) < 2 or int(np.prod(shape[1:])) != width:
            raise InputError(
                f"{self._where('coord')}: has the shape {shape}, but {width // 3} atoms need "
                f"(frames, {width})"
            )
        return int(shape[0])

    def _array(self, key: str) -> Any:
        array = self._system.store.array(f"{self._name}/{key}.npy")
        if array.dtype.kind not in "fiu":
            raise InputError(f"{self._where(key)}: is not an array of numbers ({array.dtype})")
        return array

    def _add(self, key: str, width: int | None) -> None:
        """Take an array with a row of ``width`` numbers, or of any number, for each frame."""
        array, count, n = self._array(key), self._count, len(self._system.types)
        size = int(np.prod(array.shape))
        if width is None:
            width = size // max(count, 1)
        of_atoms = key == "aparam"
        fits = array.shape[:1] == (count,) or count == 1
        if size != count * width or not fits or (of_atoms and width % n):
            raise InputError(
                f"{self._where(key)}: has the shape {array.shape}, but coord.npy has {count} "
                f"frames of {n} atoms"
            )
        if width:
            self._arrays[key], self._widths[key] = array, width

    def frames(self) -> Iterator[Frame | Rejected]:
        """All frames of the set."""
        for start in range(0, self._count, _CHUNK):
            stop = min(start + _CHUNK, self._count)
            rows = {key: self._rows(key, start, stop) for key in self._arrays}
            types = rows.pop("real_atom_types", np.tile(self._system.types, (stop - start, 1)))
            rows["numbers"] = self._system.numbers(types)
            for k in range(stop - start):
                origin = f"{self._system.store.name}/{self._name}, frame {start + k}"
                try:
                    yield self._frame({key: row[k] for key, row in rows.items()}, origin)
                except InputError as error:
                    yield Rejected(origin, str(error))

    def _rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """``(stop - start, width)`` float64."""
        array = self._arrays[key]
        part = array[()] if self._count == 1 else array[start:stop]
        rows: np.ndarray = np.asarray(part, dtype=np.float64)
        return rows.reshape(stop - start, self._widths[key])

    def _frame(self, rows: dict[str, np.ndarray], origin: str) -> Frame:
        """A frame from its row of every array.

        Raises:
            InputError: its virial is not symmetric.
        """
        present = rows["numbers"] > 0
        numbers = rows["numbers"][present]
        of_atoms = {
            key: rows[key].reshape(len(present), -1)[present]
            for key in ("coord", "force", "atom_ener", "aparam")
            if key in rows
        }
        periodic, virial = "box" in rows, None
        if "virial" in rows:
            virial = symmetric(rows["virial"].reshape(3, 3), len(numbers), "its virial")
        return Frame(
            system=System(
                numbers=numbers,
                positions=of_atoms["coord"],
                cell=rows["box"].reshape(3, 3) if periodic else np.zeros((3, 3)),
                pbc=np.full(3, periodic),
                fparam=rows.get("fparam"),
                aparam=of_atoms.get("aparam"),
            ),
            energy=float(rows["energy"][0]) if "energy" in rows else None,
            forces=of_atoms.get("force"),
            virial=virial,
            atomic_energies=of_atoms["atom_ener"][:, 0] if "atom_ener" in rows else None,
            weight=1.0,
            origin=origin,
        )
