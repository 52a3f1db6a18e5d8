"""torch-sim with our model: 20 mixed crystals in one batch against one by one, and against ASE.

python benchmarks/torchsim.py [MODEL]

It needs torch-sim-atomistic. Printed are the time of a step of the batch in units of that of its
systems one by one (medians of rounds in turn), how far velocity Verlet and FIRE of torch-sim end
from those of ASE with our calculator, and how far the minima of torch-sim are from ours.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch_sim
from ase import Atoms, units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from dpa3sim import Engine, Potential
from dpa3sim.common.errors import Dpa3simWarning
from dpa3sim.protocols import relax
from dpa3sim.torchsim import DPA3Model

ROUNDS, STEPS, MOST_STEPS, FMAX = 5, 20, 200, 1e-3


def structures() -> list[Atoms]:
    """Metals, semiconductors, oxides and salts of 1 to 8 atoms, strained, rattled and moving."""
    pool = [
        bulk("Si", cubic=True),
        bulk("Cu"),
        bulk("NaCl", "rocksalt", a=5.6, cubic=True),
        bulk("Mg"),
        bulk("MgO", "rocksalt", a=4.2),
        bulk("Al", cubic=True),
        bulk("ZnO", "wurtzite", a=3.25, c=5.2),
        bulk("GaAs", "zincblende", a=5.65),
        bulk("Fe"),
        bulk("CsCl", "cesiumchloride", a=4.1),
    ]
    rng = np.random.default_rng(0)
    found = [atoms.copy() for atoms in pool * 2]
    for seed, atoms in enumerate(found):
        strain = np.eye(3) + rng.uniform(-0.01, 0.01, (3, 3))
        atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
        atoms.rattle(0.03, seed=seed)
        atoms.set_velocities(rng.normal(0, 0.02, (len(atoms), 3)))
    return found


def state_of(batch: list[Atoms]) -> torch_sim.SimState:
    """The batch for torch-sim."""
    return torch_sim.io.atoms_to_state(batch, torch.device("cpu"), torch.float64)


def dynamics(batch: list[Atoms], model: DPA3Model, steps: int) -> torch_sim.SimState:
    """Velocity Verlet of torch-sim from the momenta of the atoms."""
    state = torch_sim.nve_init(state_of(batch), model, kT=0.0)
    state.momenta = torch.from_numpy(np.concatenate([x.get_momenta() for x in batch]))
    for _ in range(steps):
        state = torch_sim.nve_step(state, model, dt=1.0 * units.fs)
    return state


def optimized(batch: list[Atoms], model: DPA3Model, steps: int, fmax: float) -> torch_sim.SimState:
    """FIRE of torch-sim, with alpha kept, since torch-sim lowers it one step before ASE."""
    state = torch_sim.fire_init(state_of(batch), model)
    for _ in range(steps):
        if float(state.forces.norm(dim=1).max()) < fmax:
            break
        state = torch_sim.fire_step(state, model, f_alpha=1.0)
    return state


def distance(state: torch_sim.SimState, batch: list[Atoms]) -> float:
    """The largest difference of a coordinate, Å."""
    return float(
        np.abs(state.positions.numpy() - np.concatenate([x.positions for x in batch])).max()
    )


def ratio(model: DPA3Model, batch: list[Atoms]) -> float:
    """Time of a step of the batch in units of that of its systems one by one."""
    whole = dynamics(batch, model, 0)
    alone = [dynamics([atoms], model, 0) for atoms in batch]

    def seconds(states: list[torch_sim.SimState]) -> float:
        start = time.perf_counter()
        for state in states:
            torch_sim.nve_step(state, model, dt=1.0 * units.fs)
        return time.perf_counter() - start

    seconds([whole])
    seconds(alone)
    return float(np.median([seconds([whole]) / seconds(alone) for _ in range(ROUNDS)]))


def main() -> None:
    """Compare and measure."""
    warnings.simplefilter("ignore", Dpa3simWarning)
    potential = Potential(*sys.argv[1:2], dtype="float64")
    model, batch, engine = DPA3Model(potential), structures(), Engine(potential)

    def each(act: Callable[[Atoms], object]) -> list[Atoms]:
        def acted(atoms: Atoms) -> Atoms:
            act(atoms)
            return atoms

        return engine.map(batch, acted)  # type: ignore[return-value]

    print(f"{potential!r}: {len(batch)} crystals, {sum(map(len, batch))} atoms", flush=True)
    print(
        f"a step of the batch takes {ratio(model, batch):.2f} of the steps one by one", flush=True
    )
    ours = each(lambda x: VelocityVerlet(x, 1.0 * units.fs).run(STEPS))
    found = distance(dynamics(batch, model, STEPS), ours)
    print(f"{STEPS} steps of velocity Verlet end {found:.1e} Å from ASE's", flush=True)
    ours = each(lambda x: FIRE(x, logfile=None, fa=1.0).run(fmax=0.0, steps=STEPS))
    found = distance(optimized(batch, model, STEPS, 0.0), ours)
    print(f"{STEPS} steps of FIRE end {found:.1e} Å from ASE's", flush=True)
    state = optimized(batch, model, MOST_STEPS, FMAX)
    settings = relax.Settings(fmax=FMAX)
    minima = [relax.run(atoms, potential, settings).steps[-1].energy_eV for atoms in batch]
    error = np.abs(state.energy.numpy() - minima) / [len(x) for x in batch]
    print(f"minima of FIRE differ by {error.max():.1e} eV/atom at most from those of relax")


if __name__ == "__main__":
    main()
