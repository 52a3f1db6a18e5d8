"""Integrators of molecular dynamics: ASE's, extended so that they stop and continue exactly.

The algorithms are those of ``ase.md``. Added are the conserved quantity of each, the variables
that a continued run needs besides positions and momenta, a target temperature that may change, and
the number of degrees of freedom: ASE's chains count 3N of them although the total momentum is zero,
which makes eight atoms 14 % too hot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.md.bussi import Bussi
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.nptberendsen import NPTBerendsen
from ase.md.nvtberendsen import NVTBerendsen
from ase.md.verlet import VelocityVerlet

# A moment of inertia smaller than this share of the largest is about the axis of a linear molecule.
LINEAR = 1e-6


@dataclass(frozen=True)
class Parameters:
    """The parameters of an integrator.

    Attributes:
        timestep: fs. temperature: K.
        thermostat_time, barostat_time: fs. pressure: eV/Å^3.
        degrees: thermal degrees of freedom.
        bulk_modulus: eV/Å^3, for Berendsen's barostat.
        rng: random numbers.
    """

    timestep: float
    temperature: float
    thermostat_time: float
    barostat_time: float
    pressure: float
    degrees: int
    bulk_modulus: float
    rng: np.random.Generator


class Integrator:
    """What this module adds to an integrator of ASE.

    Attributes:
        heat: energy received from the thermostat, eV: the energy of the system and of the variables
            of thermostat and barostat, less this heat, is conserved.
    """

    # Paths of the attributes that are saved.
    VARIABLES: ClassVar[tuple[str, ...]] = ()
    atoms: Atoms
    heat: float = 0.0

    def variables(self) -> dict[str, np.ndarray]:
        """The variables besides positions, momenta, cell and random numbers."""
        return {name: np.array(attrgetter(name)(self)) for name in ("heat", *self.VARIABLES)}

    def restore(self, variables: Mapping[str, np.ndarray]) -> None:
        """Restore saved variables."""
        for name in ("heat", *self.VARIABLES):
            value = np.asarray(variables[name])
            owner, _, attribute = name.rpartition(".")
            target = attrgetter(owner)(self) if owner else self
            setattr(target, attribute, value.copy() if value.ndim else value.item())

    def extended_energy(self) -> float:
        """Energy of the atoms and of the variables of thermostat and barostat, eV."""
        return float(self.atoms.get_potential_energy() + self.atoms.get_kinetic_energy())

    def conserved(self) -> float | None:
        """The quantity that exact integration conserves, eV; None where there is none."""
        return self.extended_energy() - self.heat

    def set_target(self, temperature: float) -> None:
        """Change the temperature of the thermostat, K; the conserved quantity stays continuous."""


class NVE(Integrator, VelocityVerlet):
    """Velocity Verlet."""

    def __init__(self, atoms: Atoms, given: Parameters) -> None:
        super().__init__(atoms, given.timestep * units.fs)


class Langevin(Integrator, LangevinBAOAB):
    """Langevin dynamics, BAOAB: all heat is exchanged in the O step, where it is counted.

    Leimkuhler and Matthews, J. Chem. Phys. 138, 174102 (2013); the effective energy is that of
    Bussi and Parrinello, Phys. Rev. E 75, 056707 (2007).
    """

    def __init__(self, atoms: Atoms, given: Parameters) -> None:
        super().__init__(
            atoms,
            given.timestep * units.fs,
            temperature_K=given.temperature,
            T_tau=given.thermostat_time * units.fs,
            rng=given.rng,
        )

    def _BAOAB_OU(self, drag_gamma_mod: float = 0.0) -> None:  # noqa: N802
        before = self.atoms.get_kinetic_energy()
        super()._BAOAB_OU(drag_gamma_mod)
        self.heat += float(self.atoms.get_kinetic_energy() - before)

    def set_target(self, temperature: float) -> None:
        """Change the temperature of the bath."""
        self.set_temperature(temperature)


class BussiRescaling(Integrator, Bussi):
    """Stochastic velocity rescaling: Bussi, Donadio, Parrinello, J. Chem. Phys. 126, 014101."""

    VARIABLES = ("transferred_energy",)

    def __init__(self, atoms: Atoms, given: Parameters) -> None:
        self._degrees = given.degrees
        super().__init__(
            atoms,
            given.timestep * units.fs,
            given.temperature,
            given.thermostat_time * units.fs,
            rng=given.rng,
        )
        self.ndof = given.degrees
        self.set_target(given.temperature)

    def scale_velocities(self) -> None:
        """Rescale, and count the energy."""
        super().scale_velocities()
        self.heat = self.transferred_energy = float(self.transferred_energy)

    def set_target(self, temperature: float) -> None:
        """Change the temperature of the bath."""
        self.temp = units.kB * temperature
        self.target_kinetic_energy = 0.5 * self.temp * self._degrees


class WeakCoupling(Integrator):
    """What Berendsen's methods share: ASE counts all degrees of freedom in the temperature."""

    _share: float

    def _count(self, given: Parameters) -> None:
        """Set the share of thermal degrees of freedom."""
        self._share = given.degrees / self.atoms.get_number_of_degrees_of_freedom()
        self.set_target(given.temperature)

    def set_target(self, temperature: float) -> None:
        """Change the temperature of the thermal degrees of freedom."""
        self.temperature = temperature * self._share


class BerendsenThermostat(WeakCoupling, NVTBerendsen):
    """Weak coupling, which samples no ensemble: only for reaching a temperature."""

    def __init__(self, atoms: Atoms, given: Parameters) -> None:
        super().__init__(
            atoms,
            given.timestep * units.fs,
            temperature_K=given.temperature,
            taut=given.thermostat_time * units.fs,
            fixcm=not atoms.constraints,
        )
        self._count(given)

    def scale_velocities(self) -> None:
        """Rescale, and count the energy."""
        before = self.atoms.get_kinetic_energy()
        super().scale_velocities()
        self.heat += float(self.atoms.get_kinetic_energy() - before)


class BerendsenBarostat(WeakCoupling, NPTBerendsen):
    """Weak coupling of temperature and volume; see :class:`BerendsenThermostat`.

    The cell is scaled before every step, which therefore takes two evaluations.
    """

    def __init__(self, atoms: Atoms, given: Parameters) -> None:
        super().__init__(
            atoms,
            given.timestep * units.fs,
            temperature_K=given.temperature,
            pressure_au=given.pressure,
            taut=given.thermostat_time * units.fs,
            taup=given.barostat_time * units.fs,
            compressibility_au=1.0 / given.bulk_modulus,
        )
        self._count(given)

    def conserved(self) -> None:
        """Nothing is conserved."""


class Chain(Integrator):
    """What integrators with Nosé-Hoover chains share: ASE knows their conserved energy."""

    def extended_energy(self) -> float:
        """Energy of atoms, chains and barostat."""
        return float(self.get_conserved_energy())  # type: ignore[attr-defined]

    def set_target(self, temperature: float) -> None:
        """Change the temperature, and with it the masses of the chains.

        The energy of the chains depends on both, and its change counts as heat.
        """
        before = self.extended_energy()
        self._set_masses(temperature)
        self.heat += self.extended_energy() - before

    def _set_masses(self, temperature: float) -> None:
        raise NotImplementedError


def _set_thermostat(thermostat: Any, degrees: int, temperature: float) -> None:
    """Set the masses of a chain for the actual degrees of freedom."""
    thermostat._kT = units.kB * temperature
    thermostat._num_atoms_global = degrees / 3
    thermostat._Q[:] = thermostat._kT * thermostat._tdamp**2
    thermostat._Q[0] *= degrees


class NoseHoover(Chain, NoseHooverChainNVT):
    """Nosé-Hoover chain: Martyna, Klein, Tuckerman, J. Chem. Phys. 97, 2635 (1992)."""

    VARIABLES = ("_thermostat._eta", "_thermostat._p_eta")

    def __init__(self, atoms: Atoms, given: Parameters) -> None:
        super().__init__(
            atoms=atoms,
            timestep=given.timestep * units.fs,
            temperature_K=given.temperature,
            tdamp=given.thermostat_time * units.fs,
        )
        self._degrees = given.degrees
        self._set_masses(given.temperature)

    def _set_masses(self, temperature: float) -> None:
        _set_thermostat(self._thermostat, self._degrees, temperature)


class MTK(Chain):
    """What both barostats of Martyna, Tobias and Klein share, J. Chem. Phys. 101, 4177 (1994)."""

    # Independent components of the cell's momentum.
    CELL_DEGREES: ClassVar[int]
    VARIABLES: ClassVar[tuple[str, ...]] = (
        "_thermostat._eta",
        "_thermostat._p_eta",
        "_barostat._xi",
        "_barostat._p_xi",
    )

    def __init__(self, atoms: Atoms, given: Parameters) -> None:
        integrator: Any = super()
        integrator.__init__(
            atoms=atoms,
            timestep=given.timestep * units.fs,
            temperature_K=given.temperature,
            pressure_au=given.pressure,
            tdamp=given.thermostat_time * units.fs,
            pdamp=given.barostat_time * units.fs,
        )
        self._degrees = given.degrees
        self._num_atoms_global = given.degrees / 3
        self._set_masses(given.temperature)

    def _set_masses(self, temperature: float) -> None:
        self._temperature_K, self._kT = temperature, units.kB * temperature
        _set_thermostat(self._thermostat, self._degrees, temperature)  # type: ignore[attr-defined]
        barostat: Any = self._barostat  # type: ignore[attr-defined]
        barostat._kT = self._kT
        scale = self._kT * barostat._pdamp**2
        barostat._W = self._barostat_factor() * scale
        barostat._R[:] = scale
        barostat._R[0] *= self.CELL_DEGREES

    def _barostat_factor(self) -> float:
        raise NotImplementedError


class IsotropicMTK(MTK, IsotropicMTKNPT):
    """The volume fluctuates, the shape of the cell stays."""

    CELL_DEGREES = 1
    VARIABLES = (*MTK.VARIABLES, "_eps", "_p_eps", "_cell0", "_volume0")

    def _barostat_factor(self) -> float:
        return self._degrees + 3


class FlexibleMTK(MTK, MTKNPT):
    """Volume and shape fluctuate.

    The momentum of the cell is symmetric, so that the cell does not rotate. It has six components,
    but ASE's thermostat counts nine, which keeps the cell at 1.5 times the temperature.
    """

    CELL_DEGREES = 6
    VARIABLES = (*MTK.VARIABLES, "_p_g")

    def __init__(self, atoms: Atoms, given: Parameters) -> None:
        super().__init__(atoms, given)
        self._barostat._cell_dof = self.CELL_DEGREES

    def _barostat_factor(self) -> float:
        return self._degrees / 3 + 1


INTEGRATORS: dict[tuple[str, str], type[Any]] = {
    ("none", "none"): NVE,
    ("langevin", "none"): Langevin,
    ("bussi", "none"): BussiRescaling,
    ("nose-hoover", "none"): NoseHoover,
    ("berendsen", "none"): BerendsenThermostat,
    ("nose-hoover", "mtk"): IsotropicMTK,
    ("nose-hoover", "mtk-full"): FlexibleMTK,
    ("berendsen", "berendsen"): BerendsenBarostat,
}
"""By thermostat and barostat."""


def make(atoms: Atoms, thermostat: str, barostat: str, given: Parameters) -> Integrator:
    """The integrator with these methods, for atoms with momenta and a calculator.

    Langevin noise pushes the centre of mass, which is therefore fixed unless atoms are.
    """
    if thermostat == "langevin" and not atoms.constraints:
        atoms.set_constraint(FixCom())
    integrator: Integrator = INTEGRATORS[thermostat, barostat](atoms, given)
    return integrator


def degrees_of_freedom(atoms: Atoms, thermostat: str) -> int:
    """Number of thermal degrees of freedom.

    The total momentum is zero unless atoms are fixed. The angular momentum of a free molecule is
    zero unless the noise of a Langevin thermostat changes it.
    """
    count = 3 * len(atoms) - sum(c.get_removed_dof(atoms) for c in atoms.constraints)
    if atoms.constraints:
        return int(count)
    count -= 3
    if not atoms.pbc.any() and thermostat != "langevin":
        moments = atoms.get_moments_of_inertia()
        count -= int((moments > LINEAR * max(moments.max(), 1e-12)).sum())
    return int(count)


def start_velocities(
    atoms: Atoms, temperature: float, degrees: int, rng: np.random.Generator
) -> None:
    """Set momenta of exactly this temperature (K) and zero total momentum and rotation."""
    from ase.md.velocitydistribution import thermalize_momenta

    thermalize_momenta(atoms, temperature, rng=rng)
    remove_rigid_motion(atoms)
    now = temperature_of(atoms, degrees)
    atoms.set_momenta(atoms.get_momenta() * np.sqrt(temperature / now))


def remove_rigid_motion(atoms: Atoms) -> None:
    """Remove the total momentum, and the rotation of a molecule, unless atoms are fixed."""
    from ase.md.velocitydistribution import Stationary, ZeroRotation

    if not atoms.constraints:
        Stationary(atoms, preserve_temperature=False)
        if not atoms.pbc.any():
            with np.errstate(invalid="ignore"):  # 0 / 0 about the axis of a linear molecule
                ZeroRotation(atoms, preserve_temperature=False)


def temperature_of(atoms: Atoms, degrees: int) -> float:
    """Temperature, K, with so many thermal degrees of freedom."""
    return float(2 * atoms.get_kinetic_energy() / (degrees * units.kB))
