"""Nudged elastic bands: ASE's, with all images of a step evaluated as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .superposition import is_free_molecule

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.evaluation import Evaluation
    from dpa3sim.potential.interface import BatchPotential

# A band diverges if in its last PATIENCE steps its force stayed above DIVERGED times the least
# force before, and above LARGE_FORCE (eV/Å), which forces may reach at the beginning.
DIVERGED, PATIENCE, LARGE_FORCE = 2.0, 25, 5.0


@dataclass(frozen=True)
class Band:
    """Energies and forces along a path.

    Attributes:
        path: ``(n,)`` length of the path up to each image, Å, in the space of all coordinates.
        energies: ``(n,)``, eV.
        forces: ``(n,)`` along the path, eV/Å, positive towards the last image.
    """

    path: np.ndarray
    energies: np.ndarray
    forces: np.ndarray

    @classmethod
    def of(cls, images: list[Atoms]) -> Band:
        """From images with energies and forces, whose atoms are not wrapped into the cell."""
        positions = np.array([image.positions for image in images])
        steps = np.diff(positions, axis=0)
        path = np.append(0.0, np.cumsum(np.linalg.norm(steps, axis=(1, 2))))
        # Central differences, consistent with the spline, and one-sided ones at the ends.
        tangents = np.gradient(positions, path, axis=0)
        tangents /= np.linalg.norm(tangents, axis=(1, 2), keepdims=True)
        forces = np.array([image.get_forces() for image in images])
        return cls(
            path,
            np.array([float(image.get_potential_energy()) for image in images]),
            (forces * tangents).sum(axis=(1, 2)),
        )

    def spline(self, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
        """Path (Å) and energy (eV) of the cubic spline through energies and forces."""
        from scipy.interpolate import CubicHermiteSpline

        spline = CubicHermiteSpline(self.path, self.energies, -self.forces)
        dense = np.union1d(np.linspace(0, self.path[-1], n), self.path)
        return dense, spline(dense)


def attach(atoms: Atoms, evaluation: Evaluation) -> None:
    """Give an image its energy and forces."""
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms.calc = SinglePointCalculator(
        atoms, energy=evaluation.energy, forces=evaluation.forces, energies=evaluation.energies
    )


def batched(images: list[Atoms], potential: BatchPotential, spring: float) -> Any:
    """ASE's NEB that evaluates all images that have moved at once; ``spring`` in eV/Å^2."""
    from ase.mep import NEB

    free = is_free_molecule(images[0])

    class BatchedNEB(NEB):
        def get_forces(self) -> np.ndarray:
            moved = [
                image
                for image in self.images[1:-1]
                if image.calc is None or image.calc.check_state(image)
            ]
            if moved:
                for image, evaluation in zip(moved, potential.evaluate(moved), strict=True):
                    attach(image, evaluation)
            forces = np.asarray(super().get_forces())
            if free:
                images = self.images[1:-1]
                parts = np.split(forces, len(images))
                forces = np.concatenate(
                    [
                        without_rigid_motion(image.positions, part)
                        for image, part in zip(images, parts, strict=True)
                    ]
                )
            return forces

    return BatchedNEB(images, k=spring, method="improvedtangent")


def without_rigid_motion(positions: np.ndarray, forces: np.ndarray) -> np.ndarray:
    """Forces ``(n, 3)`` without the net force and torque on a molecule.

    Energies cause neither, but springs and tangents do: they would rotate images against each
    other, and the band would never converge.
    """
    arms = positions - positions.mean(axis=0)
    turns = [np.cross(axis, arms).ravel() for axis in np.eye(3)]
    shifts = [np.tile(axis, len(positions)) for axis in np.eye(3)]
    u, values, _ = np.linalg.svd(np.array([*shifts, *turns]).T, full_matrices=False)
    rigid = u[:, values > 1e-6 * values.max()]  # a linear molecule has two rotations
    flat = forces.ravel()
    return np.asarray(flat - rigid @ (rigid.T @ flat)).reshape(-1, 3)


def diverges(forces: Sequence[float]) -> str | None:
    """Why a band with these largest forces, eV/Å, one for each step, diverges; None if it does not.

    The forces of a converging band rise when it enters a stiff region or when an image begins to
    climb, and fall again within a few steps.
    """
    if len(forces) <= PATIENCE:
        return None
    least, recent = min(forces[:-PATIENCE]), min(forces[-PATIENCE:])
    if recent < max(LARGE_FORCE, DIVERGED * least):
        return None
    return (
        f"the band diverges: its largest force grew from {least:.3g} to {forces[-1]:.3g} eV/Å and "
        f"did not fall in {PATIENCE} steps; use more images, or a structure on the path as an end"
    )


def top_is_between(neb: Any) -> bool:
    """Whether the highest image is neither the first nor the last, so that it may climb."""
    return bool(0 < np.argmax(neb.energies) < len(neb.energies) - 1)
