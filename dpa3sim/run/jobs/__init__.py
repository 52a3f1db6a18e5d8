"""One module for each protocol: what its run directory holds, and its result in words."""

from __future__ import annotations

from importlib import import_module

from dpa3sim.common.errors import InputError
from dpa3sim.run.job import Job

# Of the classes `XyzJob` in the modules of this folder.
JOBS = {
    "relax": "RelaxJob",
    "sp": "SinglePointJob",
    "eos": "EosJob",
    "elastic": "ElasticJob",
    "phonon": "PhononJob",
    "gruneisen": "GruneisenJob",
    "qha": "QhaJob",
    "kappa": "KappaJob",
    "vacancy": "VacancyJob",
    "surface": "SurfaceJob",
    "neb": "NebJob",
    "md": "MDJob",
    "pimd": "PimdJob",
}


def job_of(protocol: str) -> type[Job]:
    """The job of a protocol.

    Raises:
        InputError: there is none of this name.
    """
    if protocol not in JOBS:
        raise InputError(f"{protocol!r} is not a protocol; there are {', '.join(JOBS)}")
    module = import_module(f"dpa3sim.run.jobs.{protocol}")
    found: type[Job] = getattr(module, JOBS[protocol])
    return found
