"""The path of a band structure through the Brillouin zone, in the basis of any cell.

Special points and path are seekpath's (Hinuma et al., Comput. Mater. Sci. 128, 140 (2017)).
Their coordinates depend on the cell: they are stored as Cartesian ones, and expressed in any
requested cell (docs/methods.md#paths-of-band-structures).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..crystals.cells import spglib_cell

if TYPE_CHECKING:
    from ase import Atoms
    from phonopy import Phonopy

# Distance of wave vectors on the path, 1/Å without 2π.
SPACING = 0.004


@dataclass(frozen=True)
class BandPath:
    """Straight lines between special points.

    Attributes:
        points: Cartesian wave vector, 1/Å without 2π, of each label.
        segments: labels of the ends of each line.
    """

    points: dict[str, np.ndarray]
    segments: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, atoms: Atoms, symprec: float) -> BandPath:
        """The path for a crystal, in its orientation, whatever its cell."""
        import seekpath

        structure = spglib_cell(atoms)
        with warnings.catch_warnings():
            # seekpath warns of supercells and of edge cases of lattices, which do no harm here.
            warnings.simplefilter("ignore")
            found = seekpath.get_path_orig_cell(structure, symprec=symprec)
        reciprocal = np.linalg.inv(atoms.cell[:]).T
        points = {
            _label(name): np.asarray(coordinates) @ reciprocal
            for name, coordinates in found["point_coords"].items()
        }
        return cls(points, tuple((_label(a), _label(b)) for a, b in found["path"]))

    def coordinates(self, cell: np.ndarray) -> dict[str, np.ndarray]:
        """The points in reciprocal vectors of a cell, whose vectors are rows."""
        return {name: point @ cell.T for name, point in self.points.items()}

    def run(self, phonon: Phonopy) -> None:
        """Compute bands and group velocities along the path into a phonopy object."""
        phonon.run_band_structure(
            self.lines(phonon.primitive.cell),
            with_group_velocities=True,
            path_connections=self.connections(),
            labels=self.labels(),
        )

    def lines(self, cell: np.ndarray) -> list[np.ndarray]:
        """Wave vectors ``(n, 3)`` of every line in reciprocal vectors of a cell."""
        at = self.coordinates(cell)
        return [self._line(a, b, at) for a, b in self.segments]

    def connections(self) -> list[bool]:
        """For every line, whether the next one starts where it ends."""
        following = [*self.segments[1:], ("", "")]
        return [line[1] == after[0] for line, after in zip(self.segments, following, strict=True)]

    def labels(self) -> list[str]:
        """A label for each end of a line; two connected lines share one."""
        labels = [self.segments[0][0]]
        connected = [True, *self.connections()]
        for (start, end), joined in zip(self.segments, connected, strict=False):
            labels += [end] if joined else [start, end]
        return labels

    def to_dict(self, input_cell: np.ndarray, primitive_cell: np.ndarray) -> dict[str, Any]:
        """JSON-ready: the lines, and every point in each basis."""
        of_input, of_primitive = self.coordinates(input_cell), self.coordinates(primitive_cell)
        return {
            "band_path": [f"{a}-{b}" for a, b in self.segments],
            "special_points": {
                name: {
                    "input_cell": of_input[name].round(10).tolist(),
                    "primitive_cell": of_primitive[name].round(10).tolist(),
                    "cartesian_per_A": point.round(10).tolist(),
                }
                for name, point in self.points.items()
            },
        }

    def _line(self, start: str, end: str, at: dict[str, np.ndarray]) -> np.ndarray:
        length = float(np.linalg.norm(self.points[end] - self.points[start]))
        return np.linspace(at[start], at[end], max(2, round(length / SPACING) + 1))


def _label(name: str) -> str:
    return "Γ" if name == "GAMMA" else name
