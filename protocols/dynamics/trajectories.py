"""Structure and motion from a trajectory that is read once, frame by frame.

Radial distribution functions, mean squared displacements with diffusion coefficients, velocity
autocorrelation functions and the vibrational density of states. Memory is bounded: it does not
grow with the number of frames.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.common.units import M2_PER_S
from dpa3sim.structures import isotopes

if TYPE_CHECKING:
    from ase import Atoms

# Radial distribution: range and bins (Å), and how many frames of a replica are enough.
RDF_RANGE, RDF_BIN, RDF_FRAMES = 8.0, 0.02, 200
# Displacements: number of origins in memory, and their size in bytes.
MSD_ORIGINS, MSD_BYTES = 200, 2**26
# A diffusion coefficient is fitted from this share of the longest time on; its error is that of
# the mean over so many parts of the trajectory.
FIT_FROM, DIFFUSION_PARTS = 0.2, 5
MIN_PART_FRAMES = 20
# Atoms diffuse if their mean squared displacement grows with about the first power of time (that of
# vibrations is 0, of free flight 2) and exceeds that of a vibration, Å^2.
DIFFUSIVE_POWERS, DIFFUSIVE_MSD = (0.8, 1.25), 1.0
# Velocities: longest correlation time, ps, and size of a segment in bytes.
VACF_TIME, VACF_BYTES = 2.5, 2**26
MIN_VACF_FRAMES = 16


@dataclass(frozen=True)
class Frame:
    """A frame of a trajectory.

    Attributes:
        positions: ``(n_atoms, 3)`` Å, never wrapped. velocities: ``(n_atoms, 3)`` Å/ps.
        cell: ``(3, 3)`` Å.
    """

    positions: np.ndarray
    velocities: np.ndarray
    cell: np.ndarray


@dataclass(frozen=True)
class Diffusion:
    """Self-diffusion of one element, from the slope of its mean squared displacement.

    Attributes:
        coefficient, error: m^2/s; error None if the trajectory is too short for parts.
        power: exponent of time with which the displacement grows in the fitted range; 1 is
            diffusion.
        longest: mean squared displacement after the longest time, Å^2.
    """

    coefficient: float
    error: float | None
    power: float
    longest: float

    @property
    def diffusive(self) -> bool:
        """Whether the displacement grows like that of a diffusing particle."""
        low, high = DIFFUSIVE_POWERS
        return low <= self.power <= high and self.longest >= DIFFUSIVE_MSD


@dataclass(frozen=True)
class Analysis:
    """Averages over a trajectory; each is empty if frames are too few or it is not defined.

    Attributes:
        n_frames: number of frames read, of all replicas.
        rdf_r: ``(n_bins,)`` Å; rdf: by pair of elements, ``(n_bins,)``.
        msd_time: ``(n_lags,)`` ps; msd: by element, Å^2.
        diffusion: by element.
        vacf_time: ``(n_lags,)`` ps; vacf: by element, normalised to one at time zero.
        frequency: ``(n_freq,)`` THz; vdos: by element and ``"total"``, per atom and THz; the total
            integrates to 3, as that of phonons does.
    """

    n_frames: int
    rdf_r: np.ndarray
    rdf: dict[str, np.ndarray]
    msd_time: np.ndarray
    msd: dict[str, np.ndarray]
    diffusion: dict[str, Diffusion]
    vacf_time: np.ndarray
    vacf: dict[str, np.ndarray]
    frequency: np.ndarray
    vdos: dict[str, np.ndarray]


class Analyser:
    """Reads the frames of one or several replicas.

    Args:
        atoms: the system: elements, masses, periodicity, initial cell.
        n_frames: of each replica.
        interval: time between frames, ps.
    """

    def __init__(self, atoms: Atoms, n_frames: int, interval: float) -> None:
        self._interval = interval
        # Isotopes of an element diffuse and vibrate differently.
        names = isotopes.names(list(atoms.symbols), atoms.get_masses())
        self._groups = {
            name: np.flatnonzero(np.array(names) == name) for name in dict.fromkeys(names)
        }
        self._n_frames, self._n_read = n_frames, 0
        crystal = bool(atoms.pbc.all())
        self._rdf = RadialDistribution(self._groups, atoms.pbc) if crystal else None
        self._rdf_stride = max(1, n_frames // RDF_FRAMES)
        self._displacements = Displacements(self._groups, atoms, n_frames, interval)
        part = n_frames // DIFFUSION_PARTS
        self._part = part if part >= MIN_PART_FRAMES else 0
        self._atoms = atoms
        self._parts: list[float] = []
        self._part_slopes: dict[str, list[float]] = {name: [] for name in self._groups}
        self._velocities = Velocities(self._groups, atoms.get_masses(), n_frames, interval)

    def read(self, frames: Iterable[Frame]) -> None:
        """Add the frames of a replica."""
        self._displacements.restart()
        self._velocities.restart()
        part: Displacements | None = None
        for index, frame in enumerate(frames):
            self._n_read += 1
            if self._rdf is not None and index % self._rdf_stride == 0:
                self._rdf.add(frame)
            self._displacements.add(frame)
            self._velocities.add(frame)
            if self._part:
                if index % self._part == 0:
                    self._close_part(part)
                    part = None
                    if index + self._part <= self._n_frames:
                        part = Displacements(self._groups, self._atoms, self._part, self._interval)
                if part is not None:
                    part.add(frame)
        self._close_part(part)

    def _close_part(self, part: Displacements | None) -> None:
        if part is not None:
            time, msd = part.result()
            for name, values in msd.items():
                self._part_slopes[name].append(_slope(time, values))

    def result(self) -> Analysis:
        """Averages over all frames so far."""
        rdf_r, rdf = self._rdf.result() if self._rdf is not None else (np.zeros(0), {})
        msd_time, msd = self._displacements.result()
        vacf_time, vacf, frequency, vdos = self._velocities.result()
        diffusion = {}
        for name, values in msd.items():
            slopes = self._part_slopes[name]
            error = None
            if len(slopes) > 1:
                error = float(np.std(slopes, ddof=1) / math.sqrt(len(slopes)))
            diffusion[name] = Diffusion(
                coefficient=_slope(msd_time, values) / 6 * M2_PER_S,
                error=None if error is None else error / 6 * M2_PER_S,
                power=_power(msd_time, values),
                longest=float(values[-1]),
            )
        return Analysis(
            self._n_read, rdf_r, rdf, msd_time, msd, diffusion, vacf_time, vacf, frequency, vdos
        )


def _fit_range(time: np.ndarray) -> np.ndarray:
    """Mask of the times at which displacements are fitted."""
    return (time >= FIT_FROM * time[-1]) & (time > 0)


def _slope(time: np.ndarray, msd: np.ndarray) -> float:
    """Slope of the straight part, Å^2/ps."""
    chosen = _fit_range(time)
    return float(np.polyfit(time[chosen], msd[chosen], 1)[0])


def _power(time: np.ndarray, msd: np.ndarray) -> float:
    """Exponent of time, by a fit of the logarithms; 0 where nothing moves."""
    chosen = _fit_range(time) & (msd > 0)
    if chosen.sum() < 2:
        return 0.0
    return float(np.polyfit(np.log(time[chosen]), np.log(msd[chosen]), 1)[0])


class RadialDistribution:
    """Partial radial distribution functions of a periodic system.

    g_ab(r) is the number of atoms b at distance r from an atom a, divided by that of an ideal gas
    of the same density; periodic images count as atoms.
    """

    def __init__(self, groups: Mapping[str, np.ndarray], pbc: np.ndarray) -> None:
        self._groups, self._pbc = groups, np.asarray(pbc)
        self._kind = np.empty(sum(map(len, groups.values())), dtype=int)
        for k, members in enumerate(groups.values()):
            self._kind[members] = k
        n, self._edges = len(groups), np.arange(0.0, RDF_RANGE + RDF_BIN / 2, RDF_BIN)
        self._counts = np.zeros((n * n, len(self._edges) - 1))
        self._density = 0.0
        self._n_frames = 0

    def add(self, frame: Frame) -> None:
        """Count the pairs of a frame."""
        from dpa3sim.graph.candidates import candidates

        i, j, shifts = candidates(frame.positions, frame.cell, self._pbc, RDF_RANGE)
        vectors = frame.positions[j] - frame.positions[i] + shifts @ frame.cell
        distance = np.sqrt((vectors**2).sum(axis=1))
        n = len(self._groups)
        column = np.minimum((distance / RDF_BIN).astype(int), self._counts.shape[1] - 1)
        flat = (self._kind[i] * n + self._kind[j]) * self._counts.shape[1] + column
        self._counts += np.bincount(flat, minlength=self._counts.size).reshape(self._counts.shape)
        self._density += 1.0 / abs(np.linalg.det(frame.cell))
        self._n_frames += 1

    def result(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Bin centres, Å, and g(r) by pair of elements."""
        centres = (self._edges[1:] + self._edges[:-1]) / 2
        if not self._n_frames:
            return np.zeros(0), {}
        shells = 4 / 3 * math.pi * np.diff(self._edges**3) * self._density
        names, sizes = list(self._groups), [len(m) for m in self._groups.values()]
        n = len(names)
        return centres, {
            f"{names[a]}-{names[b]}": self._counts[a * n + b] / (sizes[a] * sizes[b] * shells)
            for a, b in combinations_with_replacement(range(n), 2)
        }


class Displacements:
    """Mean squared displacements over all time origins, up to half of the trajectory.

    If the cell changes, displacements are those of fractional coordinates in the initial cell, so
    that the breathing of the cell does not count as motion of atoms. The motion of the centre of
    mass is subtracted unless atoms are fixed. Origins and lags are multiples of a stride, so that
    at most :data:`MSD_ORIGINS` frames are in memory.
    """

    def __init__(
        self, groups: Mapping[str, np.ndarray], atoms: Atoms, n_frames: int, interval: float
    ) -> None:
        self._groups = groups
        self._masses = None if atoms.constraints else atoms.get_masses()
        self._cell = np.asarray(atoms.cell[:]) if atoms.pbc.all() else None
        self._longest = max(0, (n_frames - 1) // 2)
        held = int(np.clip(MSD_BYTES // (24 * len(atoms)), 10, MSD_ORIGINS))
        self.stride = max(1, math.ceil(self._longest / held))
        self._interval = interval
        self._n_lags = self._longest // self.stride + 1
        self._sums = np.zeros((len(groups), self._n_lags))
        self._counts = np.zeros(self._n_lags)
        self.restart()

    def restart(self) -> None:
        """Begin a new replica, whose displacements have their own origins."""
        self._origins: deque[np.ndarray] = deque(maxlen=self._n_lags)
        self._index = 0

    def add(self, frame: Frame) -> None:
        """Add the next frame."""
        index, self._index = self._index, self._index + 1
        if index % self.stride:
            return
        positions = frame.positions
        if self._cell is not None:
            positions = positions @ np.linalg.solve(frame.cell, self._cell)
        if self._masses is not None:
            positions = positions - self._masses @ positions / self._masses.sum()
        self._origins.appendleft(positions)
        for lag, origin in enumerate(self._origins):
            squares = ((positions - origin) ** 2).sum(axis=1)
            for k, members in enumerate(self._groups.values()):
                self._sums[k, lag] += squares[members].mean()
            self._counts[lag] += 1

    def result(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Times, ps, and mean squared displacements, Å^2, by element."""
        known = self._counts > 0
        if known.sum() < 4:
            return np.zeros(0), {}
        time = np.flatnonzero(known) * self.stride * self._interval
        values = self._sums[:, known] / self._counts[known]
        return time, dict(zip(self._groups, values, strict=True))


class Velocities:
    """Velocity autocorrelation of segments, from their power spectra (Wiener, Khinchin).

    A segment is twice as long as the longest correlation time; zeros are appended, so that the
    correlation does not wrap around. Isotopes of an element share its correlation, in which all
    atoms have the same weight, and its density of states, in which they are weighted by mass.
    """

    def __init__(
        self,
        groups: Mapping[str, np.ndarray],
        masses: np.ndarray,
        n_frames: int,
        interval: float,
    ) -> None:
        self._groups, self._masses, self._interval = groups, masses, interval
        room = max(MIN_VACF_FRAMES, VACF_BYTES // (24 * len(masses)))
        wanted = 2 * math.ceil(VACF_TIME / interval)
        self.length = max(1, min(n_frames, wanted, room))
        self._sums = np.zeros((len(groups), max(1, self.length // 2)))
        self._weighted = np.zeros_like(self._sums)
        self._n_segments = 0
        self.restart()

    def restart(self) -> None:
        """Begin a new replica."""
        self._segment = np.empty((self.length, len(self._masses), 3))
        self._filled = 0

    def add(self, frame: Frame) -> None:
        """Add the next frame."""
        self._segment[self._filled] = frame.velocities
        self._filled += 1
        if self._filled == self.length:
            self._correlate()
            self._filled = 0

    def _correlate(self) -> None:
        from scipy.fft import irfft, next_fast_len, rfft

        lags = self._sums.shape[1]
        size = next_fast_len(self.length + lags, real=True)
        pairs = self.length - np.arange(lags)
        for k, members in enumerate(self._groups.values()):
            for atom in members:  # one at a time, since the spectra of all need much memory
                spectrum = rfft(self._segment[:, atom], n=size, axis=0)
                power = (spectrum.real**2 + spectrum.imag**2).sum(axis=1)
                correlation = irfft(power, n=size)[:lags] / pairs / len(members)
                self._sums[k] += correlation
                self._weighted[k] += self._masses[atom] * correlation
        self._n_segments += 1

    def result(
        self,
    ) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]:
        """Times (ps), correlation by element, frequencies (THz), density of states."""
        from scipy.fft import next_fast_len, rfft

        lags = self._sums.shape[1]
        if not self._n_segments or self.length < MIN_VACF_FRAMES or not self._sums[:, 0].any():
            return np.zeros(0), {}, np.zeros(0), {}
        correlation = self._sums / self._n_segments  # Å^2/ps^2
        weighted = self._weighted / self._n_segments  # u Å^2/ps^2
        time = np.arange(lags) * self._interval
        window = np.cos(0.5 * np.pi * np.arange(lags) / lags) ** 2
        sizes = np.array([len(m) for m in self._groups.values()])
        # The correlation at both signs of time is even, so that its spectrum is real.
        size = next_fast_len(4 * lags, real=True)
        even = np.zeros((len(sizes), size))
        even[:, :lags] = weighted * window
        even[:, size - lags + 1 :] = even[:, lags - 1 : 0 : -1]
        spectrum = rfft(even, axis=1).real * self._interval * 2
        frequency = np.arange(spectrum.shape[1]) / (size * self._interval)
        # sum_i m_i <v_i v_i> = (degrees of freedom) k_B T; shares of the elements per atom.
        shares = sizes / sizes.sum()
        thermal = float(shares @ weighted[:, 0]) / 3
        vdos = {
            name: values * share / thermal
            for name, values, share in zip(self._groups, spectrum, shares, strict=True)
        }
        vacf = dict(zip(self._groups, correlation / correlation[:, :1], strict=True))
        return time, vacf, frequency, {"total": np.sum(list(vdos.values()), axis=0), **vdos}
