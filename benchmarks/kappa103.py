"""Thermal conductivity of 103 crystals against PBE: the benchmark phonondb of Matbench Discovery.

    python benchmarks/kappa103.py --out kappa103                  # all, the cheapest first
    python benchmarks/kappa103.py --out kappa103 --only mp-23251 mp-2472
    python benchmarks/kappa103.py --out kappa103 --summary        # of what is done so far

Every crystal is computed by ``dpa3sim kappa --preset phonondb``. It may be killed at any time:
evaluations are kept in the folder, and so are finished crystals. Structures, reference and
published results are in the folder DPA3SIM_KAPPA103 or ``../shared/data/kappa103``. The
definitions of the errors are those of Póta, Ahlawat, Csányi and Simoncelli, arXiv:2408.00755.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import Dpa3simError
from dpa3sim.common.files import atomic_write

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim import Potential
    from dpa3sim.protocols.anharmonics.transport import Transport
    from dpa3sim.protocols.kappa import Result

VARIABLE = "DPA3SIM_KAPPA103"
DATA = Path(__file__).parents[2] / "shared" / "data" / "kappa103"
STRUCTURES = {225: "rock salt", 216: "zinc blende", 186: "wurtzite"}
# Supercells of third order, each of 64 or 72 atoms.
SUPERCELLS = {225: 146, 216: 222, 186: 1254}
# Worst values, which a material without a valid prediction has.
WORST_SRME, WORST_SRD = 2.0, -2.0
PUBLISHED = "dpa3-v2-openlam"


@dataclass(frozen=True)
class Reference:
    """DFT-PBE at 300 K, without the non-analytical correction.

    Attributes:
        addresses: ``(n, 3)`` whole numbers, irreducible wave vectors times the mesh.
        weights: ``(n,)``. frequencies: ``(n, bands)``, THz.
        modes: ``(n, bands)``, W/m/K; their sum is the conductivity.
    """

    addresses: np.ndarray
    weights: np.ndarray
    frequencies: np.ndarray
    modes: np.ndarray

    @classmethod
    def of(cls, data: Any, name: str) -> Reference:
        """That of a material from the file ``reference_modes_noNAC.npz``."""
        weights = np.array(data[f"{name}/weights"], dtype=float)
        modes = np.array(data[f"{name}/mode_kappa"], dtype=float) / weights.sum()
        frequencies = np.array(data[f"{name}/frequencies_THz"], dtype=float)
        return cls(np.array(data[f"{name}/q_grid"]), weights, frequencies, modes)


@dataclass(frozen=True)
class Row:
    """What came of a material; empty where there is nothing to be said.

    Attributes:
        kappa, reference: W/m/K. srme, sre, srd: relative errors. censored: why there is none.
        spectrum: distance of the densities of states, THz.
        mesh_change, reach_change: see ``dpa3sim.protocols.kappa.Changes``, %.
        asr: sums of third order that translation forbids, relative to the largest element.
        minutes: that the last run of it took.
    """

    material: str
    formula: str
    structure: str
    kappa: float | None
    reference: float
    srme: float
    sre: float
    srd: float
    censored: str
    spectrum: float | None
    mesh_change: float | None
    reach_change: float | None
    asr: float | None
    minutes: float


def srd(kappa: float | None, reference: float) -> float:
    """Symmetric relative difference; the worst value without a prediction."""
    if kappa is None or not math.isfinite(kappa):
        return WORST_SRD
    return 2 * (kappa - reference) / (kappa + reference)


def srme(modes: np.ndarray, reference: np.ndarray) -> float:
    """Symmetric relative mean error of what single modes conduct.

    Args:
        modes, reference: ``(n, bands)``, W/m/K, whose sums are the conductivities.
    """
    if modes.shape != reference.shape:
        return WORST_SRME
    value = 2 * np.abs(modes - reference).sum() / (modes.sum() + reference.sum())
    return float(value) if 0 <= value <= WORST_SRME else WORST_SRME


def spectrum_distance(transport: Transport, reference: Reference) -> float:
    """Wasserstein distance of the distributions of frequencies, THz."""
    from scipy.stats import wasserstein_distance

    bands = reference.frequencies.shape[1]
    return float(
        wasserstein_distance(
            transport.frequencies.ravel(),
            reference.frequencies.ravel(),
            np.repeat(transport.weights, bands),
            np.repeat(reference.weights, bands),
        )
    )


def same_points(transport: Transport, reference: Reference) -> bool:
    """Whether the wave vectors are those of the reference, one by one."""
    addresses = np.rint(transport.q_points * transport.mesh).astype(int)
    return addresses.shape == reference.addresses.shape and not np.any(
        (addresses - reference.addresses) % transport.mesh
    )


def row_of(atoms: Atoms, result: Result | None, error: str, reference: Reference, s: float) -> Row:
    """The errors of a material.

    Args:
        atoms: of the benchmark. result: None if there was an error. error: its message.
        reference: of the material. s: time, s.
    """
    expected = float(reference.modes.sum())
    kappa, mode_error, distance, censored = None, WORST_SRME, None, error
    transport = None if result is None else result.transport
    if transport is not None:
        kappa = float(transport.conductivities[0])
        distance = spectrum_distance(transport, reference)
        if same_points(transport, reference):
            mode_error = srme(transport.modes[0], reference.modes)
        else:
            censored = "other wave vectors than those of the reference"
    elif result is not None:
        censored = "imaginary: " + result.verdict.reason
    difference = srd(kappa, expected)
    changes = None if result is None else result.changes
    third = None if result is None else result.third
    asr = None
    if third is not None and third.residuals.asr is not None:
        asr = max(third.residuals.asr) / third.residuals.largest
    return Row(
        material=atoms.info["mp_id"],
        formula=atoms.get_chemical_formula(empirical=True),
        structure=STRUCTURES[atoms.info["symm.no"]],
        kappa=kappa,
        reference=expected,
        srme=mode_error,
        sre=abs(difference),
        srd=difference,
        censored=censored,
        spectrum=distance,
        mesh_change=None if changes is None else changes.mesh,
        reach_change=None if changes is None else changes.reach,
        asr=asr,
        minutes=s / 60,
    )


def means(rows: Iterable[Row]) -> dict[str, float]:
    """Means over materials, with the names of the published table."""
    rows = list(rows)
    distances = [row.spectrum for row in rows if row.spectrum is not None]
    return {
        "materials": len(rows),
        "srme": float(np.mean([row.srme for row in rows])),
        "sre": float(np.mean([row.sre for row in rows])),
        "srd": float(np.mean([row.srd for row in rows])),
        "failure_rate": float(np.mean([bool(row.censored) for row in rows])),
        "spectrum_w1_THz": float(np.mean(distances)) if distances else math.nan,
    }


def data_folder() -> Path:
    """Where structures and reference are.

    Raises:
        SystemExit: they are not there.
    """
    folder = Path(os.environ.get(VARIABLE, DATA))
    if not (folder / "structures.extxyz").is_file():
        raise SystemExit(f"{folder} has no structures.extxyz; set {VARIABLE} to its folder")
    return folder


def materials(folder: Path) -> list[Atoms]:
    """The crystals: cubic ones first, and of these those with the least to compute."""
    from ase.io import read

    def cost(atoms: Atoms) -> tuple[bool, float]:
        number = atoms.info["symm.no"]
        # Angles grow as the square of the density of neighbours.
        return number == 186, SUPERCELLS[number] * (len(atoms) / atoms.get_volume()) ** 2

    return sorted(read(folder / "structures.extxyz", ":"), key=cost)


def compute(atoms: Atoms, potential: Potential, folder: Path, options: dict[str, Any]) -> Result:
    """Run the preset for a crystal, with its evaluations kept in a folder."""
    from dpa3sim.protocols import kappa
    from dpa3sim.run.store import StoredPotential

    crystal = atoms.copy()
    crystal.info.clear()
    settings = kappa.Settings(preset="phonondb", imaginary="report", **options)
    with StoredPotential(potential, folder / "evaluations.sqlite") as stored:
        return kappa.run(crystal, stored, settings)


def keep(folder: Path, result: Result) -> None:
    """Write the modes and what phono3py loads, for questions that come later."""
    from dpa3sim.run.jobs.kappa import write_phono3py

    atomic_write(folder / "result.json", json.dumps(result.to_dict(), indent=1))
    if result.transport is None or result.third is None:
        return
    write_phono3py(folder, result.third.ph3)
    found = result.transport
    np.savez_compressed(
        folder / "modes.npz",
        q_points=found.q_points,
        weights=found.weights,
        frequencies=found.frequencies,
        velocities=found.velocities,
        linewidths=found.linewidths,
        modes=found.modes,
    )


def finished(out: Path) -> dict[str, Row]:
    """The rows of what is done, by material."""
    rows = (Row(**json.loads(path.read_text())) for path in sorted(out.glob("*/row.json")))
    return {row.material: row for row in rows}


def write_table(out: Path, rows: Iterable[Row]) -> None:
    """Write ``results.csv`` with a line for each material."""
    rows = sorted(rows, key=lambda row: (row.structure, row.srme))
    with open(out / "results.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Row.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def published(folder: Path, names: set[str]) -> list[tuple[str, dict[str, float]]]:
    """Means of the published models over some materials, best first."""
    found: dict[str, list[dict[str, str]]] = {}
    with open(folder / "published_per_material.csv", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["material_id"] in names:
                found.setdefault(line["model"], []).append(line)
    table = [
        (model, {"srme": float(np.mean([float(line["srme"]) for line in lines]))})
        for model, lines in found.items()
        if len(lines) == len(names)
    ]
    return sorted(table, key=lambda entry: entry[1]["srme"])


def summary(folder: Path, rows: dict[str, Row]) -> str:
    """Means of what is done, by structure, beside the published ones of the same materials."""
    lines = [f"{'':<24}{'n':>5}{'SRME':>8}{'SRE':>8}{'SRD':>8}{'failed':>8}{'W1/THz':>8}"]

    def add(name: str, chosen: list[Row]) -> None:
        if chosen:
            m = means(chosen)
            numbers = (m["srme"], m["sre"], m["srd"], m["failure_rate"], m["spectrum_w1_THz"])
            shown = "".join(f"{x:>8.3f}" for x in numbers)
            lines.append(f"{name:<24}{len(chosen):>5}{shown}")

    for structure in STRUCTURES.values():
        add(structure, [row for row in rows.values() if row.structure == structure])
    add("all", list(rows.values()))
    with open(folder / "published_aggregate.csv", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["model"] == PUBLISHED:
                values = [line[k] for k in ("srme", "sre", "srd", "failure_rate")]
                values.append(line["spectrum_w1_THz"])
                shown = "".join(f"{float(x):>8.3f}" for x in values)
                lines.append(f"{'published, ' + PUBLISHED:<24}{103:>5}"[:29] + shown)
    for model, mean in published(folder, set(rows))[:5]:
        lines.append(f"{model:<24.24}{len(rows):>5}{mean['srme']:>8.3f}   (the same materials)")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of results, resumed")
    parser.add_argument("--model", help="file or name; the embedded model by default")
    parser.add_argument("--head", help="of a model with several")
    parser.add_argument("--dtype", default="float64", choices=("float32", "float64"))
    parser.add_argument("--smooth-cutoff", type=float, help="see dpa3sim kappa --help, Å")
    parser.add_argument("--distance", type=float, help="other than 0.01 Å")
    parser.add_argument("--displacements", choices=("systematic", "random", "auto"))
    parser.add_argument("--only", nargs="+", metavar="ID", help="these materials alone")
    parser.add_argument("--limit", type=int, help="end after so many further materials")
    parser.add_argument("--summary", action="store_true", help="compute nothing")
    return parser.parse_args()


def main() -> None:
    """Compute what is missing, and print means."""
    args, folder = parse(), data_folder()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = finished(args.out)
    todo = [m for m in materials(folder) if m.info["mp_id"] not in rows]
    if args.only:
        todo = [m for m in todo if m.info["mp_id"] in args.only]
    if not args.summary and todo:
        run_all(todo[: args.limit], folder, args, rows)
    write_table(args.out, rows.values())
    print(summary(folder, rows) if rows else "nothing is done yet")


def run_all(
    todo: list[Atoms], folder: Path, args: argparse.Namespace, rows: dict[str, Row]
) -> None:
    """Compute materials one by one, each with its row."""
    from dpa3sim import Potential

    potential = Potential(
        args.model, head=args.head, dtype=args.dtype, smooth_cutoff=args.smooth_cutoff
    )
    chosen = {"distance": args.distance, "displacements": args.displacements}
    options = {name: value for name, value in chosen.items() if value is not None}
    options["dtype"] = args.dtype
    data = np.load(folder / "reference_modes_noNAC.npz")
    for atoms in todo:
        name, began, error, result = atoms.info["mp_id"], time.monotonic(), "", None
        place = args.out / name
        place.mkdir(exist_ok=True)
        try:
            result = compute(atoms, potential, place, options)
            keep(place, result)
        except Dpa3simError as failure:
            error = str(failure)
        row = row_of(atoms, result, error, Reference.of(data, name), time.monotonic() - began)
        atomic_write(place / "row.json", json.dumps(asdict(row), indent=1))
        rows[name] = row
        kappa = "none" if row.kappa is None else f"{row.kappa:.3f}"
        print(
            f"{name:<12}{row.formula:<6}{row.structure:<12} kappa {kappa:>8} of "
            f"{row.reference:>8.3f}  SRME {row.srme:.3f}  {row.minutes:.1f} min {row.censored}",
            flush=True,
        )


if __name__ == "__main__":
    main()
