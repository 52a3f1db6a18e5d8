"""Whole protocols: against matcalc with deepmd-kit's calculator, and batched against one by one.

    python benchmarks/protocols.py --peer ~/deepmd-env/bin/python --output docs/benchmarks.md

The environment of ``--peer`` has deepmd-kit 3.1.3 and matcalc. Both sides relax the same crystal
with the same weights to the same forces and then apply the same strains, and relax the ions of each
strained cell, or displace atoms of the same supercell by the same length, in single precision as
deepmd-kit has it; and dpa3sim once more with its defaults: double precision and, for elastic
constants, the strains that symmetry leaves. Models are loaded and warm before the clock starts.
What dpa3sim computes beyond matcalc (the clamped tensor, checks of the cutoff, projected densities
of states, group velocities, irreducible representations) is in its time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peers import MODELS, Worker, answer_requests, machine, write_report

SHIPPED = MODELS / "2025-03-14-dpa3-openlam.pth"
# How often phonons repeat the conventional cell: 64, 64 and 108 atoms. matcalc's default, 20 Å, is
# beyond what deepmd-kit has memory for here.
CRYSTALS = {"Si": 2, "MgO": 2, "Cu": 3}
FMAX = 1e-3  # eV/Å; single precision, deepmd-kit's, does not reach much less
STRAIN = 0.005
DISTANCE = 0.01  # Å


def crystal(name: str, cubic: bool) -> Any:
    """A crystal, 1 % too large."""
    from ase.build import bulk

    kind = {"MgO": {"crystalstructure": "rocksalt", "a": 4.25}}.get(name, {})
    atoms = bulk(name, cubic=cubic, **kind)
    atoms.set_cell(atoms.cell * 1.01, scale_atoms=True)
    return atoms


# -- the sides -----------------------------------------------------------------------------------


def matcalc_side(model: str) -> Callable[[str, Any, int], dict[str, Any]]:
    """What runs a protocol of matcalc."""
    from deepmd.calculator import DP
    from matcalc import ElasticityCalc, PhononCalc

    calculator = DP(model)
    strains = tuple(STRAIN * np.array([-1, -0.5, 0.5, 1]))

    def run(protocol: str, atoms: Any, repeat: int) -> dict[str, Any]:
        if protocol == "elastic":
            found = ElasticityCalc(
                calculator,
                norm_strains=strains,
                shear_strains=strains,
                fmax=FMAX,
                relax_deformed_structures=True,
                units_GPa=True,
            ).calc(atoms)
            c = np.asarray(found["elastic_tensor"].voigt)
            return {"C11, C12, C44": [c[0, 0], c[0, 1], c[3, 3]]}
        found = PhononCalc(
            calculator,
            atom_disp=DISTANCE,
            supercell_matrix=np.eye(3, dtype=int) * repeat,
            fmax=FMAX,
            write_phonon=False,
            write_band_structure=os.devnull,
            write_total_dos=os.devnull,
        ).calc(atoms)
        return {"highest frequency": [float(np.max(found["frequencies"]))]}

    return run


def dpa3sim_side(model: str) -> Callable[[str, Any, int], dict[str, Any]]:
    """What runs a protocol of dpa3sim with its defaults, and for ``elastic`` with all strains."""
    from dpa3sim import Potential
    from dpa3sim.protocols import elastic, phonon

    potential = Potential(model)

    def run(protocol: str, atoms: Any, repeat: int) -> dict[str, Any]:
        protocol, _, defaults = protocol.partition(", ")
        dtype = "float64" if defaults else "float32"
        if protocol == "phonon":
            settings = phonon.Settings(
                fmax=FMAX, supercell=",".join([str(repeat)] * 3), distance=DISTANCE, dtype=dtype
            )
            found = phonon.run(atoms, potential, settings)
            return {"highest frequency": [found.to_dict()["highest_frequency_THz"]]}
        result = elastic.run(
            atoms,
            potential,
            elastic.Settings(fmax=FMAX, strain=100 * STRAIN, all_strains=not defaults, dtype=dtype),
        )
        c = result.relaxed.stiffness
        return {"C11, C12, C44": [c[0, 0], c[0, 1], c[3, 3]]}

    return run


def work(side: str, model: str) -> None:
    """Run protocols on request."""
    warnings.simplefilter("ignore")
    run = dpa3sim_side(model) if side == "dpa3sim" else matcalc_side(model)

    def answer(protocol: str, name: str) -> dict[str, Any]:
        start = time.perf_counter()
        values = run(protocol, crystal(name, cubic=protocol.startswith("phonon")), CRYSTALS[name])
        return {"seconds": time.perf_counter() - start, "values": values}

    answer_requests(answer)


def against_matcalc(args: argparse.Namespace) -> list[str]:
    """Lines of the table."""
    sides = {
        key: Worker(__file__, key, python, [str(args.model)], args.threads)
        for key, python in (("matcalc", args.peer), ("dpa3sim", sys.executable))
    }
    for protocol in ("elastic", "phonon"):  # warm
        for side in sides.values():
            side.ask(protocol=protocol, name="Cu")
    sides["dpa3sim"].ask(protocol="elastic, defaults", name="Cu")
    lines = [
        "| protocol | crystal | matcalc + deepmd-kit s | dpa3sim s | ratio | values, each |",
        "|---|---|---|---|---|---|",
    ]
    ratios = []
    for protocol in ("elastic", "phonon"):
        for name in args.crystals:
            theirs = sides["matcalc"].ask(protocol=protocol, name=name)
            for what in ("", ", defaults"):
                ours = sides["dpa3sim"].ask(protocol=protocol + what, name=name)
                ratio = theirs["seconds"] / ours["seconds"]
                if not what:
                    ratios.append(ratio)
                lines.append(
                    f"| {protocol}{what} | {name} | {theirs['seconds']:.1f} | "
                    f"{ours['seconds']:.2f} | **{ratio:.1f}** | {told(theirs)}; {told(ours)} |"
                )
                print(lines[-1], file=sys.stderr, flush=True)
    for side in sides.values():
        side.end()
    mean = float(np.exp(np.mean(np.log(ratios))))
    lines += ["", f"Without defaults: lowest {min(ratios):.1f}, mean {mean:.1f}."]
    return lines


def told(answer: dict[str, Any]) -> str:
    """The values of a protocol in one cell of the table."""
    ((what, values),) = answer["values"].items()
    unit = "THz" if "frequency" in what else "GPa"
    return f"{what} {', '.join(f'{value:.4g}' for value in values)} {unit}"


# -- batches -------------------------------------------------------------------------------------


class OneByOne:
    """A potential that evaluates the structures of every request one after the other."""

    def __init__(self, potential: Any) -> None:
        self._potential = potential

    def __getattr__(self, name: str) -> Any:
        return getattr(self._potential, name)

    def in_precision(self, dtype: Any) -> OneByOne:
        return OneByOne(self._potential.in_precision(dtype))

    def evaluate(self, structures: Sequence[Any]) -> list[Any]:
        return [self._potential.evaluate([structure])[0] for structure in structures]

    def evaluate_each(self, structures: Sequence[Any]) -> list[Any]:
        return [self._potential.evaluate_each([structure])[0] for structure in structures]


def batched(args: argparse.Namespace) -> list[str]:
    """Lines of the table of protocols on primitive cells, batched and one structure at a time."""
    import torch

    from dpa3sim import Potential
    from dpa3sim.protocols import elastic, eos, phonon

    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    potential = Potential()
    protocols: dict[str, tuple[Any, Any]] = {
        "elastic": (elastic, elastic.Settings(all_strains=True)),
        "eos": (eos, eos.Settings()),
        "phonon, 2,2,2": (phonon, phonon.Settings(supercell="2,2,2")),
        "phonon, auto": (phonon, phonon.Settings()),
    }
    lines = [
        "| protocol | crystal | one by one s | batched s | ratio (lowest to highest pair) |",
        "|---|---|---|---|---|",
    ]
    for label, (module, settings) in protocols.items():
        for name in ("Si", "GaN"):
            if name == "Si":
                atoms = crystal(name, cubic=False)
            else:
                from ase.build import bulk

                atoms = bulk("GaN", "wurtzite", a=3.19, c=5.19)
            times = []
            for turn in range(1 + args.rounds):
                pair = [0.0, 0.0]
                evaluators = list(enumerate((OneByOne(potential), potential)))
                for which, evaluator in evaluators[:: 1 if turn % 2 else -1]:
                    start = time.perf_counter()
                    module.run(atoms, evaluator, settings)
                    pair[which] = time.perf_counter() - start
                times.append(pair)
            one, many = np.array(times[1:]).T  # the first is warm-up
            ratios = one / many
            lines.append(
                f"| {label} | {name} | {np.median(one):.2f} | {np.median(many):.2f} | "
                f"**{np.median(ratios):.2f}** ({ratios.min():.2f} to {ratios.max():.2f}) |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    return lines


def main() -> None:
    """Compare and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--peer", help="Python of an environment with deepmd-kit and matcalc")
    parser.add_argument("--model", type=Path, default=SHIPPED, help="frozen model (.pth)")
    parser.add_argument("--crystals", nargs="+", default=[*CRYSTALS], choices=CRYSTALS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6, help="pairs, batched and one by one")
    parser.add_argument("--output", type=Path, help="file whose marked part the tables replace")
    args = parser.parse_args()
    if args.worker:
        work(*args.worker)
        return
    parts = [f"{machine()}, {args.threads} threads."]
    if args.peer:
        parts.append("\n".join(against_matcalc(args)))
    parts.append("\n".join(batched(args)))
    report = "\n\n".join(parts)
    print(report)
    if args.output:
        write_report(args.output, "protocols", report)


if __name__ == "__main__":
    main()
