"""The labels of structures under the names that people and programs give them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.common.units import GPA
from dpa3sim.structures.system import System
from dpa3sim.train.data.frames import Frame
from dpa3sim.train.data.settings import DataSettings

if TYPE_CHECKING:
    from ase import Atoms

# The first name that a frame has counts: names that ASE leaves alone, then plain ones, then those
# of single programs. The energy comes before the free energy, since most files have only that one.
NAMES = {
    "energy": ("REF_energy", "energy", "total_energy", "dft_energy", "free_energy"),
    "forces": ("REF_forces", "forces", "force", "dft_forces", "dft_force"),
    "stress": ("REF_stress", "stress", "dft_stress"),
    "virial": ("REF_virials", "REF_virial", "virials", "virial", "dft_virial"),
}
WEIGHT = "config_weight"
# Differences that rounding of written numbers explains: of the largest component of a virial, and
# in eV/atom.
ROUNDING = 1e-3
# Stresses, eV/Å^3, that are rather in GPa or kbar: in one frame, and in half of the frames of a
# file. They are 320 GPa and 80 GPa.
LARGEST_STRESS, LARGE_STRESS = 2.0, 0.5
_VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])


class LabelReader:
    """Takes the labels of one file from its structures.

    Args:
        settings: the names of labels.
    """

    def __init__(self, settings: DataSettings) -> None:
        given = {name: getattr(settings, f"{name}_key") for name in NAMES}
        self._names = {name: (given[name],) if given[name] else NAMES[name] for name in NAMES}
        self._absent = {name for name in NAMES if given[name]}
        self._others: set[str] = set()
        self._stresses: list[float] = []

    def frame(self, atoms: Atoms, origin: str) -> Frame:
        """A structure with its labels, which may be in ``info``, ``arrays`` or a calculator.

        Raises:
            InputError: a label has a wrong shape, or does not fit the structure or another label.
        """
        results = {} if atoms.calc is None else atoms.calc.results
        fields = {**atoms.info, **atoms.arrays, **results}
        found = {}
        for what, names in self._names.items():
            name = next((name for name in names if fields.get(name) is not None), None)
            if name is not None:
                found[what] = (name, fields[name])
        self._absent -= found.keys()
        if self._absent or not found:
            self._others |= set(_like_labels(fields, len(atoms)))
        if not found:
            raise InputError("it has no energy, forces, stress or virial" + self._hint())
        n, system = len(atoms), _with_extra(System.from_atoms(atoms))
        energy = _numbers(*found["energy"], (1,)) if "energy" in found else None
        return Frame(
            system=system,
            energy=None if energy is None else float(energy[0]),
            forces=_numbers(*found["forces"], (n, 3)) if "forces" in found else None,
            virial=self._virial(system, found),
            atomic_energies=None,
            weight=_weight(fields.get(WEIGHT, 1.0)),
            origin=origin,
        )

    def _virial(self, system: System, found: dict[str, tuple[str, Any]]) -> np.ndarray | None:
        """``(3, 3)`` eV, from the virial, or else from the stress.

        Raises:
            InputError: it is not symmetric, is in other units, or the two contradict each other.
        """
        n = len(system)
        virial = from_stress = None
        if "virial" in found:
            virial = symmetric(_tensor(*found["virial"]), n, found["virial"][0])
        if "stress" in found:
            name, value = found["stress"]
            stress = _tensor(name, value)
            volume = abs(float(np.linalg.det(system.cell)))
            if not system.pbc.all() or volume == 0:
                raise InputError(f"it has a {name}, but is not periodic in three directions")
            largest = float(np.abs(stress).max())
            if np.isfinite(largest):
                self._stresses.append(largest)
            if largest > LARGEST_STRESS:
                raise InputError(_looks_like_pressure(f"{name} has a component of", largest))
            from_stress = symmetric(-volume * stress, n, name)
        if virial is None or from_stress is None:
            return from_stress if virial is None else virial
        difference = float(np.abs(virial - from_stress).max())
        if difference > _tolerance(virial, n):
            opposite = float(np.abs(virial + from_stress).max()) <= _tolerance(virial, n)
            raise InputError(
                f"{found['virial'][0]} and {found['stress'][0]} contradict each other: the virial "
                f"must be -stress * volume, but {'its sign is wrong' if opposite else 'differs'} "
                f"(by up to {difference:.3g} eV)"
            )
        return virial

    def finish(self, path: str) -> None:
        """Check what only the whole file shows.

        Raises:
            InputError: no frame has a name that the user gave, or stresses are in other units.
        """
        if self._absent:
            what = sorted(self._absent)[0]
            raise InputError(
                f"{path}: no frame has {self._names[what][0]!r} (--{what}-key)" + self._hint()
            )
        # Not the error of a single frame: the smaller stresses of the file are wrong as well.
        if self._stresses and (median := float(np.median(self._stresses))) > LARGE_STRESS:
            reason = _looks_like_pressure("half of the stresses have a component beyond", median)
            raise InputError(f"{path}: {reason}")

    def _hint(self) -> str:
        known = ", ".join(sorted(self._others)) or "none"
        return f"; names of possible labels are: {known} (--energy-key, --forces-key, ...)"


def symmetric(tensor: np.ndarray, n_atoms: int, name: str) -> np.ndarray:
    """A virial, ``(3, 3)`` eV, without the rounding error of its symmetry.

    Raises:
        InputError: it is not symmetric.
    """
    difference = float(np.abs(tensor - tensor.T).max())
    if difference > _tolerance(tensor, n_atoms):
        raise InputError(
            f"{name} is not symmetric: as a virial, its components differ by {difference:.3g} eV"
        )
    half: np.ndarray = (tensor + tensor.T) / 2
    return half


def _tolerance(virial: np.ndarray, n_atoms: int) -> float:
    return ROUNDING * (float(np.abs(virial).max()) + n_atoms)


def _looks_like_pressure(what: str, value: float) -> str:
    return (
        f"{what} {value:.3g} eV/Å^3, which is {value / GPA:.0f} GPa; it looks like GPa or kbar: "
        "convert it to eV/Å^3, or, if the pressure is so high, store the virial (eV)"
    )


def _tensor(name: str, value: Any) -> np.ndarray:
    """``(3, 3)`` from 9 numbers, or from 6 in the order xx, yy, zz, yz, xz, xy.

    Raises:
        InputError: there are other numbers of them.
    """
    numbers = _numbers(name, value, None)
    if numbers.size == 6:
        full: np.ndarray = numbers.reshape(6)[_VOIGT]
        return full
    if numbers.size != 9:
        raise InputError(f"{name} has {numbers.size} numbers instead of 9 or 6")
    return numbers.reshape(3, 3)


def _numbers(name: str, value: Any, shape: tuple[int, ...] | None) -> np.ndarray:
    """Numbers of a given shape, or of any.

    Raises:
        InputError: they are something else.
    """
    try:
        numbers = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} = {str(value)[:40]!r} is not numeric") from None
    if shape is None:
        return numbers
    if shape == (1,):
        numbers = np.atleast_1d(numbers)
    if numbers.shape != shape:
        raise InputError(f"{name} has the shape {numbers.shape} instead of {shape}")
    return numbers


def _weight(value: Any) -> float:
    weight = float(_numbers(WEIGHT, value, (1,))[0])
    if not 0 <= weight < np.inf:
        raise InputError(f"{WEIGHT} = {weight} must be a number, at least 0")
    return weight


def _with_extra(system: System) -> System:
    """The system with its extra inputs as arrays of the shapes of :class:`Frame`.

    Raises:
        InputError: they are not numeric, or there are too many or too few.
    """
    n = len(system)
    extra: dict[str, np.ndarray] = {}
    for name in ("fparam", "aparam", "charge_spin"):
        value = getattr(system, name)
        if value is not None:
            extra[name] = _numbers(name, value, None).reshape(-1)
    if "charge_spin" in extra and extra["charge_spin"].size != 2:
        raise InputError(f"charge_spin has {extra['charge_spin'].size} numbers instead of 2")
    if "aparam" in extra:
        if n == 0 or extra["aparam"].size % n:
            raise InputError(f"aparam has {extra['aparam'].size} numbers for {n} atoms")
        extra["aparam"] = extra["aparam"].reshape(n, -1)
    return replace(system, **extra)


def _like_labels(fields: dict[str, Any], n_atoms: int) -> Iterator[str]:
    """Names of all that could be a label: a number, a vector for every atom, or a tensor."""
    structural = {"positions", "numbers", "momenta", "velocities", WEIGHT}
    for name, value in fields.items():
        array = value if isinstance(value, np.ndarray) else np.asarray(value, dtype=object)
        is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if name not in structural and (
            is_number or array.shape in ((n_atoms, 3), (3, 3), (9,), (6,))
        ):
            yield name
