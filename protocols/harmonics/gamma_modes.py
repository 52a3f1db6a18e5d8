"""The modes at Γ, with their irreducible representations (phonopy)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from phonopy import Phonopy
    from phonopy.structure.symmetry import Symmetry


@dataclass(frozen=True)
class Mode:
    """A set of degenerate modes at Γ.

    Attributes:
        frequency: THz. degeneracy: how many. irrep: Mulliken symbol, None where unknown.
        acoustic: whether all atoms move alike.
    """

    frequency: float
    degeneracy: int
    irrep: str | None
    acoustic: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready keys."""
        return {
            "frequency_THz": self.frequency,
            "degeneracy": self.degeneracy,
            "irrep": self.irrep,
            "acoustic": self.acoustic,
        }


def gamma_frequencies(phonon: Phonopy) -> np.ndarray:
    """Frequencies at Γ ``(3n,)``, THz; imaginary ones negative."""
    return np.asarray(phonon.run_qpoints([[0.0, 0.0, 0.0]]).frequencies[0])


def _symmetries(phonon: Phonopy) -> Iterator[Symmetry]:
    """The operations of the primitive cell, found with tolerances from the tightest to its own.

    phonopy sets translations of 1 - tolerance (of a cell vector, not Å) and more to 0, and then
    misses atoms of cells whose origin is a little off. Where atoms are a little off their sites, a
    tolerance that finds the operations may be too tight to find the atoms that these exchange.
    """
    from phonopy.structure.symmetry import Symmetry

    found = phonon.primitive_symmetry
    count = len(found.symmetry_operations["rotations"])
    for tolerance in (1e-5, 1e-4, 1e-3):
        if tolerance < found.tolerance:
            tight = Symmetry(phonon.primitive, symprec=tolerance, distinguish_symbol_index=True)
            if len(tight.symmetry_operations["rotations"]) == count:
                yield tight
    yield found


def _representations(phonon: Phonopy) -> Any:
    """The irreducible representations at Γ that phonopy finds; None where it finds none."""
    from phonopy.phonon.irreps import IrReps

    assert phonon.dynamical_matrix is not None
    for symmetry in _symmetries(phonon):
        with suppress(RuntimeError, AssertionError, ValueError):
            return IrReps(
                phonon.dynamical_matrix,
                [0, 0, 0],
                symmetry,
                factor=phonon.unit_conversion_factor,
                symmetry_adapted=True,
            )
    return None


def gamma_modes(phonon: Phonopy) -> tuple[Mode, ...]:
    """Degenerate sets at Γ with their irreducible representations, where these are known."""
    found = _representations(phonon)
    if found is None:
        frequencies = gamma_frequencies(phonon)
        acoustic = set(np.argsort(np.abs(frequencies))[:3].tolist())
        return tuple(Mode(float(f), 1, None, k in acoustic) for k, f in enumerate(frequencies))
    # phonopy prints the labels but has no public name for them; None where it knows none.
    labels = getattr(found, "_ir_labels", None) or [None] * len(found.band_indices)
    acoustic = set(np.argsort(np.abs(found.frequencies))[:3].tolist())
    return tuple(
        Mode(
            float(np.mean(found.frequencies[list(bands)])),
            len(bands),
            label,
            set(bands) <= acoustic,
        )
        for bands, label in zip(found.band_indices, labels, strict=True)
    )
