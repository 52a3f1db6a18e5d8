"""The entry point of OpenMM-ML: ``MLPotential("dpa3")`` is a DPA3 model.

OpenMM-ML imports this module whenever it is imported, so that it has to be light, and before it is
complete, so that nothing of it is imported here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpa3sim.clients.openmm import Implementation
    from dpa3sim.potential.settings import Dtype, Truncate

__all__ = ["Factory"]


class Factory:
    """Makes potentials for OpenMM-ML."""

    def createImpl(  # noqa: N802 - OpenMM-ML calls it so
        self,
        name: str,
        *,
        model: str | Path | None = None,
        head: str | None = None,
        device: str = "auto",
        dtype: Dtype = "auto",
        truncate: Truncate = "auto",
        smooth_cutoff: float | None = None,
    ) -> Implementation:
        """A potential with the arguments of ``MLPotential("dpa3", ...)``.

        Args:
            name: that of the entry point.
            model, head, device, dtype, truncate, smooth_cutoff: see :class:`dpa3sim.Potential`.

        Raises:
            CheckpointError, InputError: see :class:`dpa3sim.Potential`.
        """
        from dpa3sim.clients.openmm import Implementation
        from dpa3sim.potential.potential import Potential

        return Implementation(
            Potential(
                model,
                head=head,
                device=device,
                dtype=dtype,
                truncate=truncate,
                smooth_cutoff=smooth_cutoff,
            )
        )
