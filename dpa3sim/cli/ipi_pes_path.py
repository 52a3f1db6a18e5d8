"""Print the path of the PES file for i-PI's <ffdirect> and for i-pi-py_driver -m custom."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from dpa3sim.cli.options import Parser


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim ipi pes-path``: none."""


def run(args: argparse.Namespace) -> int:
    """Print the absolute path, for ``<pes_path>`` and ``-P``."""
    spec = find_spec("dpa3sim.ipi.pes")
    assert spec is not None
    print(spec.origin)
    return 0
