"""Other tools with our calculator, where they are installed, and what lets them find it."""

import tomllib
from importlib import import_module

from tests_support import TESTS


def test_the_entry_point_is_light():
    """OpenMM-ML loads it while it is being imported itself."""
    project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["openmmml.potentials"]["dpa3"].split(":")
    assert callable(getattr(import_module(module), name)().createImpl)
