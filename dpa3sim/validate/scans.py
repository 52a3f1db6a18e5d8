"""Whether the energy jumps along paths: it must change by what its slope says.

Between neighbouring points of a path the change of the energy is compared with the trapezium of its
slopes. For a smooth energy the difference falls with the third power of the distance of the points;
that of a step stays. The intervals that differ most are halved until only a step can be left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.protocols.base import Event, Progress, Stage
from dpa3sim.structures.inspection import pairs
from dpa3sim.validate.check import Findings
from dpa3sim.validate.probes import moving, probes, rattled

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.evaluation import Evaluation
    from dpa3sim.potential.interface import BatchPotential
    from dpa3sim.validate.settings import ValidateSettings

POINTS, HALVINGS, CANDIDATES = 41, 18, 2
# Lengths are scaled, and an atom is moved (Å), by at most this, both ways.
SCALE, MOVE = 0.08, 0.6
# Smaller steps, meV/atom, are rounding.
SMALLEST = {"float64": 1e-3, "float32": 0.3}
# Distances this close to a cutoff (Å) are at it.
AT = 1e-4


@dataclass(frozen=True)
class Path:
    """Structures along a coordinate.

    Attributes:
        name: for people. at: the structure at a value of the coordinate.
        slope: derivative of the energy by the coordinate, from a structure's evaluation.
        reach: values from ``-reach`` to ``reach``.
    """

    name: str
    at: Callable[[float], Atoms]
    slope: Callable[[float, Evaluation], float]
    reach: float


@dataclass
class Interval:
    """A part of a path with energies (eV) and slopes at its ends."""

    path: Path
    ends: tuple[float, float]
    energies: tuple[float, float]
    slopes: tuple[float, float]

    @property
    def step(self) -> float:
        """What the slopes do not explain of the change of the energy, eV."""
        width = self.ends[1] - self.ends[0]
        return self.energies[1] - self.energies[0] - width * sum(self.slopes) / 2

    @property
    def middle(self) -> float:
        """The coordinate of the middle."""
        return sum(self.ends) / 2

    def halved(self, out: Evaluation) -> Interval:
        """The half that is less like a smooth energy, with the evaluation of the middle."""
        x, e, slope = self.middle, out.energy, self.path.slope(self.middle, out)
        low = Interval(self.path, (self.ends[0], x), (self.energies[0], e), (self.slopes[0], slope))
        high = Interval(
            self.path, (x, self.ends[1]), (e, self.energies[1]), (slope, self.slopes[1])
        )
        return max(low, high, key=lambda part: abs(part.step))


def scaling(name: str, atoms: Atoms) -> Path:
    """All lengths of a crystal are scaled."""

    def at(x: float) -> Atoms:
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell[:] * (1 + x), scale_atoms=True)
        return scaled

    def slope(x: float, out: Evaluation) -> float:
        return -float(np.trace(out.virial)) / (1 + x)

    return Path(f"{name}, lengths scaled", at, slope, SCALE)


def displacement(name: str, atoms: Atoms) -> Path:
    """One atom of a disturbed structure is moved along a line."""
    start = rattled(atoms)
    direction = np.array([2.0, 1.0, 0.5]) / np.linalg.norm([2.0, 1.0, 0.5])

    def at(x: float) -> Atoms:
        moved = start.copy()
        moved.positions[0] += x * direction
        return moved

    def slope(x: float, out: Evaluation) -> float:
        return -float(out.forces[0] @ direction)

    return Path(f"{name}, an atom moved", at, slope, MOVE)


def paths(elements: Sequence[str]) -> list[Path]:
    """All paths of a model of these elements."""
    whole = probes(elements, primitive=True)
    return [
        *(scaling(name, atoms) for name, atoms in whole.items()),
        *(displacement(name, atoms) for name, atoms in moving(elements).items()),
    ]


def stages(elements: Sequence[str], settings: ValidateSettings, cutoff: float) -> list[Stage]:
    """See :class:`~dpa3sim.validate.check.Check`."""
    starts = [path.at(0.0) for path in paths(elements)]
    if not starts:
        return []
    sizes = [len(atoms) for atoms in starts]
    return [
        Stage("scans", [n for n in sizes for _ in range(POINTS)], starts[0]),
        Stage("scans, halved", [n for n in sizes for _ in range(CANDIDATES * HALVINGS)], starts[0]),
    ]


def run(potential: BatchPotential, settings: ValidateSettings, progress: Progress) -> Findings:
    """See :class:`~dpa3sim.validate.check.Check`."""
    rows, warnings = [], []
    for path, steps in found_steps(paths(potential.model.elements), potential, progress):
        heights = [step["step_meV_per_atom"] for step in steps]
        largest = max(heights, default=0.0)
        rows.append({"scan": path.name, "largest_step_meV_per_atom": largest, "steps": steps})
        if steps:
            worst = steps[heights.index(largest)]
            where = f", where {worst['where']}" if worst["where"] else ""
            warnings.append(
                f"{path.name}: the energy jumps by {largest:.3g} meV/atom at {worst['at']:+.5f}"
                f"{where}"
            )
    return Findings({"scans": rows}, tuple(warnings))


def found_steps(
    tried: Sequence[Path], potential: BatchPotential, progress: Progress
) -> list[tuple[Path, list[dict[str, Any]]]]:
    """The steps along each path, as far as the largest ones go."""
    doubtful: list[Interval] = []
    for done, path in enumerate(tried):
        doubtful += _doubtful(path, potential)
        progress(Event("scans", path.name, done + 1, len(tried)))
    for done in range(HALVINGS):
        middles = potential.evaluate([part.path.at(part.middle) for part in doubtful])
        doubtful = [part.halved(out) for part, out in zip(doubtful, middles, strict=True)]
        progress(Event("scans", f"halved {done + 1} times", done + 1, HALVINGS))
    found = []
    for path in tried:
        mine = [_described(part, potential) for part in doubtful if part.path is path]
        limit = SMALLEST[potential.dtype]
        steps = [step for step in mine if step["step_meV_per_atom"] > limit]
        found.append((path, sorted(steps, key=lambda step: step["at"])))
    return found


def _doubtful(path: Path, potential: BatchPotential) -> list[Interval]:
    """The intervals between points of a path that its slopes explain least."""
    x = np.linspace(-path.reach, path.reach, POINTS)
    outs = potential.evaluate([path.at(float(value)) for value in x])
    slopes = [path.slope(float(value), out) for value, out in zip(x, outs, strict=True)]
    parts = [
        Interval(
            path,
            (float(x[k]), float(x[k + 1])),
            (outs[k].energy, outs[k + 1].energy),
            (slopes[k], slopes[k + 1]),
        )
        for k in range(POINTS - 1)
    ]
    return sorted(parts, key=lambda part: -abs(part.step))[:CANDIDATES]


def _described(part: Interval, potential: BatchPotential) -> dict[str, Any]:
    """A step in numbers, and which cutoff of the model a pair of atoms crosses there."""
    atoms = part.path.at(part.middle)
    descriptor = potential.model.config.descriptor
    where = ""
    for name, cutoff in (("of angles ", descriptor.a_rcut), ("", descriptor.e_rcut)):
        distances = pairs(atoms.positions, atoms.cell[:], atoms.pbc, cutoff + AT)[2]
        if (np.abs(distances - cutoff) < AT).any():
            where = f"a pair of atoms crosses the cutoff {name}({cutoff:g} Å)"
            break
    return {
        "at": part.middle,
        "step_meV_per_atom": 1e3 * abs(part.step) / len(atoms),
        "where": where,
    }
