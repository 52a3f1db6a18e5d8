"""Last-layer prediction rigidity: uncertainties from the features of the training structures.

With f(A) the sum of the features of a structure's atoms (what the last layer of the fitting net
reads), F the rows f / n of the training structures with n atoms each, and a regulariser s,

    sigma^2(A) = alpha^2 f(A)^T (F^T F + s 1)^-1 f(A)

(Bigi et al., doi 10.1088/2632-2153/ad805f, eq. 24), where the number alpha comes from errors of
energies that are known. Energies of structures do not determine those of single atoms, such as of H
and O in water. The novelty of an atom therefore is the root of the same form with the features of
all atoms of the training structures as rows; it has no unit, and at most 1 in these structures.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import brentq
from scipy.stats import norm

from dpa3sim.checkpoints import ModelFile
from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.common.files import atomic_write
from dpa3sim.model.weights import FITTING_LAYERS
from dpa3sim.potential import Potential
from dpa3sim.structures.system import AtomsLike, System, as_system

Method = Literal["absolute", "squared", "crps"]
METHODS = get_args(Method)
FORMAT_VERSION = 1
# The regulariser is the first of these, in units of the largest diagonal element, that lets the
# factorisation succeed. Smaller ones would be rounding of the features in float32.
_REGULARISERS = 10.0 ** np.arange(-10, 1)
# The content of a file.
_NAMES = ("factor", "atoms", "alpha", "count", "elements", "sha256", "head", "version")


@dataclass(frozen=True)
class Rigidity:
    """The covariance of the features of training structures.

    Attributes:
        factor: ``(width, width)`` lower Cholesky factor of F^T F + s 1, a row for each structure.
        atoms: the same with a row for each atom.
        alpha: scale of the uncertainties of energies, eV; None before calibration.
        count: number of training structures. elements: of them.
        sha256, head: of the model that it belongs to.
    """

    factor: np.ndarray
    atoms: np.ndarray
    alpha: float | None
    count: int
    elements: tuple[str, ...]
    sha256: str
    head: str | None

    def check(self, model: ModelFile) -> None:
        """Raise InputError for another model than that whose features these are."""
        if (model.sha256, model.head) != (self.sha256, self.head):
            raise InputError(
                f"the uncertainty is that of another model than {model.name}; make one with "
                "'dpa3sim uncertainty fit'"
            )

    def local(self, features: np.ndarray) -> np.ndarray:
        """Novelty of each atom, ``(n,)``, from its features ``(n, width)``."""
        found: np.ndarray = np.linalg.norm(
            solve_triangular(self.atoms, features.T, lower=True), axis=0
        )
        return found

    def total(self, features: np.ndarray) -> float:
        """Sigma / alpha of a structure, from the features of its atoms ``(n, width)``."""
        whitened = solve_triangular(self.factor, features.sum(axis=0), lower=True)
        return float(np.linalg.norm(whitened))

    def calibrated(
        self, residuals: np.ndarray, novelties: np.ndarray, method: Method = "absolute"
    ) -> Rigidity:
        """With the scale for which uncertainties fit known errors.

        Args:
            residuals: ``(n,)`` errors of the energies of structures, eV.
            novelties: ``(n,)`` of the same structures.
            method: ``absolute``: mean of |error| / novelty, as of a normal distribution;
                ``squared``: root mean square of it; ``crps``: the least mean continuous ranked
                probability score.

        Raises:
            InputError: there are no errors.
        """
        residuals, novelties = np.asarray(residuals, float), np.asarray(novelties, float)
        good = np.isfinite(residuals) & (novelties > 0)
        if not good.any() or not np.abs(residuals[good]).any():
            raise InputError("no error of an energy is known, so that nothing can be calibrated")
        ratio = np.abs(residuals[good]) / novelties[good]
        if method == "absolute":
            alpha = float(np.sqrt(np.pi / 2) * ratio.mean())
        elif method == "squared":
            alpha = float(np.sqrt(np.mean(ratio**2)))
        else:
            alpha = _least_crps(ratio, novelties[good])
        return replace(self, alpha=alpha)

    def members(self, model: ModelFile, number: int, seed: int = 0) -> list[ModelFile]:
        """Models whose last layers scatter as the uncertainty says: a committee from one model.

        The variance of their energies is sigma^2 as their number grows; the scatter of their
        forces estimates that of the forces.

        Raises:
            InputError: another model, or no calibration.
        """
        self.check(model)
        if self.alpha is None:
            raise InputError("members of a committee need labels: calibrate the uncertainty first")
        name = f"{FITTING_LAYERS}.{len(model.config.fitting.neuron)}.matrix"
        matrix = model.weights[name]
        rng = np.random.default_rng(seed)
        noise = solve_triangular(
            self.factor, rng.standard_normal((len(matrix), number)), lower=True, trans="T"
        )
        return [
            replace(
                model,
                weights={**model.weights, name: matrix + self.alpha * noise[:, [k]]},
                name=f"{model.name}, member {k}",
                sha256=f"{model.sha256} {seed} {k}",
            )
            for k in range(number)
        ]

    def save(self, path: Path) -> None:
        """Write a file (npz)."""
        data = io.BytesIO()
        np.savez(
            data,
            factor=self.factor,
            atoms=self.atoms,
            alpha=np.float64(np.nan if self.alpha is None else self.alpha),
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
            alpha, factors = float(found["alpha"]), (found["factor"], found["atoms"])
            if int(found["version"]) != FORMAT_VERSION:
                raise ValueError(f"format version {found['version']}")
            for factor in factors:
                square = factor.ndim == 2 and factor.shape == (len(factors[0]), len(factors[0]))
                if factor.dtype != np.float64 or not square or not np.isfinite(factor).all():
                    raise ValueError("a covariance in it is not a square of finite numbers")
                if not (np.diag(factor) > 0).all():
                    raise ValueError("a covariance in it is not positive")
        except Exception as error:  # numpy and zipfile have many errors for damaged files
            reason = " ".join(f"{error}".split())
            raise InputError(f"{path}: not an uncertainty of a model ({reason})") from None
        return cls(
            factor=np.tril(factors[0]),
            atoms=np.tril(factors[1]),
            alpha=None if np.isnan(alpha) else alpha,
            count=int(found["count"]),
            elements=tuple(str(found["elements"]).split()),
            sha256=str(found["sha256"]),
            head=str(found["head"]) or None,
        )


def fit(potential: Potential, structures: Iterable[AtomsLike | System]) -> Rigidity:
    """The covariance of structures, which are evaluated one by one.

    Raises:
        InputError: there is none, or one that the model cannot compute.
    """
    width = potential.model.config.fitting.neuron[-1]
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
        count=count,
        elements=tuple(SYMBOLS[z - 1] for z in sorted(numbers)),
        sha256=potential.model.sha256,
        head=potential.model.head,
    )


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


def _least_crps(ratio: np.ndarray, novelties: np.ndarray) -> float:
    """The scale with the least mean score of normal distributions.

    The score of an error r is sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi)) with z = r / sigma,
    and its derivative with respect to the scale is proportional to 2 phi(z) - 1/sqrt(pi).
    """

    def slope(logarithm: float) -> float:
        z = ratio / np.exp(logarithm)
        return float(np.mean(novelties * (2 * norm.pdf(z) - 1 / np.sqrt(np.pi))))

    low, high = np.log(ratio[ratio > 0].min()) - 1, np.log(ratio.max()) + 1
    return float(np.exp(brentq(slope, low, high)))


def novelties(
    potential: Potential, rigidity: Rigidity, structures: Sequence[AtomsLike | System]
) -> list[tuple[float, np.ndarray]]:
    """Sigma / alpha of each structure, and the novelty of its atoms ``(n,)``.

    Raises:
        InputError: another model, or a structure that it cannot compute.
    """
    rigidity.check(potential.model)
    found = potential.features(structures)
    return [(rigidity.total(features), rigidity.local(features)) for features in found]
