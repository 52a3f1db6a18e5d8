"""Electronic configurations of the free atoms, the input rows of ``use_econf_tebd``.

Ground states: the Madelung order with the observed exceptions (NIST Atomic Spectra Database,
"Ground levels"; Ds and Rg as predicted). The row of an element is what deepmd-kit 3.2.0 stores
in its frozen models: 118 spin-orbitals, +1/sqrt(118) when occupied and -1/sqrt(118) when not.
"""

from __future__ import annotations

import numpy as np

from dpa3sim.common.elements import ATOMIC_NUMBERS
from dpa3sim.common.errors import CheckpointError

ECONF_DIM = 118
_L = "spdf"
# In storage order; each subshell has 2 * (2l + 1) spin-orbitals, 118 in all.
_SUBSHELLS = "1s 2s 2p 3s 3p 3d 4s 4p 4d 4f 5s 5p 5d 5f 6s 6p 6d 7s 7p".split()
_EXCEPTIONS = {
    "Cr": "3d5 4s1",
    "Cu": "3d10 4s1",
    "Nb": "4d4 5s1",
    "Mo": "4d5 5s1",
    "Ru": "4d7 5s1",
    "Rh": "4d8 5s1",
    "Pd": "4d10 5s0",
    "Ag": "4d10 5s1",
    "La": "4f0 5d1",
    "Ce": "4f1 5d1",
    "Gd": "4f7 5d1",
    "Pt": "5d9 6s1",
    "Au": "5d10 6s1",
    "Ac": "5f0 6d1",
    "Th": "5f0 6d2",
    "Pa": "5f2 6d1",
    "U": "5f3 6d1",
    "Np": "5f4 6d1",
    "Cm": "5f7 6d1",
    "Ds": "6d9 7s1",
    "Rg": "6d10 7s1",
}


def occupations(symbol: str) -> dict[str, int]:
    """Number of electrons in each subshell (``1s`` ... ``7p``) of a neutral atom."""
    electrons = ATOMIC_NUMBERS[symbol]
    filled = dict.fromkeys(_SUBSHELLS, 0)
    # Madelung rule: by n + l, then by n.
    for shell in sorted(_SUBSHELLS, key=lambda s: (int(s[0]) + _L.index(s[1]), int(s[0]))):
        filled[shell] = min(electrons, _capacity(shell))
        electrons -= filled[shell]
    for term in _EXCEPTIONS.get(symbol, "").split():
        filled[term[:2]] = int(term[2:])
    return filled


def econf_rows(symbols: tuple[str, ...]) -> np.ndarray:
    """Rows of the electronic-configuration input, shape ``(len(symbols), 118)``, norm 1.

    Within a subshell the spin-orbitals stand as (down, up) for each m; by Hund's rule all
    "up" are filled before the first "down". Raises CheckpointError for non-elements.
    """
    rows = np.full((len(symbols), ECONF_DIM), -1.0)
    for row, symbol in zip(rows, symbols, strict=True):
        if symbol not in ATOMIC_NUMBERS:
            raise CheckpointError(f"use_econf_tebd needs chemical elements, not type {symbol!r}")
        start = 0
        for shell, count in occupations(symbol).items():
            size = _capacity(shell)
            up = min(count, size // 2)
            row[start + 1 : start + 2 * up : 2] = 1.0
            row[start : start + 2 * (count - up) : 2] = 1.0
            start += size
    return rows / np.sqrt(ECONF_DIM)


def _capacity(shell: str) -> int:
    return 2 * (2 * _L.index(shell[1]) + 1)
