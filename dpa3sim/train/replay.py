"""Structures that a model must not forget while it learns others, labelled by the model itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii

from dpa3sim.common.errors import Dpa3simError, InputError
from dpa3sim.potential import Potential
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.structures.sources import entries
from dpa3sim.structures.system import System
from dpa3sim.train.data.frames import Frame, Frames

# Crystals of one, two and three elements by ASE's names; the fraction of the cubic lattice constant
# that neighbours are apart.
_ELEMENTS = {"fcc": 0.7071, "bcc": 0.8660, "sc": 1.0, "diamond": 0.4330}
_COMPOUNDS = {"rocksalt": 0.5, "cesiumchloride": 0.8660, "zincblende": 0.4330}
_FLUORITE, _PEROVSKITE = "fluorite", "perovskite"
# Those of several elements are drawn more often, because there are more of them.
_KINDS = (*_ELEMENTS, *_COMPOUNDS, *_COMPOUNDS, _FLUORITE, _PEROVSKITE, _PEROVSKITE)
# The share of pairs of atoms, which keep the repulsion at short distances.
_PAIRS = 0.1
# Changes of the lattice constant among which the lowest energy is looked for.
_SCALES = np.linspace(0.85, 1.25, 9)
# Largest strains, and displacements of atoms as shares of the shortest distance.
_STRAIN, _RATTLES = 0.04, (0.01, 0.03, 0.08)
# Forces (eV/Å) and stresses (eV/Å^3) beyond these are of no structure that anybody computes.
# Symmetric crystals have no forces, even where the energy of a model has a hole.
_LARGEST_FORCE, _LARGEST_STRESS = 30.0, 0.6
ORIGIN = "replay"


def replayed(potential: Potential, count: int, seed: int) -> Frames:
    """Strained and rattled crystals and pairs of the elements of a model, with its own labels.

    The crystals are simple ones of one to three elements, at the volume where the model says that
    their energy is lowest. Structures that the model cannot compute, or with forces above 30 eV/Å
    or stresses above 0.6 eV/Å^3, are replaced by others.

    Args:
        potential: the model. count: how many structures. seed: of the choice.

    Raises:
        InputError: the model's types are not elements, or hardly any structure can be computed.
    """
    symbols = [x for x in potential.model.elements if atomic_numbers[x] < len(covalent_radii)]
    if not symbols:
        raise InputError("replay=auto needs a model whose types are elements; name files instead")
    rng = np.random.default_rng(seed)
    found: list[Frame] = []
    attempts = 0
    while len(found) < count:
        if attempts > 20 * count:
            raise InputError("replay=auto: the model can compute hardly any of the structures")
        wanted = min(16, count - len(found))
        attempts += wanted
        atoms = [_structure(potential, symbols, rng) for _ in range(wanted)]
        outcomes = potential.evaluate_each(atoms)
        for one, outcome in zip(atoms, outcomes, strict=True):
            if _is_usable(one, outcome):
                found.append(_frame(one, outcome, f"{ORIGIN}, frame {len(found)}"))
    return Frames.from_frames(found)


def labelled(potential: Potential, files: Sequence[str]) -> Frames:
    """The structures of some files with the labels of a model; labels in the files are ignored.

    Raises:
        InputError: a file cannot be read, or has a structure that the model cannot compute.
    """
    names, structures = [], []
    for entry in entries(files):
        if isinstance(entry.atoms, InputError):
            raise entry.atoms
        names.append(entry.origin)
        structures.append(entry.atoms)
    outcomes = potential.evaluate(structures)
    return Frames.from_frames(map(_frame, structures, outcomes, names))


def _structure(potential: Potential, symbols: Sequence[str], rng: np.random.Generator) -> Atoms:
    if rng.random() < _PAIRS:
        return _pair(symbols, rng)
    atoms = _crystal(str(rng.choice(_KINDS)), symbols, rng)
    scaled = [_scaled(atoms, factor) for factor in _SCALES]
    energies = [
        x.energy if isinstance(x, Evaluation) else np.inf for x in potential.evaluate_each(scaled)
    ]
    atoms = scaled[int(np.argmin(energies))]
    shortest = float(min(covalent_radii[atoms.numbers]) * 2)
    strain = rng.uniform(-_STRAIN, _STRAIN, (3, 3))
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
    atoms.positions += rng.normal(scale=shortest * rng.choice(_RATTLES), size=(len(atoms), 3))
    return atoms


def _pair(symbols: Sequence[str], rng: np.random.Generator) -> Atoms:
    """Two atoms, from deep in their repulsion to twice their bond length."""
    names = [str(x) for x in rng.choice(symbols, 2)]
    bond = sum(covalent_radii[atomic_numbers[x]] for x in names)
    return Atoms(names, [[0, 0, 0], [bond * rng.uniform(0.6, 2.0), 0, 0]])


def _crystal(kind: str, symbols: Sequence[str], rng: np.random.Generator) -> Atoms:
    names = [str(x) for x in rng.choice(symbols, 3, replace=len(symbols) < 3)]
    radii = [covalent_radii[atomic_numbers[x]] for x in names]
    if kind in _ELEMENTS:
        return bulk(names[0], kind, a=2 * radii[0] / _ELEMENTS[kind], cubic=True)
    if kind in _COMPOUNDS:
        a = (radii[0] + radii[1]) / _COMPOUNDS[kind]
        return bulk("".join(names[:2]), kind, a=a, cubic=kind != "zincblende")
    if kind == _FLUORITE:
        a = (radii[0] + radii[1]) / 0.4330
        return bulk(f"{names[0]}{names[1]}2", kind, a=a)
    corner, centre, faces = names
    a = max(2 * (radii[1] + radii[2]), np.sqrt(2) * (radii[0] + radii[2]))
    places = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    order = [corner, centre, faces, faces, faces]
    return Atoms(order, scaled_positions=places, cell=[a, a, a], pbc=True)


def _scaled(atoms: Atoms, factor: float) -> Atoms:
    scaled = atoms.copy()
    scaled.set_cell(atoms.cell[:] * factor, scale_atoms=True)
    return scaled


def _is_usable(atoms: Atoms, outcome: Evaluation | Dpa3simError) -> bool:
    if not isinstance(outcome, Evaluation) or np.abs(outcome.forces).max() > _LARGEST_FORCE:
        return False
    return not atoms.pbc.all() or bool(
        np.abs(outcome.virial).max() <= _LARGEST_STRESS * atoms.get_volume()
    )


def _frame(atoms: Atoms, outcome: Evaluation | Dpa3simError, origin: str) -> Frame:
    assert isinstance(outcome, Evaluation)
    return Frame(
        system=System.from_atoms(atoms),
        energy=outcome.energy,
        forces=outcome.forces,
        virial=_virial(outcome) if atoms.pbc.all() else None,
        atomic_energies=None,
        weight=1.0,
        origin=origin,
    )


def _virial(outcome: Evaluation) -> np.ndarray:
    found: np.ndarray = (outcome.virial + outcome.virial.T) / 2
    return found
