"""Simulation protocols: physics only, no files, no terminal. Installed as ``dpa3sim.protocols``.

Each public module satisfies :class:`dpa3sim.protocols.base.Property`; ``crystals``, ``harmonics``,
``anharmonics`` and ``dynamics`` hold what the protocols share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# The public modules, which are imported only when they are used.
PUBLIC = tuple(
    "relax sp eos elastic phonon gruneisen qha kappa vacancy surface neb md pimd".split()
)

if TYPE_CHECKING:
    from . import (
        elastic,
        eos,
        gruneisen,
        kappa,
        md,
        neb,
        phonon,
        pimd,
        qha,
        relax,
        sp,
        surface,
        vacancy,
    )
    from .base import Property

    # The type checker verifies that each of them satisfies the contract.
    _CRYSTALS: tuple[Property, ...] = (
        eos,
        elastic,
        phonon,
        gruneisen,
        qha,
        kappa,
        vacancy,
        surface,
    )
    _OTHERS: tuple[Property, ...] = (relax, sp, neb, md, pimd)
