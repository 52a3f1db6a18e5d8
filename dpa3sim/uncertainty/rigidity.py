"""Last-layer prediction rigidity: uncertainties from the features of the training structures.

With f(A) the sum of the features of a structure's atoms (what the last layer of the fitting net
reads), F the rows f / n of the training structures with n atoms each, and a regulariser s,

    sigma^2(A) = alpha^2 f(A)^T (F^T F + s 1)^-1 f(A)

(Bigi et al., doi 10.1088/2632-2153/ad805f, eq. 24), where the number alpha comes from errors of
energies that are known. Energies of structures do not determine those of single atoms, such as of H
and O in water. The novelty of an atom therefore is the root of the same form with the features of
all atoms of the training structures as rows; it has no unit, and at most 1 in these structures.

Forces are linear in the last layer too. Their uncertainties are the scatter of members: models
whose last layers differ from the model's by random changes, which scatter as the energies do. Their
scale is another number, because errors of energies say little about those of forces.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from dpa3sim.checkpoints.covariance import Covariance
from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.common.files import atomic_write
from dpa3sim.structures.system import AtomsLike, System, as_system

if TYPE_CHECKING:
    from dpa3sim.checkpoints import ModelFile
    from dpa3sim.potential import Potential

Method = Literal["absolute", "squared", "crps"]
METHODS = get_args(Method)
FORMAT_VERSION = 2
OWN = "model"
"""In place of the name of a file: what the file of the model says of itself."""
# Members for uncertainties of forces: the scatter of 45 numbers is that of an atom.
MEMBERS = 16
# Structures that are evaluated in one request.
_CHUNK = 64
# The regulariser is the first of these, in units of the largest diagonal element, that lets the
# factorisation succeed. Smaller ones would be rounding of the features in float32.
_REGULARISERS = 10.0 ** np.arange(-10, 1)
# The content of a file.
_NAMES = (
    *("factor", "atoms", "alpha", "alpha_forces", "count"),
    *("elements", "sha256", "head", "version"),
)


@dataclass(frozen=True)
class Rigidity(Covariance):
    """The covariance of the features of training structures, of one model.

    Attributes:
        sha256, head: of the model that it belongs to.
        path: the file that it was read from; :data:`OWN` for that of the model.
    """

    sha256: str
    head: str | None
    path: Path | None = None

    @classmethod
    def of(cls, model: ModelFile) -> Rigidity:
        """What the file of a model says of it.

        Raises:
            InputError: nothing.
        """
        if model.covariance is None:
            raise InputError(
                f"{model.name} does not say how certain it is (or was changed since); make an "
                "uncertainty with 'dpa3sim uncertainty fit' and give its file"
            )
        own = {f.name: getattr(model.covariance, f.name) for f in fields(Covariance)}
        return cls(**own, sha256=model.sha256, head=model.head, path=Path(OWN))

    def check(self, model: ModelFile) -> None:
        """Raise InputError for another model than that whose features these are."""
        same = (model.sha256, model.head) == (self.sha256, self.head)
        if not same or len(self.factor) != _width(model):
            raise InputError(
                f"the uncertainty is that of another model than {model.name}; make one with "
                "'dpa3sim uncertainty fit'"
            )

    def whitening(self) -> np.ndarray:
        """``(width, 2 width)``: what features are multiplied with.

        The norm of the first half of a product is sigma / alpha, of an atom or of summed features;
        that of the second half of an atom's is its novelty.
        """
        unit = np.eye(len(self.factor))
        parts = [solve_triangular(x, unit, lower=True).T for x in (self.factor, self.atoms)]
        return np.concatenate(parts, axis=1)

    def directions(self, number: int, seed: int = 0) -> np.ndarray:
        """Changes of the last layer that make members, ``(width, number)``, for alpha = 1.

        Their scatter gives energies the variance sigma^2 as their number grows; their mean is 0, so
        that of the members is the model, and their variances are unbiased if divided by number - 1.

        Args:
            number: of members, at least 2. seed: of the random numbers.

        Raises:
            InputError: there are less than two members.
        """
        if number < 2:
            raise InputError(f"members = {number} must be at least 2, since they are compared")
        noise = np.random.default_rng(seed).standard_normal((number, len(self.factor))).T
        noise -= noise.mean(axis=1, keepdims=True)
        found: np.ndarray = solve_triangular(self.factor, noise, lower=True, trans="T")
        return found

    @property
    def energy_scale(self) -> float:
        """``alpha``.

        Raises:
            InputError: it is not known.
        """
        if self.alpha is None:
            raise InputError(
                "uncertainties of energies need labels: fit the uncertainty to frames with energies"
            )
        return self.alpha

    @property
    def force_scale(self) -> float:
        """``alpha_forces``.

        Raises:
            InputError: it is not known.
        """
        if self.alpha_forces is None:
            raise InputError(
                "uncertainties of forces need labels: fit the uncertainty to frames with forces"
            )
        return self.alpha_forces

    def save(self, path: Path) -> None:
        """Write a file (npz)."""
        data = io.BytesIO()
        np.savez(
            data,
            factor=self.factor,
            atoms=self.atoms,
            alpha=np.float64(np.nan if self.alpha is None else self.alpha),
            alpha_forces=np.float64(np.nan if self.alpha_forces is None else self.alpha_forces),
            count=np.int64(self.count),
            elements=np.array(" ".join(self.elements)),
            sha256=np.array(self.sha256),
            head=np.array(self.head or ""),
            version=np.int64(FORMAT_VERSION),
        )
        atomic_write(path, data.getvalue())

    @classmethod
    def load(cls, path: Path) -> Rigidity:
        """Read what :meth:`save` wrote; nothing in it is executed.

        Raises:
            InputError: the file is absent, damaged, or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                found = {name: archive[name] for name in _NAMES}
            if int(found["version"]) != FORMAT_VERSION:
                raise ValueError(f"format version {found['version']}")
            scales = (float(found[name]) for name in ("alpha", "alpha_forces"))
            alpha, alpha_forces = (None if np.isnan(x) else x for x in scales)
            return cls(
                factor=found["factor"],
                atoms=found["atoms"],
                alpha=alpha,
                alpha_forces=alpha_forces,
                path=path.resolve(),
                count=int(found["count"]),
                elements=tuple(str(found["elements"]).split()),
                sha256=str(found["sha256"]),
                head=str(found["head"]) or None,
            )
        except Exception as error:  # numpy and zipfile have many errors for damaged files
            reason = " ".join(f"{error}".split())
            raise InputError(f"{path}: not an uncertainty of a model ({reason})") from None


def fit(potential: Potential, structures: Iterable[AtomsLike | System]) -> Rigidity:
    """The covariance of structures, which are evaluated one by one.

    Raises:
        InputError: there is none, or one that the model cannot compute.
    """
    width = _width(potential.model)
    of_structures, of_atoms = np.zeros((2, width, width))
    count, numbers = 0, set()
    for structure in structures:
        system = as_system(structure)
        (features,) = potential.features([system])
        row = features.mean(axis=0)
        of_structures += np.outer(row, row)
        of_atoms += features.T @ features
        numbers |= set(system.numbers.tolist())
        count += 1
    if not count:
        raise InputError("there are no structures to fit an uncertainty to")
    return Rigidity(
        factor=factorised(of_structures),
        atoms=factorised(of_atoms),
        alpha=None,
        alpha_forces=None,
        count=count,
        elements=tuple(SYMBOLS[z - 1] for z in sorted(numbers)),
        sha256=potential.model.sha256,
        head=potential.model.head,
    )


def _width(model: ModelFile) -> int:
    """How many numbers the last layer of the fitting net reads."""
    config = model.config
    return config.fitting.neuron[-1] if config.fitting.neuron else config.input_dim


def factorised(matrix: np.ndarray) -> np.ndarray:
    """Cholesky factor of a positive matrix with the smallest regulariser that makes it so."""
    scale = float(np.diag(matrix).max()) or 1.0
    for share in _REGULARISERS:
        try:
            regular = matrix + share * scale * np.eye(len(matrix))
            found: np.ndarray = cholesky(regular, lower=True)
        except np.linalg.LinAlgError:
            continue
        return found
    raise InputError("the features of the structures are not finite")


@dataclass(frozen=True)
class Labelled:
    """A structure of which something is known.

    Attributes:
        structure: the structure. energy: eV. forces: ``(n, 3)`` eV/Å.
    """

    structure: AtomsLike | System
    energy: float | None
    forces: np.ndarray | None


@dataclass(frozen=True)
class Errors:
    """Known errors of a model, and its uncertainties before calibration.

    Attributes:
        energies, energy_spreads: ``(n,)`` of each structure with an energy: error, eV, and
            sigma / alpha.
        sizes: ``(n,)`` numbers of atoms of these.
        forces, force_spreads: ``(m,)`` the same for each atom whose forces are known, root mean
            squares of its three components, eV/Å.
    """

    energies: np.ndarray
    energy_spreads: np.ndarray
    sizes: np.ndarray
    forces: np.ndarray
    force_spreads: np.ndarray

    @classmethod
    def of(
        cls,
        potential: Potential,
        rigidity: Rigidity,
        known: Iterable[Labelled],
        members: int = MEMBERS,
    ) -> Errors:
        """Evaluate structures with labels, some at a time.

        Args:
            potential: the model. rigidity: of it. known: the structures.
            members: how many of them estimate the uncertainties of forces; 0 leaves these out.

        Raises:
            InputError: another model, or a structure that it cannot compute.
        """
        judging = potential.with_uncertainty(replace(rigidity, alpha=1.0, alpha_forces=1.0))
        energies: list[tuple[float, float, int]] = []
        forces: list[tuple[np.ndarray, np.ndarray]] = []
        for chunk in _chunks(known):
            found = judging.evaluate([x.structure for x in chunk])
            for label, out in zip(chunk, found, strict=True):
                assert out.uncertainty is not None
                assert out.uncertainty.energy is not None
                if label.energy is not None:
                    error = out.energy - label.energy
                    energies.append((error, out.uncertainty.energy, len(out.energies)))
                if label.forces is not None and members:
                    (spread,) = judging.forces_uncertainty([label.structure], members)
                    forces.append((_rms(out.forces - label.forces), _rms(spread)))
        columns = np.array(energies, dtype=np.float64).reshape(-1, 3).T
        of_atoms = np.concatenate([np.zeros((2, 0)), *map(np.array, forces)], axis=1)
        return cls(*columns, *of_atoms)

    def calibrated(self, rigidity: Rigidity, method: Method = "absolute") -> Rigidity:
        """With the scales for which uncertainties fit these errors, as far as they are known.

        Args:
            rigidity: the one that made them. method: see :func:`scale`.
        """
        return replace(
            rigidity,
            alpha=scale(self.energies, self.energy_spreads, method),
            alpha_forces=scale(self.forces, self.force_spreads, method),
        )


def _chunks(known: Iterable[Labelled]) -> Iterator[list[Labelled]]:
    rest = iter(known)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


def _rms(rows: np.ndarray) -> np.ndarray:
    """Root mean squares of rows."""
    found: np.ndarray = np.sqrt(np.mean(rows**2, axis=1))
    return found


def scale(errors: np.ndarray, spreads: np.ndarray, method: Method = "absolute") -> float | None:
    """The number that spreads are multiplied by so that they fit known errors.

    Args:
        errors: ``(n,)``, such as those of energies, eV.
        spreads: ``(n,)``, sigma / alpha of the same.
        method: ``absolute``: mean of |error| / spread, as of a normal distribution; ``squared``:
            root mean square of it; ``crps``: the least mean continuous ranked probability score.

    Returns:
        None where there are no errors, or only zeros.
    """
    good = np.isfinite(errors) & (spreads > 0)
    if not np.abs(errors[good]).any():
        return None
    ratio = np.abs(errors[good]) / spreads[good]
    if method == "absolute":
        return float(np.sqrt(np.pi / 2) * ratio.mean())
    if method == "squared":
        return float(np.sqrt(np.mean(ratio**2)))
    return _least_crps(ratio, spreads[good])


def _least_crps(ratio: np.ndarray, spreads: np.ndarray) -> float:
    """The scale with the least mean score of normal distributions.

    The score of an error r is sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi)) with z = r / sigma,
    and its derivative with respect to the scale is proportional to 2 phi(z) - 1/sqrt(pi).
    """
    from scipy.optimize import brentq  # these take long to import, and commands rarely need them
    from scipy.stats import norm

    def slope(logarithm: float) -> float:
        z = ratio / np.exp(logarithm)
        return float(np.mean(spreads * (2 * norm.pdf(z) - 1 / np.sqrt(np.pi))))

    low, high = np.log(ratio[ratio > 0].min()) - 1, np.log(ratio.max()) + 1
    return float(np.exp(brentq(slope, low, high)))
