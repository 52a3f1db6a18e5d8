"""The names of :mod:`dpa3sim.structures.reading` that scripts import from here."""

from __future__ import annotations

from dpa3sim.structures.reading import Source, read_structure, read_structures

__all__ = ["Source", "read_structure", "read_structures"]
