"""Small trainings: frames labelled by the embedded model, and a small one that learns them."""

from dataclasses import replace
from functools import cache

import numpy as np
from ase.build import molecule

from dpa3sim import Potential
from dpa3sim.structures.system import System
from dpa3sim.train.data.frames import Frame, Frames
from dpa3sim.train.recipe import Recipe, Task
from dpa3sim.train.sampling import BatchRule
from dpa3sim.train.schedule import ScheduleSettings
from dpa3sim.train.settings import (
    SINGLE,
    ArchitectureSettings,
    LossSettings,
    OptimizerSettings,
    TrainSettings,
)

SMALL = ArchitectureSettings(
    nlayers=2,
    n_dim=16,
    e_dim=8,
    a_dim=8,
    e_rcut=4.0,
    e_rcut_smth=3.5,
    e_sel="40",
    a_rcut=3.0,
    a_rcut_smth=2.5,
    a_sel="20",
    neuron="16 16",
    precision="float64",
    fitting_precision="float64",
)


def water(number, seed, n=2, spread=0.05):
    """Periodic boxes with ``n`` distorted molecules of water."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(number):
        atoms = molecule("H2O", cell=[3.2, 3.2, 3.2], pbc=True).repeat((n, 1, 1))
        atoms.positions += rng.normal(scale=spread, size=atoms.positions.shape)
        found.append(atoms)
    return found


@cache
def teacher():
    """The embedded model."""
    return Potential()


def labelled(atoms, offset=0.0, name="made"):
    """Frames with the labels of the embedded model; ``offset``: eV for each atom."""
    results = teacher().evaluate(atoms)
    return Frames.from_frames(
        Frame(
            system=System.from_atoms(x),
            energy=out.energy + offset * len(x),
            forces=out.forces,
            virial=(out.virial + out.virial.T) / 2 if x.pbc.all() else None,
            atomic_energies=None,
            weight=1.0,
            origin=f"{name}, frame {k}",
        )
        for k, (x, out) in enumerate(zip(atoms, results, strict=True))
    )


def recipe(training, validation=None, *, architecture=SMALL, loss=None, **options):
    """A training of one task; ``options`` are those of a run."""
    options = {"batch_size": "2", "steps": 20, "validate_every": 10, "report_every": 5} | options
    train = TrainSettings(**options)
    batch = BatchRule.parse(train.batch_size)
    task = Task(SINGLE, training, validation, loss or LossSettings(), batch)
    return Recipe(
        config=architecture.config(("H", "O")),
        tasks=(task,),
        train=train,
        schedule=ScheduleSettings(learning_rate=1e-2, stop_learning_rate=2e-3, decay_steps=10),
        optimizer=OptimizerSettings(),
    )


def with_options(recipe, **options):
    """The recipe with other options of the run."""
    return replace(recipe, train=replace(recipe.train, **options))
