"""Which level of theory a model was trained to, where its name tells."""

from __future__ import annotations

from dataclasses import dataclass

from dpa3sim.checkpoints.model_file import ModelFile
from dpa3sim.checkpoints.registry import find_entry


@dataclass(frozen=True)
class Theory:
    """A level of theory.

    Attributes:
        functional: of the density, by its usual name.
        dispersion: the dispersion that it includes; None if it includes none.
    """

    functional: str
    dispersion: str | None = None

    def __str__(self) -> str:
        return (
            self.functional if self.dispersion is None else f"{self.functional}-{self.dispersion}"
        )


_PBE = Theory("PBE")
_PBE_D3 = Theory("PBE", "D3")
# Heads of public checkpoints, and single-task models of the registry
# (docs/dispersion.md#which-models).
_THEORIES = {
    "dpa3-openlam": _PBE,
    "dpa3-mptrj": _PBE,
    "dpa-3.1-mptrj": _PBE,
    "dpa-3.1-3m-ft": _PBE,
    "dpa3-omol-large": Theory("ωB97M", "V"),
    "alex2d": _PBE,
    "domains_alloy": _PBE,
    "domains_drug": Theory("ωB97X", "D"),
    "domains_ferroele": Theory("PBEsol"),
    "domains_sse_pbe": _PBE,
    "domains_sse_pbesol": Theory("PBEsol"),
    "electrolyte": _PBE_D3,
    "h2o_h2o_pd": Theory("SCAN"),
    "hybrid_perovskite": _PBE_D3,
    "metals_agau_pbed3": _PBE_D3,
    "mp_traj_v024_alldata_mixu": _PBE,
    "mptrj": _PBE,
    "oc20m": Theory("RPBE"),
    "oc22": _PBE,
    "odac23": _PBE_D3,
    "omat24": _PBE,
    "omol25": Theory("ωB97M", "V"),
    "organic_reactions": Theory("GFN2-xTB", "D4"),
    "spice2": Theory("ωB97M", "D3"),
    "sse_abacus": Theory("PBEsol"),
}


def theory_of(model: ModelFile) -> Theory | None:
    """The level of theory of a public model or head, or of its student; None if unknown.

    A student of a teacher with dispersion has learnt it.
    """
    teacher = model.origin.get("teacher")
    entry = find_entry(teacher or model.name)
    name = model.head or (model.name if entry is None else entry.name)
    theory, learnt = _THEORIES.get(name.lower()), model.origin.get("dispersion")
    if learnt is not None:
        return Theory("an unknown functional" if theory is None else theory.functional, learnt)
    return theory
