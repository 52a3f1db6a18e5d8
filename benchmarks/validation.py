"""Lattice, elastic constants and optical phonons: measured, by dpa3sim, and by matcalc.

    python benchmarks/validation.py                   # computes what docs/validation.json lacks
    python benchmarks/validation.py --only Si,MgO     # of these crystals
    python benchmarks/validation.py --tables          # only writes the tables

The embedded model in float64. dpa3sim has its default settings; matcalc (0.7, where it is
installed) is given dpa3sim's ASE calculator, first with its own default settings, then with those
of dpa3sim, one after the other. Every result is saved when it is there, and not computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from peers import ROOT, marks, write_report

from dpa3sim import DPA3Calculator, Potential
from dpa3sim.protocols import elastic, phonon
from dpa3sim.protocols.crystals.cells import conventional_cell
from dpa3sim.validate.crystals import constants, lattice
from dpa3sim.validate.literature import CHECKED, CRYSTALS, SOURCES, THZ

REPORT = "literature"
START, END = marks(REPORT)
# Diamond also without the selection limit, which cuts equal distances there.
ALL_NEIGHBOURS = "C, all neighbours"
NAMES = (*CRYSTALS, ALL_NEIGHBOURS)
# Optimizer steps of a relaxation by matcalc where its thresholds are those of dpa3sim.
STEPS = 1000
# dpa3sim's strains for matcalc: its shears are tensor components, half of Voigt's.
NORMAL = (-0.005, -0.0025, 0.0025, 0.005)
SHEAR = (-0.0025, -0.00125, 0.00125, 0.0025)
TIGHT = {"fmax": 1e-5, "relax_calc_kwargs": {"max_steps": STEPS}}
SMALL = TIGHT | {"norm_strains": NORMAL, "shear_strains": SHEAR}
# From the default settings of matcalc to those of dpa3sim.
MATCALC_ELASTIC: dict[str, dict[str, Any]] = {
    "matcalc": {},
    "matcalc tight": TIGHT,
    "matcalc small": SMALL,
    "matcalc same": SMALL | {"relax_deformed_structures": True},
}
# Crystals whose phonons matcalc computes also with the settings of dpa3sim.
SAME = ("Cu", "W", "Si", "MgO")
# Wave vectors, of those that fit the supercell, at which frequencies are compared.
POINTS = 30
Results = dict[str, Any]


def formula(name: str) -> str:
    return name.partition(",")[0]


# -- dpa3sim -------------------------------------------------------------------------------------


def our_elastic(name: str, potential: Potential) -> Results:
    crystal = CRYSTALS[formula(name)]
    result = elastic.run(crystal.atoms(formula(name)), potential)
    assert result.relaxed is not None
    data = result.to_dict()
    return {
        "lattice": lattice(data["conventional_lengths_A"]),
        "relaxed": constants(CRYSTALS[formula(name)], data["elastic_tensor_ieee_GPa"]),
        "clamped": constants(CRYSTALS[formula(name)], data["elastic_tensor_clamped_ieee_GPa"]),
        "error": float(result.relaxed.error.max()),
        "converged": result.converged,
        "warnings": list(result.warnings),
    }


def our_phonon(name: str, potential: Potential) -> Results:
    """Frequencies at Γ, and the modes among them, with what matcalc needs for the same."""
    crystal = CRYSTALS[formula(name)]
    result = phonon.run(crystal.atoms(formula(name)), potential)
    points, frequencies = result.crystal.commensurate()
    some = slice(None, None, max(1, len(points) // POINTS))
    unit = result.crystal.atoms
    data = result.to_dict()
    return {
        "frequencies": data["frequencies_gamma_THz"],
        "modes": [[m.irrep, m.degeneracy, m.acoustic] for m in result.modes],
        "n_atoms": data["n_atoms_supercell"],
        "n_displacements": data["n_displacements"],
        "lowest": float(frequencies.min()),
        "verdict": data["verdict"],
        "unit": [unit.get_chemical_symbols(), unit.cell.tolist(), unit.positions.tolist()],
        "matrix": np.asarray(result.phonon.supercell_matrix).tolist(),
        "points": points[some].tolist(),
        "frequencies_points": frequencies[some].tolist(),
        "warnings": list(result.warnings),
    }


# -- matcalc -------------------------------------------------------------------------------------


def matcalc_elastic(name: str, potential: Potential, **options: Any) -> Results:
    from matcalc import ElasticityCalc
    from pymatgen.core.elasticity import ElasticTensor
    from pymatgen.io.ase import AseAtomsAdaptor

    calculator = ElasticityCalc(DPA3Calculator(potential), units_GPa=True, **options)
    result = calculator.calc(CRYSTALS[formula(name)].atoms(formula(name)))
    relaxed = AseAtomsAdaptor.get_atoms(result["final_structure"])
    cell = conventional_cell(relaxed, 0.05)
    assert cell is not None
    return {
        "lattice": lattice(cell[:3]),
        "constants": constants(
            CRYSTALS[formula(name)], ElasticTensor(result["elastic_tensor"]).voigt
        ),
        "max_force": float(result["max_force"]),
        "largest_stress": float(np.abs(result["stress"]).max() * 160.21766208),
    }


def matcalc_phonon(name: str, potential: Potential) -> Results:
    from matcalc import PhononCalc

    calculator = PhononCalc(DPA3Calculator(potential), write_phonon=False)
    result = calculator.calc(CRYSTALS[formula(name)].atoms(formula(name)))
    found = result["phonon"]
    return {
        "frequencies": found.run_qpoints([[0, 0, 0]]).frequencies[0].tolist(),
        "n_atoms": len(found.supercell),
        "n_displacements": len(result["disp_supercells"]),
    }


def matcalc_phonon_same(name: str, potential: Potential, ours: Results) -> Results:
    """Our relaxed cell, supercell and displacement; without and with symmetrized constants."""
    from ase import Atoms
    from matcalc import PhononCalc

    symbols, cell, positions = ours["unit"]
    result = PhononCalc(
        DPA3Calculator(potential),
        atom_disp=0.01,
        supercell_matrix=ours["matrix"],
        relax_structure=False,
        write_phonon=False,
    ).calc(Atoms(symbols, positions, cell=cell, pbc=True))
    found = result["phonon"]
    expected = np.array(ours["frequencies_points"])

    def difference() -> float:
        return float(np.abs(found.run_qpoints(ours["points"]).frequencies - expected).max())

    raw = difference()
    found.symmetrize_force_constants(level=10)
    return {"raw": raw, "symmetrized": difference(), "highest": float(expected.max())}


# -- all of it -----------------------------------------------------------------------------------


def tasks(with_matcalc: bool) -> dict[str, Callable[[str, Potential, Results], Results]]:
    """What is computed of a crystal, by its key in the results."""
    found: dict[str, Callable[[str, Potential, Results], Results]] = {
        "elastic": lambda name, potential, _: our_elastic(name, potential),
        "phonon": lambda name, potential, _: our_phonon(name, potential),
    }
    if not with_matcalc:
        return found
    for key, options in MATCALC_ELASTIC.items():

        def run(name: str, potential: Potential, _: Results, options: Any = options) -> Results:
            return matcalc_elastic(name, potential, **options)

        found[f"{key} elastic"] = run
    found["matcalc phonon"] = lambda name, potential, _: matcalc_phonon(name, potential)
    found["matcalc same phonon"] = lambda name, potential, known: matcalc_phonon_same(
        name, potential, known["phonon"]
    )
    return found


def compute(path: Path, names: list[str], with_matcalc: bool) -> None:
    """Fill the file of results."""
    results: Results = json.loads(path.read_text()) if path.is_file() else {}
    results["versions"] = {
        name: version(name) for name in ("torch", "ase", "phonopy") + ("matcalc",) * with_matcalc
    }
    potentials: dict[bool, Potential] = {}
    for key, task in tasks(with_matcalc).items():
        for name in names:
            known = results.setdefault(name, {})
            if key in known or not wanted(name, key):
                continue
            everything = name == ALL_NEIGHBOURS
            if everything not in potentials:
                truncate = "none" if everything else "deepmd"
                potentials[everything] = Potential(dtype="float64", truncate=truncate)
            start = time.perf_counter()
            try:
                known[key] = rounded(task(name, potentials[everything], known))
            except RuntimeError as error:  # matcalc's word for what did not converge
                known[key] = {"failed": str(error)}
            seconds = time.perf_counter() - start
            print(f"{name}: {key}, {seconds:.1f} s", file=sys.stderr, flush=True)
            path.write_text(json.dumps(results, ensure_ascii=False) + "\n", encoding="utf-8")


def wanted(name: str, key: str) -> bool:
    """Whether a result belongs to the tables: phonons where there are optical modes."""
    if not key.endswith("phonon") or name in SAME:
        return True
    return CRYSTALS[formula(name)].mode is not None and key != "matcalc same phonon"


def rounded(value: Any) -> Any:
    """Numbers to nine digits, which is more than they mean; all of those of a structure.

    A shift of 1e-9 Å of a sublattice leaves 1e-7 eV/Å on all of its atoms, and over 1e-4 THz.
    """
    if isinstance(value, dict):
        return {key: v if key == "unit" else rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


# -- the tables ----------------------------------------------------------------------------------


def against_measured(results: Results) -> list[str]:
    """dpa3sim, and in brackets what was measured, and the deviation from it."""
    lines = [
        "| crystal | a (Å) | C11 (GPa) | C12 (GPa) | C44 (GPa) | optical mode at Γ (THz) "
        "| sources |",
        "|---|---|---|---|---|---|---|",
    ]
    keys = list(SOURCES)
    deviations: list[list[float]] = [[], [], [], [], []]
    for name, known in results.items():
        crystal = CRYSTALS[formula(name)]
        pairs = [(known["elastic"]["lattice"][0], crystal.lattice[0], 3)]
        for c in ("C11", "C12", "C44"):
            pairs.append((known["elastic"]["relaxed"][c], crystal.elastic[c], 1))
        if crystal.mode:
            irrep, wave_number = crystal.mode
            value = optical(known["phonon"], known["phonon"]["frequencies"], irrep)
            pairs.append((value, wave_number * THZ, 2))
        if name != ALL_NEIGHBOURS:
            for found, (value, reference, _) in zip(deviations, pairs, strict=False):
                found.append(100 * abs(value / reference - 1))
        cells = [beside(*pair) for pair in pairs]
        cells += [f"{cells.pop()} {crystal.mode[0]}" if crystal.mode else "-"]
        numbers = ", ".join(str(keys.index(key) + 1) for key in crystal.sources)
        lines.append(f"| {name} | {' | '.join(cells)} | {numbers} |")
        if "C33" in crystal.elastic:
            lines.append(f"| | {' | '.join(hexagonal(known['elastic'], name))} | | | |")
    means = [f"{np.mean(found):.1f} %" for found in deviations]
    lines.append(f"| mean absolute deviation | {' | '.join(means)} | |")
    return lines


def hexagonal(ours: Results, name: str) -> list[str]:
    """What a hexagonal crystal has more than a cubic one."""
    crystal = CRYSTALS[name]
    cells = [f"c {beside(ours['lattice'][1], crystal.lattice[1], 3)}"]
    cells += [f"{c} {beside(ours['relaxed'][c], crystal.elastic[c], 1)}" for c in ("C33", "C13")]
    return cells


def beside(value: float, reference: float, digits: int) -> str:
    deviation = 100 * (value / reference - 1)
    return f"{value:.{digits}f} ({reference:.{digits}f}, {deviation:+.1f} %)"


def optical(ours: Results, frequencies: list[float], irrep: str) -> float:
    """Mean frequency of the highest set of modes with this symmetry in ``ours``."""
    found = 0.0
    first = 0
    for label, degeneracy, acoustic in ours["modes"]:
        if label == irrep and not acoustic:
            found = float(np.mean(frequencies[first : first + degeneracy]))
        first += degeneracy
    return found


def against_matcalc(results: Results) -> list[str]:
    """matcalc with its default settings, and in brackets how far it is from dpa3sim."""
    lines = [
        "| crystal | a (Å) | C11 (GPa) | C12 (GPa) | C44 (GPa) | optical mode at Γ (THz) |",
        "|---|---|---|---|---|---|",
    ]
    for name, known in results.items():
        ours, theirs = known["elastic"], known["matcalc elastic"]
        if "failed" in theirs:
            lines.append(f"| {name} | did not converge | | | | |")
            continue
        cells = [f"{theirs['lattice'][0]:.3f} ({percent(theirs, ours, 'lattice')})"]
        for c in ("C11", "C12", "C44"):
            value, expected = theirs["constants"][c], ours["relaxed"][c]
            cells.append(f"{value:.1f} ({100 * (value / expected - 1):+.1f} %)")
        cells.append(optical_difference(name, known))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def percent(theirs: Results, ours: Results, key: str) -> str:
    return f"{100 * (theirs[key][0] / ours[key][0] - 1):+.2f} %"


def optical_difference(name: str, known: Results) -> str:
    mode = CRYSTALS[formula(name)].mode
    if mode is None:
        return "-"
    ours, theirs = (
        optical(known["phonon"], known[key]["frequencies"], mode[0])
        for key in ("phonon", "matcalc phonon")
    )
    return f"{theirs:.3f} ({100 * (theirs / ours - 1):+.2f} %)"


def settings_one_by_one(results: Results) -> list[str]:
    """C11 / C12 / C44 on the way from matcalc's settings to dpa3sim's."""
    lines = [
        "| crystal | matcalc's settings | and fmax 1e-5 | and strains to 0.5 % "
        "| and ions relaxed: all of dpa3sim's | dpa3sim | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, known in results.items():
        ours = known["elastic"]["relaxed"]
        cells = []
        for key in MATCALC_ELASTIC:
            found = known[f"{key} elastic"]
            cells.append("failed" if "failed" in found else triple(found["constants"]))
        cells.append(triple(ours))
        last = known["matcalc same elastic"].get("constants")
        if last:
            largest = max(abs(last[c] - ours[c]) for c in ("C11", "C12", "C44"))
            cells.append(f"{100 * largest / ours['C11']:.2g} %")
        else:
            cells.append("-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def triple(values: Results) -> str:
    return " / ".join(f"{values[c]:.1f}" for c in ("C11", "C12", "C44"))


def same_phonons(results: Results) -> list[str]:
    """The same supercell and displacement through matcalc."""
    lines = [
        "| crystal | atoms, displacements | those of matcalc's defaults | highest frequency (THz) "
        "| largest difference (THz) | with symmetrized force constants |",
        "|---|---|---|---|---|---|",
    ]
    for name, known in results.items():
        if "matcalc same phonon" not in known:
            continue
        ours, theirs, same = (
            known[key] for key in ("phonon", "matcalc phonon", "matcalc same phonon")
        )
        cells = [f"{r['n_atoms']}, {r['n_displacements']}" for r in (ours, theirs)]
        cells.append(f"{same['highest']:.2f}")
        cells += [f"{same[key]:.1g}" for key in ("raw", "symmetrized")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def sources() -> list[str]:
    return [
        f"{number}. {text}{'' if key in CHECKED else ' *'}"
        for number, (key, text) in enumerate(SOURCES.items(), 1)
    ]


def complete(results: Results, keys: Iterable[str]) -> Results:
    """The crystals of which everything that is wanted is there."""
    return {
        name: results[name]
        for name in NAMES
        if all(key in results.get(name, {}) or not wanted(name, key) for key in keys)
    }


def report(results: Results) -> str:
    """The part of the document between the marks."""
    versions = ", ".join(f"{name} {v}" for name, v in results["versions"].items())
    found = complete(results, tasks(with_matcalc=False))
    whole = complete(results, tasks(with_matcalc=True))
    parts = [
        f"Versions: {versions}.",
        "**dpa3sim (measured, deviation)**",
        "\n".join(against_measured(found)),
        "\n".join(sources()),
        "**matcalc with its default settings (deviation from dpa3sim)**",
        "\n".join(against_matcalc(whole)),
        "**C11 / C12 / C44 in GPa by matcalc, one setting after the other**",
        "\n".join(settings_one_by_one(whole)),
        "**Phonons by matcalc with the relaxed cell, supercell and displacement of dpa3sim**",
        "\n".join(same_phonons(whole)),
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Compute, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "validation.json")
    parser.add_argument("--only", help="some of the crystals, with commas between them")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "validation.md")
    args = parser.parse_args()
    names = [n for n in NAMES if not args.only or n in args.only.split(",")]
    if not args.tables:
        try:
            version("matcalc")
        except ModuleNotFoundError:
            print("matcalc is not installed: only dpa3sim's numbers", file=sys.stderr)
            with_matcalc = False
        else:
            with_matcalc = True
        warnings.filterwarnings("ignore")
        compute(args.results, names, with_matcalc)
    results = json.loads(args.results.read_text(encoding="utf-8"))
    write_report(args.output, REPORT, report(results))


if __name__ == "__main__":
    main()
