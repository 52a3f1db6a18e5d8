"""What is in training data, for people to check before they train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dpa3sim.common.units import GPA
from dpa3sim.train.data.checks import closest_pair
from dpa3sim.train.data.frames import Frames, Rejected
from dpa3sim.train.data.statistics import composition_fit, counts, elements, energy_residuals

# So many of the frames with the strangest energies are named, and so many bad frames.
WORST, MOST_NAMED = 5, 20
# From 0 to 3 periodic directions.
PERIODICITY = ("molecule", "chain", "slab", "crystal")
# The names of histograms.
SIZE, PRESSURE, FORCE = "atoms of a frame", "pressure (GPa)", "force on an atom (eV/Å)"
ENERGY = "energy minus the fit to the compositions (eV/atom)"


@dataclass(frozen=True)
class Range:
    """The smallest, the median and the largest of many values, in the unit of its owner."""

    minimum: float
    median: float
    maximum: float

    @classmethod
    def of(cls, values: np.ndarray) -> Range | None:
        """That of all values that are numbers, None if there are none."""
        known = values[~np.isnan(values)]
        if not known.size:
            return None
        return cls(float(known.min()), float(np.median(known)), float(known.max()))

    def __str__(self) -> str:
        return f"{self.minimum:.4g} to {self.maximum:.4g}, median {self.median:.4g}"


@dataclass(frozen=True)
class Element:
    """An element in the data.

    Attributes:
        symbol: its name. frames, atoms: how many have it, and how many there are of it.
        energy_eV: from the fit of energies to compositions; None without energies of its frames.
    """

    symbol: str
    frames: int
    atoms: int
    energy_eV: float | None


@dataclass(frozen=True)
class Named:
    """A frame with a value that is worth knowing, in the unit of its owner."""

    origin: str
    value: float


@dataclass(frozen=True)
class DataInfo:
    """What is in training data.

    Attributes:
        n_frames, n_atoms: how many there are.
        sizes: atoms of a frame.
        periodicity: frames that are molecules, chains, slabs and crystals.
        labels: frames that have each label or extra input.
        elements: by atomic number.
        independent: how many energies of elements the compositions determine.
        residual: of the energy from a fit to the compositions, eV/atom, relative to its median;
            None if there are few energies.
        sigma: its robust standard deviation, eV/atom.
        outliers: the frames with the largest residuals, eV/atom.
        force: length of the force on an atom, eV/Å.
        pressure: from the virial of crystals, GPa.
        shortest: the shortest distance, Å.
        rejected: the bad frames that were left out.
    """

    n_frames: int
    n_atoms: int
    sizes: Range | None
    periodicity: dict[str, int]
    labels: dict[str, int]
    elements: tuple[Element, ...]
    independent: int
    residual: Range | None
    sigma: float | None
    outliers: tuple[Named, ...]
    force: Range | None
    pressure: Range | None
    shortest: Named | None
    rejected: tuple[Rejected, ...]

    @property
    def underdetermined(self) -> bool:
        """Whether the compositions do not determine the energies of the elements."""
        return self.independent < sum(e.energy_eV is not None for e in self.elements)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; the unit is in the key."""
        return {
            "n_frames": self.n_frames,
            "n_atoms": self.n_atoms,
            "n_atoms_per_frame": _plain(self.sizes),
            "periodicity": self.periodicity,
            "labels": self.labels,
            "elements": [asdict(element) for element in self.elements],
            "independent_element_energies": self.independent,
            "underdetermined": self.underdetermined,
            "energy_residual_eV_per_atom": _plain(self.residual),
            "energy_residual_sigma_eV_per_atom": self.sigma,
            "largest_energy_residuals": [
                {"origin": x.origin, "residual_eV_per_atom": x.value} for x in self.outliers
            ],
            "force_eV_per_A": _plain(self.force),
            "pressure_GPa": _plain(self.pressure),
            "shortest_distance": self.shortest
            and {"origin": self.shortest.origin, "distance_A": self.shortest.value},
            "rejected": [asdict(frame) for frame in self.rejected],
        }

    def lines(self) -> list[str]:
        """The same in words."""
        kinds = ", ".join(f"{n} {_plural(kind, n)}" for kind, n in self.periodicity.items() if n)
        labels = ", ".join(f"{name} in {n}" for name, n in self.labels.items() if n)
        lines = [
            f"{self.n_frames} {_plural('frame', self.n_frames)}, {self.n_atoms} "
            f"{_plural('atom', self.n_atoms)}: {kinds}",
            f"atoms of a frame: {self.sizes}",
            f"labels: {labels}",
            f"  {'element':<10}{'frames':>10}{'atoms':>12}{'energy (eV)':>16}",
        ]
        for e in self.elements:
            energy = "-" if e.energy_eV is None else f"{e.energy_eV:.4f}"
            lines.append(f"  {e.symbol:<10}{e.frames:>10}{e.atoms:>12}{energy:>16}")
        if self.underdetermined:
            lines.append(
                "  the energies of the elements are underdetermined: the compositions determine "
                f"only {self.independent} of them, and these are the smallest that fit"
            )
        lines += self._ranges()
        if self.rejected:
            lines.append(
                f"{len(self.rejected)} bad {_plural('frame', len(self.rejected))} left out:"
            )
            lines += [f"  {frame}" for frame in self.rejected[:MOST_NAMED]]
            more = len(self.rejected) - MOST_NAMED
            lines += [f"  ... and {more} more"] if more > 0 else []
        return lines

    def _ranges(self) -> list[str]:
        lines = []
        if self.residual is not None and self.sigma is not None:
            lines.append(
                f"energy minus the fit to the compositions: {self.residual} eV/atom; robust sigma "
                f"{self.sigma:.3g}"
            )
            lines.append("frames furthest from the fit:")
            lines += [
                f"  {x.value:+.4g} eV/atom ({abs(x.value) / self.sigma:.1f} sigma)  {x.origin}"
                for x in self.outliers
            ]
        if self.force is not None:
            lines.append(f"force on an atom: {self.force} eV/Å")
        if self.pressure is not None:
            lines.append(f"pressure: {self.pressure} GPa")
        if self.shortest is not None:
            lines.append(
                f"shortest distance: {self.shortest.value:.3f} Å in {self.shortest.origin}"
            )
        return lines


def _plain(value: Range | None) -> dict[str, float] | None:
    return None if value is None else asdict(value)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"


def inspect_frames(frames: Frames, rejected: Sequence[Rejected] = ()) -> DataInfo:
    """Describe training data.

    Args:
        frames: the good frames. rejected: the bad ones, which are only listed.
    """
    energies, independent = _element_energies(frames)
    residuals = energy_residuals(frames)
    worst: tuple[Named, ...] = ()
    if residuals is not None:
        order = np.argsort(-np.abs(residuals.values), kind="stable")  # NaN comes last
        worst = tuple(Named(frames.origin(k), float(residuals.values[k])) for k in order[:WORST])
    values = histograms(frames)
    axes = np.bincount(frames.pbc.sum(axis=1), minlength=len(PERIODICITY)).tolist()
    return DataInfo(
        n_frames=len(frames),
        n_atoms=int(frames.starts[-1]),
        sizes=Range.of(frames.sizes.astype(np.float64)),
        periodicity=dict(zip(PERIODICITY, axes, strict=True)),
        labels=_labels(frames),
        elements=energies,
        independent=independent,
        residual=None if residuals is None else Range.of(residuals.values),
        sigma=None if residuals is None else residuals.sigma,
        outliers=worst,
        force=Range.of(values[FORCE]) if FORCE in values else None,
        pressure=Range.of(values[PRESSURE]) if PRESSURE in values else None,
        shortest=_shortest(frames),
        rejected=tuple(rejected),
    )


def _labels(frames: Frames) -> dict[str, int]:
    """How many frames have each label or extra input."""
    found = {
        "energy": frames.has_energy,
        "forces": frames.has_forces,
        "virial": frames.has_virial,
    }
    first = frames.starts[:-1]
    of_frames = {"fparam": frames.fparam, "charge_spin": frames.charge_spin}
    for name, array in (("atomic_energies", frames.atomic_energies), ("aparam", frames.aparam)):
        of_frames[name] = None if array is None else array[first]
    for name, rows in of_frames.items():
        if rows is not None:
            found[name] = ~np.isnan(rows.reshape(len(frames), -1)[:, 0])
    return {name: int(has.sum()) for name, has in found.items()}


def _element_energies(frames: Frames) -> tuple[tuple[Element, ...], int]:
    """The elements with their energies, and how many of these the compositions determine."""
    symbols = elements(frames)
    composition = counts(frames, symbols)
    known = composition[frames.has_energy]
    energies = composition_fit(known, frames.energies[frames.has_energy])
    # Whole numbers: their products are exact.
    independent = int(np.linalg.matrix_rank(known.T @ known, hermitian=True))
    return tuple(
        Element(
            symbol=symbol,
            frames=int((composition[:, k] > 0).sum()),
            atoms=int(composition[:, k].sum()),
            energy_eV=float(energies[k]) if known[:, k].any() else None,
        )
        for k, symbol in enumerate(symbols)
    ), independent


def _shortest(frames: Frames) -> Named | None:
    """The shortest distance of all, Å, and its frame."""
    found = None
    for k, frame in enumerate(frames):
        pair = closest_pair(frame.system)
        if pair is not None and (found is None or pair[2] < found[1]):
            found = k, pair[2]
    return None if found is None else Named(frames.origin(found[0]), found[1])


def histograms(frames: Frames) -> dict[str, np.ndarray]:
    """Values whose distribution tells most, by their name with the unit, each ``(n_values,)``."""
    found = {SIZE: frames.sizes.astype(np.float64)}
    residuals = energy_residuals(frames)
    if residuals is not None:
        found[ENERGY] = residuals.values
    found[FORCE] = np.linalg.norm(frames.forces, axis=1)
    crystals = frames.has_virial & frames.pbc.all(axis=1)
    volumes = np.abs(np.linalg.det(frames.cells[crystals]))
    found[PRESSURE] = np.trace(frames.virials[crystals], axis1=1, axis2=2) / volumes / 3 / GPA
    known = {name: values[~np.isnan(values)] for name, values in found.items()}
    return {name: values for name, values in known.items() if len(values)}
