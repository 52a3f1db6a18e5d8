"""Frames that differ most from each other, by farthest-point sampling on the model's features.

The distance of a structure A from a set S of structures is

    D(A, S) = mean over elements e of A of   max over atoms i of e in A of
              min over atoms j of e in structures of S of   |z_i - z_j|

where z are the features of atoms, whitened. It is zero if each environment of A is one of S: a
supercell adds nothing to its cell. Each step takes the candidate with the largest distance from
what is chosen or known (Eldar et al., IEEE Trans. Image Process. 6, 1305 (1997); Imbalzano et
al., J. Chem. Phys. 148, 241730 (2018)). docs/sample.md#how-frames-are-chosen describes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.protocols.base import Event, Progress, silent
from dpa3sim.sample.frames import PARENT, kind_of

if TYPE_CHECKING:
    from ase import Atoms

# Whitened directions: at most so many, each with at least this share of the largest variance.
DIRECTIONS, LEAST_VARIANCE = 32, 1e-4
# The directions follow from about so many atoms, evenly from all structures.
SAMPLE_ATOMS = 20_000
# Structures closer than this to what is chosen are duplicates. Rounding errors of features in
# float32 are ten times smaller.
DUPLICATE = 1e-3
# Entries of a matrix of distances.
_BLOCK = 2**21


class Describer(Protocol):
    """A potential that describes atoms, such as :class:`~dpa3sim.Potential`."""

    def features(self, structures: Sequence[Atoms]) -> list[np.ndarray]:
        """``(n_atoms, width)`` of each structure."""


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        indices: of the chosen candidates, in the order of the choice.
        distances: of each from those before it and from the known frames, in standard deviations;
            infinite where an element was new.
    """

    indices: list[int]
    distances: list[float]


def choose(
    candidates: Sequence[Atoms],
    potential: Describer,
    n: int,
    *,
    known: Sequence[Atoms] = (),
    shares: Mapping[str, float] | None = None,
    progress: Progress = silent,
) -> list[int]:
    """The indices of ``n`` candidates that differ from each other and from the known frames.

    Deterministic; ties go to the first candidate. Fewer are returned if the others are
    duplicates.

    Args:
        candidates: to choose from; ``info["config_type"]`` is the kind of each.
        potential: describes atoms. n: how many are wanted.
        known: frames that are there already.
        shares: least share of ``n`` of each kind, percent, as far as it has candidates; kinds
            with 100 come first.
        progress: called as it goes on.

    Raises:
        InputError: a candidate or known frame cannot be evaluated.
    """
    return select(candidates, potential, n, known=known, shares=shares, progress=progress).indices


def select(
    candidates: Sequence[Atoms],
    potential: Describer,
    n: int,
    *,
    known: Sequence[Atoms] = (),
    shares: Mapping[str, float] | None = None,
    progress: Progress = silent,
) -> Selection:
    """Like :func:`choose`, with the distances at which candidates were chosen."""
    if not candidates:
        return Selection([], [])
    described = _Described([*candidates, *known], potential)
    whitening = Whitening.fit(described.sample())
    cover = _Cover(candidates, described, whitening, progress)
    for k, atoms in enumerate(known, start=len(candidates)):
        cover.add(atoms.numbers, whitening(described.take(k)))
    kinds = np.array([kind_of(atoms) for atoms in candidates])
    quotas = {
        kind: min(math.ceil(share * n / 100 - 1e-9), int((kinds == kind).sum()))
        for kind, share in (shares or {}).items()
    }
    whole = np.isin(kinds, [kind for kind, share in (shares or {}).items() if share >= 100])
    chosen = Selection([], [])
    while len(chosen.indices) < n:
        novelty = cover.novelty()
        novelty[chosen.indices] = 0.0
        allowed = novelty > DUPLICATE
        if not allowed.any():
            break
        if (allowed & whole).any():
            allowed &= whole
        else:
            allowed &= _within_quotas(kinds, allowed, quotas, n - len(chosen.indices))
        index = int(np.argmax(np.where(allowed, novelty, -1.0)))
        chosen.indices.append(index)
        chosen.distances.append(float(novelty[index]))
        quotas[kinds[index]] = max(0, quotas.get(kinds[index], 0) - 1)
        cover.add_candidate(index)
        done = len(chosen.indices)
        progress(Event("choose", f"{done} of {n} frames", done, n))
    return chosen


def _within_quotas(
    kinds: np.ndarray, allowed: np.ndarray, quotas: Mapping[str, int], left: int
) -> np.ndarray:
    """Which candidates may be next, if ``left`` more are wanted; ``(n_candidates,)`` bool.

    All may, until the rest is only enough for the kinds that lack frames.
    """
    lacking = {kind: min(q, int((allowed & (kinds == kind)).sum())) for kind, q in quotas.items()}
    lacking = {kind: number for kind, number in lacking.items() if number > 0}
    if sum(lacking.values()) < left:
        return np.ones(len(kinds), dtype=bool)
    return np.isin(kinds, list(lacking))


@dataclass(frozen=True)
class Whitening:
    """A linear map after which all directions that matter have a variance of one.

    Attributes:
        mean: ``(width,)``. matrix: ``(width, n_directions)``.
    """

    mean: np.ndarray
    matrix: np.ndarray

    @classmethod
    def fit(cls, sample: Sequence[np.ndarray]) -> Whitening:
        """The principal directions of features, ``(n_atoms, width)`` each."""
        count = sum(map(len, sample))
        mean = sum(x.sum(axis=0) for x in sample) / count
        covariance = sum((x - mean).T @ (x - mean) for x in sample) / count
        variances, directions = np.linalg.eigh(covariance)
        order = np.argsort(variances)[::-1][:DIRECTIONS]
        kept = order[variances[order] > LEAST_VARIANCE * max(variances.max(), 0.0)]
        return cls(mean, directions[:, kept] / np.sqrt(variances[kept]))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Whitened features, ``(n_atoms, n_directions)``."""
        white: np.ndarray = (features - self.mean) @ self.matrix
        return white


class _Described:
    """The features of structures, which are computed once and not kept longer than needed."""

    def __init__(self, structures: Sequence[Atoms], potential: Describer) -> None:
        self._structures, self._potential = structures, potential
        self._kept: dict[int, np.ndarray] = {}

    def sample(self) -> list[np.ndarray]:
        """The features of about :data:`SAMPLE_ATOMS` atoms, evenly from all structures."""
        stride = max(1, sum(map(len, self._structures)) // SAMPLE_ATOMS)
        for k in range(0, len(self._structures), stride):
            self._kept[k] = self._compute(k)
        return list(self._kept.values())

    def take(self, k: int) -> np.ndarray:
        """The features of the atoms of a structure, ``(n_atoms, width)``; to be asked for once."""
        return self._kept.pop(k) if k in self._kept else self._compute(k)

    def _compute(self, k: int) -> np.ndarray:
        atoms = self._structures[k]
        try:
            return self._potential.features([atoms])[0]
        except InputError as error:
            raise InputError(f"{atoms.info.get(PARENT, atoms.symbols)}: {error}") from None


class _Cover:
    """How far each atom of the candidates is from all atoms of a growing set.

    Keeps 4 bytes for each atom and direction, whatever the number of structures in the set.
    """

    def __init__(
        self,
        candidates: Sequence[Atoms],
        described: _Described,
        whitening: Whitening,
        progress: Progress,
    ) -> None:
        sizes = np.array([len(atoms) for atoms in candidates])
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._numbers = np.concatenate([atoms.numbers for atoms in candidates])
        owners = np.repeat(np.arange(len(candidates)), sizes)
        self._white = np.empty((len(owners), whitening.matrix.shape[1]), dtype=np.float32)
        for k in range(len(candidates)):
            self._white[self._atoms(k)] = whitening(described.take(k))
            done, total = k + 1, len(candidates)
            progress(Event("describe", f"{done} of {total} candidates", done, total))
        self._nearest = np.full(len(owners), np.inf)
        # Atoms of one element in one structure are neighbours in this order.
        self._order = np.lexsort((self._numbers, owners))
        changes = (np.diff(owners[self._order]) != 0) | (np.diff(self._numbers[self._order]) != 0)
        self._groups = np.concatenate([[0], np.flatnonzero(changes) + 1])
        owned = owners[self._order][self._groups]
        self._structures = np.searchsorted(owned, np.arange(len(candidates)))
        self._elements = np.bincount(owned, minlength=len(candidates))

    def _atoms(self, k: int) -> slice:
        return slice(int(self._starts[k]), int(self._starts[k + 1]))

    def novelty(self) -> np.ndarray:
        """The distance D of each candidate from the set, ``(n_candidates,)``."""
        largest = np.maximum.reduceat(self._nearest[self._order], self._groups)
        mean: np.ndarray = np.add.reduceat(largest, self._structures) / self._elements
        return mean

    def add_candidate(self, k: int) -> None:
        """Add a candidate to the set."""
        self.add(self._numbers[self._atoms(k)], self._white[self._atoms(k)])

    def add(self, numbers: np.ndarray, white: np.ndarray) -> None:
        """Add a structure: atomic numbers ``(n,)``, whitened features ``(n, n_directions)``."""
        for number in np.unique(numbers):
            others = white[numbers == number].astype(np.float64)
            for rows in self._blocks(np.flatnonzero(self._numbers == number), len(others)):
                found = _nearest(self._white[rows].astype(np.float64), others)
                self._nearest[rows] = np.minimum(self._nearest[rows], found)

    @staticmethod
    def _blocks(rows: np.ndarray, columns: int) -> Iterator[np.ndarray]:
        size = max(1, _BLOCK // columns)
        for first in range(0, len(rows), size):
            yield rows[first : first + size]


def _nearest(x: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance of each row of ``x`` from the nearest row of ``others``, ``(len(x),)``."""
    # |x - y|^2 less |x|^2, which does not decide which y is nearest.
    squares = x @ (-2 * others.T)
    squares += (others**2).sum(axis=1)
    nearest: np.ndarray = np.sqrt(np.maximum(squares.min(axis=1) + (x**2).sum(axis=1), 0.0))
    return nearest
