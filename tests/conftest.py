"""Fixtures that several tests share; helpers are in tests_support.py."""

from __future__ import annotations

import signal

import pytest
from ase import Atoms
from tests_support import DATA, load_reference, reference_atoms

from dpa3sim import Potential

# In the background of a shell SIGINT is ignored, by whatever is started from there too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def embedded() -> Potential:
    """The embedded model in its own precision."""
    return Potential()


@pytest.fixture(scope="session")
def embedded64() -> Potential:
    """The embedded model in float64."""
    return Potential(dtype="float64")


@pytest.fixture(scope="session")
def smooth() -> Potential:
    """A small random float64 model without steps in its energy surface (H and O only)."""
    return Potential(DATA / "models/dynamic/model.pt")


@pytest.fixture
def water() -> Atoms:
    """Eight water molecules in a triclinic box."""
    cases = load_reference(DATA / "models/dynamic/reference.json")
    return reference_atoms(next(c for c in cases if c["system"] == "water8_triclinic"))
