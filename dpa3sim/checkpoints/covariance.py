"""How certain a model is, as its own file says it: statistics of its training structures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Covariance:
    """Features of training structures, and scales (docs/uncertainty.md#what-is-computed).

    Attributes:
        factor: ``(width, width)`` lower Cholesky factor of F^T F + s 1, a row for each structure.
        atoms: the same with a row for each atom.
        alpha: scale of the uncertainties of energies, eV; None before calibration.
        alpha_forces: the same for forces; None where no forces were known.
        count: number of training structures. elements: of them.

    Raises:
        ValueError: these cannot be such numbers.
    """

    factor: np.ndarray
    atoms: np.ndarray
    alpha: float | None
    alpha_forces: float | None
    count: int
    elements: tuple[str, ...]

    def __post_init__(self) -> None:
        for factor in (self.factor, self.atoms):
            square = factor.ndim == 2 and factor.shape == (len(self.factor), len(self.factor))
            if factor.dtype != np.float64 or not square or not np.isfinite(factor).all():
                raise ValueError("a covariance in it is not a square of finite numbers")
            if not (np.diag(factor) > 0).all() or np.triu(factor, 1).any():
                raise ValueError("a covariance in it is not positive")
        for number in (self.alpha, self.alpha_forces):
            if number is not None and not 0 < number < np.inf:
                raise ValueError(f"a scale in it is {number:g}")

    @cached_property
    def identity(self) -> str:
        """A hash of all numbers, which tells uncertainties apart."""
        digest = hashlib.sha256(repr((self.alpha, self.alpha_forces)).encode())
        for factor in (self.factor, self.atoms):
            digest.update(np.ascontiguousarray(factor).data)
        return digest.hexdigest()

    def to_parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays, and everything else JSON-ready."""
        facts = {
            "alpha": self.alpha,
            "alpha_forces": self.alpha_forces,
            "count": self.count,
            "elements": list(self.elements),
        }
        return {"factor": self.factor, "atoms": self.atoms}, facts

    @classmethod
    def from_parts(cls, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Covariance:
        """What :meth:`to_parts` made.

        Raises:
            ValueError, LookupError, TypeError: it is something else.
        """
        scales = (facts[name] for name in ("alpha", "alpha_forces"))
        alpha, alpha_forces = (None if x is None else float(x) for x in scales)
        elements = tuple(map(str, facts["elements"]))
        count = int(facts["count"])
        return cls(arrays["factor"], arrays["atoms"], alpha, alpha_forces, count, elements)
