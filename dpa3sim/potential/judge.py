"""Uncertainties of a batch, from what the last layer of the fitting net reads, on its device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dpa3sim.potential.evaluation import Uncertainty
from dpa3sim.uncertainty.rigidity import Rigidity


class Judge:
    """Tells how certain a model is, without asking the device.

    Args:
        rigidity: of the model. device: where the model is.
    """

    def __init__(self, rigidity: Rigidity, device: torch.device) -> None:
        self._alpha = rigidity.alpha
        self._whitening = torch.from_numpy(rigidity.whitening()).to(device)

    def __call__(
        self,
        features: Tensor,
        sum_structures: Callable[[Tensor], Tensor],
        to_atoms: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """What :meth:`unpack` takes: sigma / alpha of structures and of atoms, and novelties.

        Args:
            features: ``(n_atoms, width)`` in the order of a graph.
            sum_structures: sums rows over the atoms of each structure.
            to_atoms: brings rows to the order of the structures' atoms.
        """
        of_energies, of_atoms = (features @ self._whitening).chunk(2, dim=1)
        parts = (
            torch.linalg.vector_norm(sum_structures(of_energies), dim=1),
            to_atoms(torch.linalg.vector_norm(of_energies, dim=1)),
            to_atoms(torch.linalg.vector_norm(of_atoms, dim=1)),
        )
        return torch.cat(parts)

    def unpack(self, values: np.ndarray, sizes: Sequence[int]) -> list[Uncertainty]:
        """The uncertainty of each structure, of so many atoms."""
        n, m = sum(sizes), len(sizes)
        totals, energies, novelties = np.split(values, [m, m + n])
        ends = np.cumsum(sizes)[:-1]
        found = []
        for total, own, new in zip(
            totals.tolist(), np.split(energies, ends), np.split(novelties, ends), strict=True
        ):
            if self._alpha is None:
                found.append(Uncertainty(new.copy()))
            else:
                found.append(Uncertainty(new.copy(), self._alpha * total, self._alpha * own))
        return found
