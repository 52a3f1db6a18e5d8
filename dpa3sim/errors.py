"""The errors of dpa3sim, under the name that its pages use; they are defined in ``common``."""

from dpa3sim.common.errors import *  # noqa: F403
