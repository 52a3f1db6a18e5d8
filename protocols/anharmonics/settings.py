"""Options of a thermal conductivity, and the preset that sets many of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option, replace_checked

from ..crystals import prepare
from ..crystals.prepare import PropertySettings
from ..crystals.supercells import parse
from ..harmonics.properties import HarmonicSettings
from .transport import LBTE, RTA, WIGNER, Mesh, Scattering

if TYPE_CHECKING:
    from ase import Atoms

LONGEST_MESH, MOST_TEMPERATURES = 1000, 200
PHONONDB = "phonondb"
# What the preset sets where an option has its default.
PRESET: dict[str, Any] = {
    "smax": 0.001,
    "displacements": "systematic",
    "distance": 0.01,
    "transport": WIGNER,
    "boundary_mfp": 1e6,
}
# The same by space group: the conventional cell is repeated.
_CUBIC = {"supercell": "2,2,2", "supercell_fc2": "4,4,4", "mesh": "19,19,19"}
_WURTZITE = {"supercell": "3,3,2", "supercell_fc2": "5,5,3", "mesh": "19,19,15"}
PRESET_OF_GROUP = {216: _CUBIC, 225: _CUBIC, 186: _WURTZITE}


@dataclass(frozen=True)
class Settings(PropertySettings):
    """Options of a thermal conductivity."""

    supercell: str = option(
        "auto",
        "of third order: auto (faces 10 Å apart, at most 100 atoms), a width such as 12A, "
        "max-atoms=64, or its vectors in those of the input cell: 2,2,2 or nine whole numbers",
    )
    supercell_fc2: str = option(
        "auto", "of second order: auto (faces 15 Å and twice the cutoff apart), or as above"
    )
    displacements: str = option(
        "auto",
        "of third order: random (fitted by symfc), systematic (finite differences), or auto: "
        "random unless the fit needs too much memory",
        choices=("auto", "random", "systematic"),
    )
    distance: float | None = option(
        None,
        "length of the displacements of third order; without it 0.03 Å, less where neighbours are "
        "close to a cutoff at which the model has a step",
        unit="Å",
        minimum=1e-4,
    )
    distance_fc2: float = option(
        0.01, "length of the displacements of second order", unit="Å", minimum=1e-6
    )
    snapshots: int | None = option(
        None,
        "number of random displacements; without it as many as change the conductivity by less "
        "than 2 %",
        minimum=1,
    )
    seed: int = option(0, "of random displacements", minimum=0)
    cutoff_pair: float | None = option(
        None, "force constants of third order beyond this distance are zero", unit="Å", minimum=0.1
    )
    method: str = option(
        "fd",
        "second order from finite displacements (fd), or from analytic second derivatives",
        choices=("fd", "analytic"),
    )
    mesh: str = option(
        "60",
        "mesh of wave vectors: points times length in Å, or three numbers of points, such as "
        "19,19,19",
    )
    temperatures: str = option(
        "300", "temperatures in K: one, several (200,300,400), or a range with step (100:1000:50)"
    )
    transport: str = option(
        RTA,
        "relaxation times (rta), these with coherences between bands (wigner), or the direct "
        "solution of the linearised Boltzmann equation (lbte)",
        choices=(RTA, WIGNER, LBTE),
    )
    isotopes: bool = option(True, "scattering by natural isotopes")
    boundary_mfp: float | None = option(
        None, "mean free path between boundaries that scatter", unit="µm", minimum=1e-6
    )
    born: str | None = option(
        None, "file with Born charges and dielectric tensor, in phonopy's BORN format"
    )
    imaginary: str = option(
        "error",
        "what to do where the crystal is unstable: end with exit code 4 (error), or report it "
        "without a conductivity",
        choices=("error", "report"),
    )
    preset: str = option(
        "none",
        "phonondb: supercells, displacements, mesh and transport of Matbench Discovery's benchmark "
        "of rock salts, zinc blendes and wurtzites",
        choices=("none", PHONONDB),
    )

    def __post_init__(self) -> None:
        if self.preset.lower() == PHONONDB:
            for name, value in PRESET.items():
                if getattr(self, name) == type(self).__dataclass_fields__[name].default:
                    object.__setattr__(self, name, value)
        super().__post_init__()
        parse(self.supercell)
        parse(self.supercell_fc2)
        mesh_of(self.mesh)
        temperatures_of(self.temperatures)

    @property
    def points(self) -> Mesh:
        """The mesh of wave vectors."""
        return mesh_of(self.mesh)

    @property
    def scattering(self) -> Scattering:
        """What phonons are scattered by, and how they carry heat."""
        temperatures = temperatures_of(self.temperatures)
        return Scattering(
            temperatures,
            self.transport,
            self.isotopes,
            self.boundary_mfp,
            averaged=self.preset != PHONONDB,
        )

    @property
    def harmonic(self) -> HarmonicSettings:
        """The options of second order."""
        return HarmonicSettings(
            relax=self.relax,
            fmax=self.fmax,
            smax=self.smax,
            steps=self.steps,
            fix_symmetry=self.fix_symmetry,
            symprec=self.symprec,
            dtype=self.dtype,
            supercell=self.supercell_fc2,
            method=self.method,
            distance=self.distance_fc2,
            born=self.born,
        )


def mesh_of(text: str) -> Mesh:
    """The mesh of wave vectors from its option.

    Raises:
        InputError: it is neither a length nor three numbers.
    """
    words = re.split(r"[\s,x]+", text.strip())
    try:
        if len(words) == 1 and 1 <= float(words[0]) <= LONGEST_MESH:
            return float(words[0])
        if len(words) == 3 and all(1 <= int(word) <= LONGEST_MESH for word in words):
            return int(words[0]), int(words[1]), int(words[2])
    except ValueError:
        pass
    raise InputError(
        f"option mesh = {text!r} is neither a length in Å such as 60 nor three numbers of points "
        "such as 19,19,19"
    )


def temperatures_of(text: str) -> tuple[float, ...]:
    """Temperatures, K, from their option.

    Raises:
        InputError: it is no list or range of positive numbers.
    """
    try:
        if ":" in text:
            low, high, step = (float(word) for word in text.split(":"))
            found = np.arange(low, high + 1e-6 * step, step).tolist() if step > 0 else []
        else:
            found = [float(word) for word in re.split(r"[\s,]+", text.strip())]
    except ValueError:
        found = []
    if not found or not all(0 < t < np.inf for t in found) or len(found) > MOST_TEMPERATURES:
        raise InputError(
            f"option temperatures = {text!r} is not a list of positive numbers such as 200,300 or "
            f"a range such as 100:1000:50, {MOST_TEMPERATURES} of them at most"
        )
    return tuple(found)


def resolved(atoms: Atoms, settings: Settings) -> tuple[Atoms, Settings]:
    """With the preset the conventional cell, and what the preset says for its space group."""
    if settings.preset != PHONONDB:
        return atoms, settings
    cells = prepare.starting_cells(atoms, settings)
    missing = [
        name
        for name in _CUBIC
        if getattr(settings, name) == Settings.__dataclass_fields__[name].default
    ]
    if missing and cells.number not in PRESET_OF_GROUP:
        raise InputError(
            f"preset = {PHONONDB} knows rock salts, zinc blendes and wurtzites, not the space "
            f"group {cells.label()}; give {', '.join(missing)} too"
        )
    known = PRESET_OF_GROUP.get(cells.number, {})
    return cells.conventional.atoms, replace_checked(settings, {n: known[n] for n in missing})
