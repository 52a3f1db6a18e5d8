"""Conduction of heat by phonons, from second- and third-order force constants (phono3py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError

if TYPE_CHECKING:
    from phono3py import Phono3py

RTA, WIGNER, LBTE = "rta", "wigner", "lbte"
# phono3py's names of the transport equations.
_METHODS = {RTA: "std-rta", WIGNER: "SMM19-rta", LBTE: "std-lbte"}
# Share of the free memory that a collision matrix may take.
MEMORY_SHARE = 0.6
# Frequencies at which spectra are given.
SPECTRUM_POINTS = 201

Report = Callable[[int, int], None]
Mesh = float | tuple[int, int, int]


@dataclass(frozen=True)
class Scattering:
    """What scatters phonons, and how they carry heat.

    Attributes:
        temperatures: K.
        transport: relaxation times (``"rta"``), these with coherences (``"wigner"``), or the direct
            solution of the linearised Boltzmann equation (``"lbte"``).
        isotopes: whether natural isotopes scatter.
        boundary: mean free path between boundaries, µm; None without.
        averaged: whether degenerate modes, and equivalent wave vectors, scatter alike; otherwise,
            as by phono3py's default, the conductivity depends on the eigenvectors that they happen
            to have, by percents on coarse meshes, in half the time.
    """

    temperatures: tuple[float, ...]
    transport: str = RTA
    isotopes: bool = True
    boundary: float | None = None
    averaged: bool = True

    def nearest(self, temperature: float) -> int:
        """Index of the temperature next to this one, K."""
        return int(np.abs(np.array(self.temperatures) - temperature).argmin())


@dataclass(frozen=True)
class Transport:
    """Thermal conductivity on a mesh of wave vectors.

    Attributes:
        scattering: what was asked for.
        mesh: ``(3,)``, points along the reciprocal vectors, or of a generalised grid.
        tensors: ``(n_temperatures, 3, 3)``, W/m/K.
        coherences: ``(n_temperatures, 3, 3)``, the part of pairs of bands, W/m/K; None without.
        relaxation: ``(n_temperatures, 3, 3)``, in the approximation of relaxation times, W/m/K.
        pure: like ``tensors``, without isotopes; None if that was not computed.
        q_points: ``(n, 3)``, irreducible ones. weights: ``(n,)``, how many each stands for.
        frequencies: ``(n, bands)``, THz. velocities: ``(n, bands, 3)``, THz Å.
        linewidths: ``(n_temperatures, n, bands)``, half widths by all scattering, THz.
        modes: ``(n_temperatures, n, bands)``, W/m/K: what each mode adds to the mean of the
            diagonal, its weight included; a coherence is shared by the heat capacities of its pair.
            The modes of the direct solution are in proportion to those of relaxation times.
        calculator: phono3py's object.
    """

    scattering: Scattering
    mesh: np.ndarray
    tensors: np.ndarray
    coherences: np.ndarray | None
    relaxation: np.ndarray
    pure: np.ndarray | None
    q_points: np.ndarray
    weights: np.ndarray
    frequencies: np.ndarray
    velocities: np.ndarray
    linewidths: np.ndarray
    modes: np.ndarray
    calculator: Any

    @classmethod
    def of(
        cls,
        ph3: Phono3py,
        mesh: Mesh,
        scattering: Scattering,
        report: Report | None = None,
        pure: bool = False,
    ) -> Transport:
        """Compute it.

        Args:
            ph3: has force constants of second and third order.
            mesh: a length, Å, to which the number of points is in proportion, or the points.
            scattering: what is asked for.
            report: called with the number of wave vectors that are done, and of all.
            pure: whether to tell how isotopes matter; cheap except for the direct solution.

        Raises:
            InputError: the direct solution needs more memory than there is.
        """
        ph3.mesh_numbers = mesh
        ph3.init_phph_interaction(
            exclude_gamma_acoustic=True,
            average_degenerate_weights=scattering.averaged,
            symmetrize_tetrahedra=scattering.averaged,
        )
        if scattering.transport == LBTE:
            _check_memory(ph3, len(scattering.temperatures))
        found = _calculator(ph3, scattering, scattering.isotopes)
        total = len(found.grid_points)

        def tell(index: int) -> None:
            if report is not None:
                report(index + 1, total)

        found.run(on_grid_point=tell)
        clean = None
        if pure and scattering.isotopes and scattering.transport != LBTE:
            other = _calculator(ph3, scattering, False)
            other.gamma = found.gamma  # so that phonons are not scattered again
            other.run()
            clean = matrices(other.kappa[0])
        return _transport(found, scattering, clean)

    @property
    def conductivities(self) -> np.ndarray:
        """Mean of the diagonal at each temperature, W/m/K."""
        return np.asarray(np.trace(self.tensors, axis1=1, axis2=2) / 3)

    @property
    def mean_free_paths(self) -> np.ndarray:
        """Of every mode at each temperature ``(n_temperatures, n, bands)``, nm."""
        speeds = np.linalg.norm(self.velocities, axis=2)
        return speeds * self.lifetimes / 10

    @property
    def lifetimes(self) -> np.ndarray:
        """Of every mode at each temperature ``(n_temperatures, n, bands)``, ps; 0 where none is."""
        widths = 4 * np.pi * self.linewidths
        return np.divide(1.0, widths, out=np.zeros_like(widths), where=widths > 0)

    def mean_lifetimes(self) -> np.ndarray:
        """Lifetimes weighted by what modes conduct, at each temperature, ps."""
        return np.asarray(
            (self.lifetimes * self.modes).sum(axis=(1, 2)) / self.modes.sum(axis=(1, 2))
        )

    def cumulative(self, temperature: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean free paths in ascending order, nm, and what modes up to each of them conduct, W/m/K.

        Args:
            temperature: index of one.
        """
        paths, modes = self.mean_free_paths[temperature].ravel(), self.modes[temperature].ravel()
        order = np.argsort(paths)
        return paths[order], np.cumsum(modes[order])

    def spectrum(self, temperature: int) -> tuple[np.ndarray, np.ndarray]:
        """Frequencies, THz, and what modes at each of them conduct, W/m/K/THz.

        Every mode is a Gaussian as wide as three of the intervals between the frequencies.

        Args:
            temperature: index of one.
        """
        frequencies = np.linspace(0, 1.05 * self.frequencies.max(), SPECTRUM_POINTS)
        width = 1.5 * frequencies[1]
        values, modes = self.frequencies.ravel(), self.modes[temperature].ravel()
        shapes = np.exp(-0.5 * ((frequencies[:, None] - values) / width) ** 2)
        return frequencies, shapes @ modes / (width * np.sqrt(2 * np.pi))


def matrices(voigt: np.ndarray) -> np.ndarray:
    """Tensors ``(n, 3, 3)`` from phono3py's order ``(n, 6)``: xx, yy, zz, yz, xz, xy."""
    return np.asarray(voigt)[:, [[0, 5, 4], [5, 1, 3], [4, 3, 2]]]


def irreducible(ph3: Phono3py, mesh: Mesh) -> int:
    """Number of wave vectors whose scattering is computed on a mesh."""
    from phonopy.phonon.grid import get_ir_grid_points

    ph3.mesh_numbers = mesh
    return len(get_ir_grid_points(ph3.grid)[0])


def _calculator(ph3: Phono3py, scattering: Scattering, isotopes: bool) -> Any:
    import phono3py.conductivity.smm19  # noqa: F401 (registers Wigner's equation)
    from phono3py.conductivity.factory import conductivity_calculator

    return conductivity_calculator(
        ph3.phph_interaction,
        np.array(scattering.temperatures),
        [None],
        method=_METHODS[scattering.transport],
        is_isotope=isotopes,
        boundary_mfp=scattering.boundary,
    )


def _transport(found: Any, scattering: Scattering, pure: np.ndarray | None) -> Transport:
    """Everything that is of interest in phono3py's object."""
    points = int(np.prod(found.mesh_numbers))
    total = found.kappa[0]
    relaxation, coherences = total, None
    if scattering.transport == WIGNER:
        pairs = found.mode_kappa_matrix[0][..., :3].mean(axis=-1)
        modes = shared(pairs, found.mode_heat_capacities)
        relaxation = found.kappa_intra[0]
        coherences = matrices(total - relaxation)
    elif scattering.transport == LBTE:
        relaxation = found.kappa_RTA[0]
        modes = found.mode_kappa_RTA[0][..., :3].mean(axis=-1)
        scale = total[:, :3].sum(axis=1) / relaxation[:, :3].sum(axis=1)
        modes = modes * scale[:, None, None]
    else:
        modes = found.mode_kappa[0][..., :3].mean(axis=-1)
    return Transport(
        scattering,
        np.array(found.mesh_numbers),
        matrices(total),
        coherences,
        matrices(relaxation),
        pure,
        np.array(found.qpoints),
        np.array(found.grid_weights),
        np.array(found.frequencies),
        np.array(found.group_velocities),
        _linewidths(found, scattering),
        modes / points,
        found,
    )


def shared(pairs: np.ndarray, capacities: np.ndarray) -> np.ndarray:
    """What modes conduct, where pairs of them conduct too.

    A pair's part is shared in proportion to the heat capacities of its modes (Póta et al.,
    arXiv:2408.00755).

    Args:
        pairs: ``(..., bands, bands)``. capacities: ``(..., bands)``.

    Returns:
        ``(..., bands)``, with the same sum over bands as ``pairs`` over both.
    """
    both = capacities[..., :, None] + capacities[..., None, :]
    share = np.divide(capacities[..., :, None], both, out=np.zeros_like(both), where=both > 0)
    return np.asarray(2 * (pairs * share).sum(axis=-1))


def _linewidths(found: Any, scattering: Scattering) -> np.ndarray:
    """Half widths by all scattering ``(n_temperatures, n, bands)``, THz."""
    widths = np.array(found.gamma[0])
    if found.gamma_isotope is not None:
        widths += found.gamma_isotope[0]
    if scattering.boundary is not None:
        speeds = np.linalg.norm(found.group_velocities, axis=2)
        widths += speeds / (4 * np.pi * scattering.boundary * 1e4)
    return widths


def _check_memory(ph3: Phono3py, temperatures: int) -> None:
    """Raise InputError unless the collision matrices fit, with two copies for the solver."""
    import torch
    from phonopy.phonon.grid import get_ir_grid_points

    from dpa3sim.potential.memory import free_bytes

    size = 9 * len(ph3.primitive) * len(get_ir_grid_points(ph3.grid)[0])
    needed = 8 * (temperatures + 2) * size**2
    free = free_bytes(torch.device("cpu"))
    if needed > MEMORY_SHARE * free:
        raise InputError(
            f"the direct solution (transport = lbte) needs {needed / 2**30:.1f} GiB for a "
            f"collision matrix of {size} rows, and {free / 2**30:.1f} GiB are free; use a coarser "
            "mesh, fewer temperatures, or transport = rta"
        )
