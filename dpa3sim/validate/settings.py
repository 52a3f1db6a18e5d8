"""What is checked, and how thoroughly: one definition for Python, flags and config files."""

from __future__ import annotations

from dataclasses import dataclass

from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option
from dpa3sim.protocols.crystals.prepare import dtype_option
from dpa3sim.validate.literature import CRYSTALS

CHECKS = ("invariances", "scans", "dynamics", "dimers", "crystals", "speed")
# Of each kind of bonding some, which one evaluation costs little.
USUAL = "Cu Al W Si GaAs C MgO NaCl KCl Mg CaF2 SrTiO3"


@dataclass(frozen=True)
class ValidateSettings:
    """Options of the checks of a model."""

    checks: str = option(" ".join(CHECKS), f"which of them: {', '.join(CHECKS)}", repeatable=True)
    crystals: str = option(USUAL, f"reference crystals, of {', '.join(CRYSTALS)}", repeatable=True)
    supercell: str = option("10A", "supercell of the phonons, as for phonon")
    steps: int = option(200, "steps of the dynamics", minimum=10)
    timestep: float = option(1.0, "time step of the dynamics", unit="fs", minimum=0.01)
    temperature: float = option(
        300.0, "temperature of the dynamics, about which it equilibrates", unit="K", minimum=0.0
    )
    dtype: str = dtype_option()

    def __post_init__(self) -> None:
        options_of.validate(self)
        for name, known in (("checks", CHECKS), ("crystals", tuple(CRYSTALS))):
            for word in getattr(self, name).split():
                if word not in known:
                    raise InputError(
                        f"option {name}: {word!r} is not one of {', '.join(known)}"
                        + options_of.suggestion(word, known)
                    )
        if not self.checks.split():
            raise InputError("option checks is empty: name at least one")
