"""What makes a frame bad: elements, geometry, labels that are no numbers, a strange energy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpa3sim.common.elements import ATOMIC_NUMBERS, SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.graph.candidates import candidates
from dpa3sim.graph.edges import MIN_DISTANCE, edge_vectors
from dpa3sim.structures.geometry import check_geometry
from dpa3sim.structures.system import System
from dpa3sim.train.data.frames import Frame, Frames, Rejected
from dpa3sim.train.data.settings import DataSettings
from dpa3sim.train.data.statistics import energy_residuals

# A cell with volume v for each atom has two atoms within 2^(1/6) v^(1/3), as in close packing; a
# search does not go further than this, Å.
CLOSE_PACKED, LONGEST_SEARCH = 1.125, 4.0


class FrameCheck:
    """Tells what is wrong with single frames.

    Args:
        type_map: the elements that are known; None for all.
    """

    def __init__(self, type_map: Sequence[str] | None) -> None:
        self._names = tuple(type_map or SYMBOLS)
        self._known = np.zeros(len(SYMBOLS) + 1, dtype=bool)
        self._known[[ATOMIC_NUMBERS[name] for name in self._names if name in ATOMIC_NUMBERS]] = True

    def __call__(self, frame: Frame) -> None:
        """Raise InputError for a frame that cannot be trained on."""
        system = frame.system
        check_geometry(system.positions, system.cell, system.pbc)
        self._check_elements(system.numbers)
        self._check_labels(frame)
        pair = closest_pair(system)
        if pair is not None and pair[2] < MIN_DISTANCE:
            raise InputError(
                f"atoms {pair[0]} and {pair[1]} overlap: their distance is {pair[2]:.3g} Å"
            )

    def _check_elements(self, numbers: np.ndarray) -> None:
        outside = numbers[(numbers < 1) | (numbers > len(SYMBOLS))]
        if len(outside):
            raise InputError(f"there is no element with the atomic number {outside[0]}")
        unknown = np.flatnonzero(~self._known[numbers])
        if len(unknown):
            symbol = SYMBOLS[int(numbers[unknown[0]]) - 1]
            names = self._names
            known = f"{names[0]} ... {names[-1]}" if len(names) > 20 else ", ".join(names)
            raise InputError(
                f"unknown element {symbol!r} (atom {unknown[0]}); the model knows {known}"
            )

    @staticmethod
    def _check_labels(frame: Frame) -> None:
        labels = {
            "energy": frame.energy,
            "forces": frame.forces,
            "virial": frame.virial,
            "atomic energies": frame.atomic_energies,
        }
        if all(label is None for label in labels.values()):
            raise InputError("it has no energy, forces or virial")
        labels |= {name: getattr(frame.system, name) for name in ("fparam", "aparam")}
        labels["charge_spin"] = frame.system.charge_spin
        for name, label in labels.items():
            if label is not None and not np.isfinite(label).all():
                raise InputError(f"its {name} {_verb(name)} NaN or infinite")


def _verb(name: str) -> str:
    return "are" if name in ("forces", "atomic energies") else "is"


def closest_pair(system: System) -> tuple[int, int, float] | None:
    """The closest atoms, images included, and their distance in Å.

    None if no atoms are close. In a crystal there are always some, unless its atoms are more than
    ``LONGEST_SEARCH`` apart.

    Raises:
        InputError: the neighbour search cannot divide the structure.
    """
    reach = LONGEST_SEARCH
    if system.pbc.all():
        volume = abs(float(np.linalg.det(system.cell)))
        reach = min(reach, CLOSE_PACKED * float(np.cbrt(volume / len(system))))
    i, j, shifts = candidates(system.positions, system.cell, system.pbc, reach)
    if not len(i):
        return None
    lengths = np.linalg.norm(edge_vectors(system.positions, system.cell, i, j, shifts), axis=1)
    k = int(lengths.argmin())
    first, second = sorted((int(i[k]), int(j[k])))
    return first, second, float(lengths[k])


def outliers(frames: Frames, settings: DataSettings) -> dict[int, Rejected]:
    """Frames whose energy does not fit their composition, by their index."""
    found = energy_residuals(frames)
    if found is None or settings.outlier_sigma == 0:
        return {}
    far = np.abs(found.values) > settings.outlier_sigma * found.sigma
    return {
        k: Rejected(
            frames.origin(k),
            f"its energy differs by {found.values[k]:+.3g} eV/atom from a fit to the compositions, "
            f"{abs(found.values[k]) / found.sigma:.3g} robust sigma ({found.sigma:.2g} eV/atom); "
            "--outlier-sigma sets the limit",
        )
        for k in np.flatnonzero(far).tolist()
    }
