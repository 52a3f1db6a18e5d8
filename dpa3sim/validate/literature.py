"""Measured properties of crystals at room temperature, with their sources.

Lattice constants in Å, elastic constants in GPa, frequencies of transverse optical modes at the
centre of the Brillouin zone in 1/cm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms

THZ = 0.0299792458
"""Frequency, THz, of a wave number of 1/cm."""

# Sources by their key. Those in CHECKED had their numbers compared with an abstract or a copy of
# the table; the others are quoted as handbooks commonly give them.
SOURCES = {
    "wyckoff": "R. W. G. Wyckoff, Crystal Structures, 2nd ed. (1963)",
    "crc-metals": "CRC Handbook of Chemistry and Physics, Elastic Constants: metals",
    "crc-salts": "the same: salts",
    "crc-a": "CRC Handbook of Chemistry and Physics, Crystal Structure of the Elements",
    "vurgaftman": "Vurgaftman, Meyer, Ram-Mohan, J. Appl. Phys. 89, 5815 (2001)",
    "mcskimin-gaas": "McSkimin, Jayaraman, Andreatch, J. Appl. Phys. 38, 2362 (1967)",
    "mcskimin-si": "McSkimin, Andreatch, J. Appl. Phys. 35, 2161 (1964)",
    "mcskimin-ge": "McSkimin, Andreatch, J. Appl. Phys. 34, 651 (1963)",
    "grimsditch": "Grimsditch, Ramdas, Phys. Rev. B 11, 3139 (1975)",
    "sinogeikin": "Sinogeikin, Bass, Phys. Rev. B 59, R14141 (1999)",
    "huffman": "Huffman, Norwood, Phys. Rev. 117, 709 (1960)",
    "wachtman": "Wachtman, Wheat, Marzullo, J. Res. Natl. Bur. Stand. 67A, 193 (1963)",
    "parker": "Parker, Feldman, Ashkin, Phys. Rev. 155, 712 (1967)",
    "solin": "Solin, Ramdas, Phys. Rev. B 1, 1687 (1970)",
    "mooradian": "Mooradian, Wright, Solid State Commun. 4, 431 (1966)",
    "jasperse": "Jasperse, Kahan, Plendl, Mitra, Phys. Rev. 146, 526 (1966)",
    "lowndes": "Lowndes, Martin, Proc. R. Soc. A 308, 473 (1969)",
    "kaiser": "Kaiser, Spitzer, Kaiser, Howarth, Phys. Rev. 127, 1950 (1962)",
    "servoin": "Servoin, Luspin, Gervais, Phys. Rev. B 22, 5501 (1980)",
    "parker-mg": "Parker, Feldman, Ashkin, in Light Scattering Spectra of Solids (1969)",
}
CHECKED = {
    "crc-metals",
    "crc-a",
    "vurgaftman",
    "mcskimin-gaas",
    "wachtman",
    "parker",
    "solin",
    "kaiser",
    "parker-mg",
}


@dataclass(frozen=True)
class Crystal:
    """A crystal and what was measured of it.

    Attributes:
        prototype: name of the structure, as ASE's ``bulk`` has it, or ``perovskite``.
        lattice: measured ``a``, and ``c`` of a hexagonal crystal, Å.
        elastic: measured constants, such as ``{"C11": 165.8}``, GPa.
        mode: irreducible representation of the optical mode compared, and its measured wave
            number, 1/cm; of several modes of that representation, the highest. None: no optical
            branch.
        sources: keys of lattice, elastic constants and mode.
    """

    prototype: str
    lattice: tuple[float, ...]
    elastic: dict[str, float]
    mode: tuple[str, float] | None
    sources: tuple[str, ...]

    @property
    def bulk_modulus(self) -> float:
        """Of the measured constants, GPa: that of a cubic crystal, or Voigt's mean."""
        c = self.elastic
        if "C33" not in c:
            return (c["C11"] + 2 * c["C12"]) / 3
        return (2 * c["C11"] + c["C33"] + 2 * c["C12"] + 4 * c["C13"]) / 9

    def atoms(self, formula: str, cubic: bool = False) -> Atoms:
        """The primitive or the cubic cell with the measured lattice, cubic axes along x, y, z."""
        from ase import Atoms
        from ase.build import bulk

        a = self.lattice[0]
        if self.prototype == "perovskite":
            half = 0.5
            places = [[0, 0, 0], [half] * 3, [half, half, 0], [half, 0, half], [0, half, half]]
            return Atoms(formula, scaled_positions=places, cell=[a] * 3, pbc=True)
        c = self.lattice[1] if len(self.lattice) > 1 else None
        return bulk(formula, self.prototype, a=a, c=c, cubic=cubic)


def _cubic(c11: float, c12: float, c44: float) -> dict[str, float]:
    return {"C11": c11, "C12": c12, "C44": c44}


# Cheapest first.
CRYSTALS = {
    "Cu": Crystal("fcc", (3.615,), _cubic(168.3, 121.2, 75.7), None, ("crc-a", "crc-metals")),
    "Al": Crystal("fcc", (4.050,), _cubic(106.8, 60.4, 28.3), None, ("crc-a", "crc-metals")),
    "Ni": Crystal("fcc", (3.524,), _cubic(248.1, 154.9, 124.2), None, ("crc-a", "crc-metals")),
    "W": Crystal("bcc", (3.165,), _cubic(522.4, 204.4, 160.6), None, ("crc-a", "crc-metals")),
    "Mo": Crystal("bcc", (3.147,), _cubic(463.7, 157.8, 109.2), None, ("crc-a", "crc-metals")),
    "Si": Crystal(
        "diamond",
        (5.431,),
        _cubic(165.8, 63.9, 79.6),
        ("T2g", 520.2),
        ("wyckoff", "mcskimin-si", "parker"),
    ),
    "Ge": Crystal(
        "diamond",
        (5.658,),
        _cubic(128.5, 48.3, 66.8),
        ("T2g", 300.7),
        ("wyckoff", "mcskimin-ge", "parker"),
    ),
    "GaAs": Crystal(
        "zincblende",
        (5.653,),
        _cubic(118.8, 53.7, 59.4),
        ("T2", 268.6),
        ("vurgaftman", "mcskimin-gaas", "mooradian"),
    ),
    "InP": Crystal(
        "zincblende",
        (5.870,),
        _cubic(101.1, 56.1, 45.6),
        ("T2", 303.7),
        ("vurgaftman", "vurgaftman", "mooradian"),
    ),
    "MgO": Crystal(
        "rocksalt",
        (4.212,),
        _cubic(297.9, 95.8, 154.4),
        ("T1u", 401),
        ("wyckoff", "sinogeikin", "jasperse"),
    ),
    "LiF": Crystal(
        "rocksalt",
        (4.027,),
        _cubic(114.0, 47.7, 63.6),
        ("T1u", 306),
        ("wyckoff", "crc-salts", "jasperse"),
    ),
    "NaCl": Crystal(
        "rocksalt",
        (5.640,),
        _cubic(49.5, 12.9, 12.9),
        ("T1u", 164),
        ("wyckoff", "crc-salts", "lowndes"),
    ),
    "KCl": Crystal(
        "rocksalt",
        (6.293,),
        _cubic(40.7, 7.1, 6.3),
        ("T1u", 142),
        ("wyckoff", "crc-salts", "lowndes"),
    ),
    "Mg": Crystal(
        "hcp",
        (3.209, 5.211),
        _cubic(59.5, 26.1, 16.4) | {"C33": 61.6, "C13": 21.8},
        ("E2g", 120),
        ("crc-a", "crc-metals", "parker-mg"),
    ),
    "CaF2": Crystal(
        "fluorite",
        (5.463,),
        _cubic(164.2, 44.0, 33.7),
        ("T1u", 257),
        ("wyckoff", "huffman", "kaiser"),
    ),
    "SrTiO3": Crystal(
        "perovskite",
        (3.905,),
        _cubic(315.6, 102.7, 121.5),
        ("T1u", 543),
        ("wyckoff", "wachtman", "servoin"),
    ),
    "C": Crystal(
        "diamond",
        (3.567,),
        _cubic(1076.4, 125.2, 577.4),
        ("T2g", 1332),
        ("wyckoff", "grimsditch", "solin"),
    ),
}
