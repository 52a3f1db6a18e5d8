"""Imaginary modes: whether a crystal is stable, and what an unstable one relaxes to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import UnphysicalError

from ..base import Event, Progress
from ..crystals.cells import Cells, check_crystal, spacegroup, symmetry
from ..crystals.prepare import PropertySettings, relax_settings, relax_together
from .hessians import nondiagonal, period_of

if TYPE_CHECKING:
    from ase import Atoms
    from phonopy import Phonopy

    from dpa3sim.potential.interface import BatchPotential

    from .force_constants import Harmonic

# Imaginary frequencies beyond this (THz) matter (docs/methods.md#imaginary-modes).
SIGNIFICANT = 0.1
STABLE, UNSTABLE, UNDECIDED = "stable", "unstable", "undecided"
# Displacements along a mode that are tried, Å, and how many of the lowest starts are relaxed.
AMPLITUDES = (0.05, 0.1, 0.2, 0.4)
STARTS = 4
# Modes this close (THz) are degenerate.
DEGENERATE = 0.01


@dataclass(frozen=True)
class Verdict:
    """Whether a crystal is dynamically stable.

    Attributes:
        state: ``"stable"``, ``"unstable"`` or ``"undecided"``.
        reason: why.
        lowest: lowest frequency besides the acoustic ones at Γ, imaginary ones negative, THz.
        q: where, in reciprocal vectors of the primitive cell.
        commensurate: lowest frequency at wave vectors that fit the supercell, which are exact,
            THz; None if there are only acoustic modes at Γ.
        q_commensurate: where.
        noise: frequency below which rounding and anharmonicity hide the true one, THz.
    """

    state: str
    reason: str
    lowest: float
    q: np.ndarray
    commensurate: float | None
    q_commensurate: np.ndarray | None
    noise: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready keys."""
        exact = self.q_commensurate
        return {
            "verdict": self.state,
            "verdict_reason": self.reason,
            "lowest_frequency_THz": self.lowest,
            "lowest_frequency_q_primitive": self.q.tolist(),
            "lowest_commensurate_frequency_THz": self.commensurate,
            "lowest_commensurate_q_primitive": None if exact is None else exact.tolist(),
            "noise_floor_THz": self.noise,
        }


def judge(crystal: Harmonic) -> Verdict:
    """The verdict from wave vectors that fit the supercell, and from interpolated ones.

    The latter are those of the bands and the mesh that the phonopy object of the crystal has.
    Squared frequencies are uncertain by the largest change that symmetrizing the force constants
    made to any of them (Weyl's inequality).
    """
    bands = crystal.phonon.band_structure
    mesh: Any = crystal.phonon.mesh
    others: list[Any] = []
    if bands is not None:
        others += zip(bands.qpoints, bands.frequencies, strict=True)
    if mesh is not None:
        others.append((mesh.qpoints, mesh.frequencies))
    noise = float(np.sqrt(crystal.residuals.eigenvalue))
    exact = _lowest(*crystal.commensurate())
    places = [place for place in (exact, *(_lowest(*o) for o in others)) if place is not None]
    lowest, q = min(places, key=lambda place: place[0])
    limit = max(SIGNIFICANT, noise)
    if exact is not None and exact[0] < -limit:
        state, reason = UNSTABLE, f"a mode of {_q(exact[1])} has {_imaginary(exact[0])}"
    elif lowest < -limit:
        state = UNDECIDED
        reason = (
            f"{_imaginary(lowest)} at {_q(q)}, interpolated between wave vectors that fit the "
            "supercell; a larger supercell decides"
        )
    elif exact is not None and exact[0] <= noise:
        state = UNDECIDED
        reason = (
            f"the softest mode, {exact[0]:.3f} THz at {_q(exact[1])}, is within the noise of "
            f"{noise:.3f} THz"
        )
    else:
        state, reason = STABLE, f"no imaginary frequency beyond {limit:.2g} THz"
    commensurate, at = exact or (None, None)
    return Verdict(state, reason, lowest, q, commensurate, at, noise)


def warnings_of(verdict: Verdict, phonon: Phonopy) -> list[str]:
    """What a verdict other than stable means for the results, from the mesh of a phonopy object."""
    if verdict.state == STABLE:
        return []
    warnings = [f"dynamically {verdict.state}: {verdict.reason}"]
    mesh: Any = phonon.mesh
    share = np.average((np.asarray(mesh.frequencies) < 0).mean(axis=1), weights=mesh.weights)
    if share > 0:
        warnings.append(
            f"imaginary modes, {100 * share:.2g} % of all, are left out of thermal properties"
        )
    return warnings


def refuse_unstable(verdict: Verdict, what: str) -> None:
    """Raise UnphysicalError for an unstable crystal, from which nothing further can follow."""
    if verdict.state == UNSTABLE:
        raise UnphysicalError(
            f"{what} is dynamically unstable ({verdict.reason}); "
            "dpa3sim phonon --imaginary follow finds a lower one"
        )


@dataclass(frozen=True)
class Child:
    """What an unstable crystal relaxes to.

    Attributes:
        atoms: the relaxed structure.
        gain: how much lower its energy is, eV/atom; not positive if nothing lower was found.
        spacegroup: of the relaxed structure. q, frequency: of the mode that was followed.
        n_starts: number of displaced structures that were tried.
    """

    atoms: Atoms
    gain: float
    spacegroup: str | None
    q: np.ndarray
    frequency: float
    n_starts: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready keys."""
        return {
            "child_found": self.gain > 0,
            "child_energy_gain_per_atom_eV": self.gain,
            "child_spacegroup": self.spacegroup,
            "child_n_atoms": len(self.atoms),
            "child_formula": self.atoms.get_chemical_formula(),
            "child_mode_q_primitive": self.q.tolist(),
            "child_mode_frequency_THz": self.frequency,
            "child_n_starts": self.n_starts,
        }


def follow(
    crystal: Harmonic,
    verdict: Verdict,
    potential: BatchPotential,
    settings: PropertySettings,
    progress: Progress,
) -> Child:
    """Displace along the softest mode that fits the supercell, relax, and return the lowest.

    All amplitudes and combinations of degenerate modes are evaluated at once, and the lowest are
    relaxed together, atoms and cell.

    Raises:
        NotConvergedError: a relaxation did not converge.
    """
    assert verdict.q_commensurate is not None
    q = verdict.q_commensurate
    cell, _ = nondiagonal(crystal.atoms, q, period_of(q))
    starts = list(_displaced(crystal, q, cell))
    progress(Event("follow", f"{len(starts)} displaced cells of {len(cell)} atoms"))
    rest, *energies = (e.energy for e in potential.evaluate([cell, *starts]))
    order = np.argsort(energies, kind="stable")[:STARTS]
    loose = relax_settings(settings, "full", symmetric=False)
    results = relax_together([starts[i] for i in order], potential, loose, "follow", progress)
    best = min(results, key=lambda result: result.steps[-1].energy_eV)
    gain = (rest - best.steps[-1].energy_eV) / len(cell)
    atoms = best.atoms.copy()
    atoms.info.clear()
    if symmetry(atoms, settings.symprec) is not None:
        check_crystal(atoms, "phonons")
        atoms = Cells.of(atoms, settings.symprec).primitive.atoms
    group = spacegroup(atoms, settings.symprec)
    assert verdict.commensurate is not None
    return Child(atoms, gain, group, q, verdict.commensurate, len(starts))


def _displaced(crystal: Harmonic, q: np.ndarray, cell: Atoms) -> Iterator[Atoms]:
    """Cells displaced along the softest modes of q, with all amplitudes, signs and phases."""
    result = crystal.phonon.run_qpoints(q[None], with_eigenvectors=True)
    assert result.eigenvectors is not None
    frequencies, vectors = result.frequencies[0], result.eigenvectors[0]
    n, masses = len(crystal.atoms), crystal.phonon.primitive.masses
    soft = vectors[:, np.abs(frequencies - frequencies[0]) < DEGENERATE].T
    lattice = crystal.atoms.cell[:]
    phases = np.exp(2j * np.pi * (cell.positions @ np.linalg.inv(lattice)) @ q)
    real = np.abs(2 * q - np.rint(2 * q)).max() < 1e-6
    for direction in _directions(len(soft)):
        mode = (direction @ soft).reshape(n, 3) / np.sqrt(masses)[:, None]
        wave = np.tile(mode, (len(cell) // n, 1)) * phases[:, None]
        if real:  # its phase is the same everywhere, and is taken out
            wave = wave * np.exp(-0.5j * np.angle((wave**2).sum()))
        for turn in (0,) if real else (0, np.pi / 4, np.pi / 2):
            shape = np.real(wave * np.exp(1j * turn))
            shape /= np.linalg.norm(shape, axis=1).max()
            for amplitude in AMPLITUDES:
                for sign in (1, -1):
                    moved = cell.copy()
                    moved.positions += sign * amplitude * shape
                    yield moved


def _directions(degeneracy: int) -> list[np.ndarray]:
    """Each mode alone, each pair, and all together."""
    alone = list(np.eye(degeneracy))
    pairs = [a + b for i, a in enumerate(alone) for b in alone[:i]]
    return [*alone, *pairs, *([np.ones(degeneracy)] if degeneracy > 2 else [])]


def _lowest(points: np.ndarray, frequencies: np.ndarray) -> tuple[float, np.ndarray] | None:
    """The lowest frequency and its wave vector, acoustic modes at Γ aside."""
    frequencies = np.array(frequencies)
    points = np.asarray(points)
    gamma = np.abs(points - np.rint(points)).max(axis=1) < 1e-6
    for row in np.flatnonzero(gamma):
        frequencies[row, np.argsort(np.abs(frequencies[row]))[:3]] = np.inf
    row, band = np.unravel_index(frequencies.argmin(), frequencies.shape)
    if not np.isfinite(frequencies[row, band]):
        return None
    return float(frequencies[row, band]), points[row]


def _q(q: np.ndarray) -> str:
    return f"q = ({', '.join(f'{round(float(x), 4) + 0.0:g}' for x in q)})"


def _imaginary(frequency: float) -> str:
    return f"the imaginary frequency {-frequency:.3f}i THz"
