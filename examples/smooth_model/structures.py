"""Labelled structures for the distillation of `dpa3-openlam-smooth`.

python structures.py OUT.extxyz [--scale 1.0] [--seed 1]

Crystals, surfaces, molecules, liquids and dimers, with energies, forces and stresses of the
embedded model with all neighbours. Crystals are known compounds of simple structure types and
invented ones. They are strained and rattled at volumes around the one where the model says that
their energy is lowest.
"""

import argparse
from collections.abc import Iterator

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.collections import g2
from ase.data import atomic_numbers, covalent_radii
from ase.io import write
from ase.stress import full_3x3_to_voigt_6_stress

from dpa3sim import Potential
from dpa3sim.common.errors import Dpa3simError

ALKALI, EARTH = "Li Na K Rb Cs".split(), "Mg Ca Sr Ba".split()
HALOGENS, CHALCOGENS = "F Cl Br I".split(), "O S Se Te".split()
RARE = "Sc Y La Ce Nd Gd Er Lu".split()
EARLY, LATE = "Ti Zr Hf V Nb Ta Cr Mo W".split(), "Mn Fe Co Ni Cu Zn".split()
NOBLE = "Cu Ag Au Pd Pt Rh Ir Ni Co".split()

# Structure type: pairs of lists of elements whose compounds have it, or nearly.
BINARIES = {
    "rocksalt": [
        (ALKALI, HALOGENS),
        ([*EARTH, "Mn", "Fe", "Co", "Ni", "Cd", "Pb", "Sn", "Eu", "Yb"], CHALCOGENS),
        ([*RARE, *EARLY], ["C", "N", "P", "As", "Sb"]),
        (["Ag"], ["F", "Cl", "Br"]),
    ],
    "zincblende": [
        (["B", "Al", "Ga", "In"], ["N", "P", "As", "Sb"]),
        (["Be", "Mg", "Zn", "Cd", "Hg"], CHALCOGENS),
        (["Cu", "Ag"], ["Cl", "Br", "I"]),
        (["Si", "Ge"], ["C"]),
    ],
    "wurtzite": [
        (["B", "Al", "Ga", "In"], ["N", "P", "As"]),
        (["Be", "Zn", "Cd", "Mg"], CHALCOGENS),
        (["Cu", "Ag"], ["I", "Br"]),
    ],
    "cesiumchloride": [
        (["Cs", "Tl"], ["Cl", "Br", "I"]),
        (["Ni", "Fe", "Co", "Ru", "Pd"], ["Al", "Ti", "Ga", "Zr", "Hf"]),
        (["Cu", "Ag", "Au"], ["Zn", "Mg", "Y", "La", "Cd"]),
    ],
    "fluorite": [
        (["Ca", "Sr", "Ba", "Cd", "Pb"], ["F", "Cl"]),
        (["Zr", "Ce", "Hf", "U", "Th"], ["O"]),
        (["O", "S", "Se", "Te"], ["Li", "Na", "K", "Rb"]),  # antifluorite
        (["Si", "Ge", "Sn"], ["Mg"]),
        (["Al", "Ga", "In"], ["Au", "Pt"]),
    ],
}
PEROVSKITES = [
    ([*EARTH[1:], "Pb"], ["Ti", "Zr", "Hf", "Sn", "Mn", "Fe", "Ru"], ["O"]),
    (["La", "Y", "Gd"], ["Al", "Ga", "Cr", "Mn", "Fe", "Co", "Ni"], ["O"]),
    (["Na", "K"], ["Nb", "Ta"], ["O"]),
    (["K", "Rb", "Cs"], ["Mg", "Ca", "Zn", "Pb", "Sn"], ["F", "Cl", "Br", "I"]),
]
ALLOYS = (NOBLE, ["Al", "Cu", "Ti", "Sn", "Mn", "Zn", "Mg", "Pt", "Ni"])  # L1_2
# Elements in the structure that they have.
COMMON = {
    "diamond": "C Si Ge Sn",
    "fcc": "Al Cu Ag Au Ni Pd Pt Rh Ir Pb Ca Sr",
    "bcc": "Li Na K Rb Ba V Nb Ta Cr Mo W Fe",
    "hcp": "Be Mg Sc Y Ti Zr Hf Co Zn Cd Ru Re",
}
HALF_HEUSLERS = (EARLY[:6], ["Fe", "Co", "Ni"], ["Sn", "Sb", "As", "Ge"])
SCALES = np.linspace(0.92, 1.16, 7)
# Structures from one parent, whose volume takes longer to find.
VARIATIONS = 3
# Shares of the kinds of structures.
KINDS = {
    "common": 0.13,
    "element": 0.11,
    "binary": 0.30,
    "perovskite": 0.08,
    "alloy": 0.05,
    "half-heusler": 0.04,
    "invented": 0.10,
    "molecule": 0.06,
    "liquid": 0.10,
    "dimer": 0.03,
}
TOTAL = 4000
# Largest force, eV/A, and largest component of the stress, eV/A^3.
LARGEST_FORCE, LARGEST_STRESS = 30.0, 0.6


def main() -> None:
    """Write the structures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--scale", type=float, default=1.0, help=f"1 makes {TOTAL} structures")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    potential = Potential(truncate="none")
    found: list[Atoms] = []
    for kind, share in KINDS.items():
        wanted = round(share * TOTAL * options.scale)
        made: list[Atoms] = []
        while len(made) < wanted:
            made += usable(kind, potential, rng)[: wanted - len(made)]
        print(f"{kind}: {len(made)} structures, {sum(map(len, made))} atoms", flush=True)
        found += made
    order = rng.permutation(len(found))
    write(options.out, [found[k] for k in order])


def usable(kind: str, potential: Potential, rng: np.random.Generator) -> list[Atoms]:
    """Draw a few structures of a kind, and label those that have forces like in calculations."""
    drawn = list(variations(kind, potential, rng))
    known = set(potential.model.elements)
    drawn = [atoms for atoms in drawn if set(atoms.get_chemical_symbols()) <= known]
    found = []
    for atoms, out in zip(drawn, potential.evaluate_each(drawn), strict=True):
        if isinstance(out, Dpa3simError) or np.abs(out.forces).max() > LARGEST_FORCE:
            continue
        atoms.info = {"config_type": kind}
        results = {"energy": out.energy, "forces": out.forces}
        if atoms.pbc.all():
            stress = -(out.virial + out.virial.T) / (2 * atoms.get_volume())
            if np.abs(stress).max() > LARGEST_STRESS:
                continue
            results["stress"] = full_3x3_to_voigt_6_stress(stress)
        atoms.calc = SinglePointCalculator(atoms, **results)
        found.append(atoms)
    return found


def variations(kind: str, potential: Potential, rng: np.random.Generator) -> Iterator[Atoms]:
    """Some structures of a kind; none if it cannot be computed."""
    if kind == "dimer":
        yield dimer(potential.model.elements, potential.model.config.descriptor.e_rcut, rng)
    elif kind == "molecule":
        one = molecule(str(rng.choice([x for x in g2.names if len(g2[x]) > 1])))
        yield rattled(one, rng.choice([0.02, 0.05, 0.1]), rng)
    elif kind == "liquid":
        yield liquid(rng)
    else:
        parent = at_lowest_energy(crystal(kind, potential.model.elements, rng), potential)
        for _ in range(0 if parent is None else VARIATIONS):
            yield deformed(parent, rng)


def deformed(parent: Atoms, rng: np.random.Generator) -> Atoms:
    """A crystal at another volume, strained and rattled; some have a vacancy or a surface."""
    atoms = parent.repeat(repetitions(parent, int(rng.choice([4, 8, 12, 16]))))
    if len(atoms) > 2 and rng.random() < 0.1:
        del atoms[int(rng.integers(len(atoms)))]
    if rng.random() < 0.1:
        atoms.center(vacuum=6.0, axis=int(rng.integers(3)))
    # Large changes of volume are rare: most calculations are done near the minimum.
    change = rng.uniform(-0.12, 0.15) if rng.random() < 0.25 else rng.normal(scale=0.03)
    strain = rng.normal(scale=0.015, size=(3, 3))
    factor = (1 + change) ** (1 / 3) * (np.eye(3) + (strain + strain.T) / 2)
    atoms.set_cell(atoms.cell[:] @ factor, scale_atoms=True)
    # Elastic constants and phonons are those of small displacements; liquids have large ones.
    shares = {0.0: 0.1, 0.01: 0.2, 0.03: 0.25, 0.06: 0.2, 0.1: 0.13, 0.2: 0.07, 0.35: 0.05}
    amplitude = rng.choice(list(shares), p=list(shares.values()))
    return rattled(atoms, amplitude, rng)


def rattled(atoms: Atoms, amplitude: float, rng: np.random.Generator) -> Atoms:
    """Displace each coordinate by a normal random number."""
    atoms.positions += rng.normal(scale=amplitude, size=atoms.positions.shape)
    return atoms


def repetitions(atoms: Atoms, least: int) -> tuple[int, ...]:
    """How often to repeat the shortest sides so that there are at least so many atoms."""
    sides, repeats = atoms.cell.lengths(), np.ones(3, dtype=int)
    while len(atoms) * repeats.prod() < least:
        repeats[np.argmin(sides * repeats)] += 1
    return tuple(repeats.tolist())


def at_lowest_energy(atoms: Atoms, potential: Potential) -> Atoms | None:
    """The crystal at the volume where the model says that its energy is lowest."""
    scaled = []
    for factor in SCALES:
        one = atoms.copy()
        one.set_cell(atoms.cell[:] * factor, scale_atoms=True)
        scaled.append(one)
    outcomes = potential.evaluate_each(scaled)
    energies = [np.inf if isinstance(x, Dpa3simError) else x.energy for x in outcomes]
    return scaled[int(np.argmin(energies))] if np.isfinite(energies).any() else None


def radius(symbol: str) -> float:
    """The covalent radius, A, but not as small as that of H, which forms no dense crystals."""
    return max(float(covalent_radii[atomic_numbers[symbol]]), 0.65)


def pick(names: list[str], rng: np.random.Generator) -> str:
    """One of them."""
    return str(rng.choice(names))


def crystal(kind: str, elements: tuple[str, ...], rng: np.random.Generator) -> Atoms:
    """An ideal crystal, with a lattice constant from covalent radii."""
    known = [x for x in elements if atomic_numbers[x] < len(covalent_radii)]
    if kind in ("element", "common"):
        symbol, structure = pick(known, rng), pick(["fcc", "bcc", "hcp", "diamond", "sc"], rng)
        if kind == "common":
            structure = pick(list(COMMON), rng)
            symbol = pick(COMMON[structure].split(), rng)
        distance = 2 * radius(symbol)
        shares = {"fcc": 0.7071, "bcc": 0.866, "hcp": 1.0, "diamond": 0.433, "sc": 1.0}
        return bulk(symbol, structure, a=distance / shares[structure])
    if kind == "binary":
        structure = pick(list(BINARIES), rng)
        groups = BINARIES[structure]
        first, second = (pick(x, rng) for x in groups[int(rng.integers(len(groups)))])
        return binary(structure, first, second)
    if kind == "perovskite":
        return perovskite(*(pick(x, rng) for x in PEROVSKITES[int(rng.integers(len(PEROVSKITES)))]))
    if kind == "alloy":
        major, minor = (pick(x, rng) for x in ALLOYS)
        atoms = bulk(major, "fcc", a=2 * radius(major) / 0.7071, cubic=True)
        atoms.symbols[0] = minor
        return atoms
    if kind == "half-heusler":
        names = [pick(x, rng) for x in HALF_HEUSLERS]
        atoms = binary("zincblende", names[1], names[2])
        # The third element fills the octahedral holes.
        return atoms + Atoms(names[0], [atoms.cell[:].sum(axis=0) / 2])
    names = [pick(known, rng) for _ in range(3)]
    if rng.random() < 0.4:
        return perovskite(*names)
    return binary(pick(list(BINARIES), rng), names[0], names[1])


def binary(structure: str, first: str, second: str) -> Atoms:
    """A compound of two elements."""
    bond = radius(first) + radius(second)
    if structure == "wurtzite":
        return bulk(first + second, structure, a=1.633 * bond)
    share = {"rocksalt": 0.5, "cesiumchloride": 0.866}.get(structure, 0.433)
    name = f"{first}{second}2" if structure == "fluorite" else first + second
    return bulk(name, structure, a=bond / share)


def perovskite(corner: str, centre: str, faces: str) -> Atoms:
    """A cubic perovskite."""
    a = max(2 * (radius(centre) + radius(faces)), 1.414 * (radius(corner) + radius(faces)))
    places = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    order = [corner, centre, faces, faces, faces]
    return Atoms(order, scaled_positions=places, cell=[a, a, a], pbc=True)


def liquid(rng: np.random.Generator) -> Atoms:
    """Some small molecules in a cell of about the density of a liquid, none too close."""
    names = ["H2O", "H2O", "H2O", "NH3", "CH4", "CO2", "CH3OH", "HF", "N2", "CH3CN", "HCOOH"]
    one = molecule(pick(names, rng))
    number = max(2, int(24 / len(one)))
    volume = {"H2O": 30.0, "HF": 27.0, "NH3": 41.0, "N2": 55.0}.get(one.symbols.formula.format(), 0)
    volume = volume or 12.0 * len(one)
    side = (number * volume * rng.uniform(0.85, 1.3)) ** (1 / 3)
    while True:
        atoms = Atoms(cell=[side] * 3, pbc=True)
        for _ in range(number):
            for _ in range(200):
                more = one.copy()
                more.rotate(*rng.uniform(0, 180, 1), v=rng.normal(size=3), center="COM")
                more.translate(rng.uniform(0, side, 3))
                trial = atoms + more
                pairs = trial.get_all_distances(mic=True)[: len(atoms), len(atoms) :]
                if pairs.size == 0 or pairs.min() > 1.5:
                    atoms = trial
                    break
            else:
                break
        else:
            return rattled(atoms, rng.choice([0.02, 0.06]), rng)
        side *= 1.05


def dimer(elements: tuple[str, ...], cutoff: float, rng: np.random.Generator) -> Atoms:
    """Two atoms, from their repulsion to the cutoff."""
    names = [
        pick([x for x in elements if atomic_numbers[x] < len(covalent_radii)], rng) for _ in "12"
    ]
    bond = sum(map(radius, names))
    return Atoms(names, [[0, 0, 0], [rng.uniform(0.65 * bond, cutoff), 0, 0]])


if __name__ == "__main__":
    main()
