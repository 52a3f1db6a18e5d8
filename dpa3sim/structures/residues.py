"""The elements of atoms in PDB and GROMACS files, whose names are those of force fields.

``CA`` is a carbon of an amino acid, or calcium. ASE guesses, and takes virtual sites for metals.
"""

from __future__ import annotations

import io
import re
from typing import TextIO

from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.structures.given import ISOTOPES

# Residues whose atoms have names of one-letter elements with a position: CA is an alpha carbon.
BIOLOGICAL = frozenset(
    "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL ASX GLX "
    "HID HIE HIP HSD HSE HSP CYX CYM ASH GLH LYN ACE NME NMA DA DC DG DT DU A C G U RA RC RG RU "
    "HOH WAT SOL H2O DOD TIP TIP3 TIP4 TIP5 SPC POPC POPE DPPC DOPC CHL1".split()
)
# Names of ions in CHARMM.
IONS = {"SOD": "Na", "POT": "K", "CLA": "Cl", "CAL": "Ca", "CES": "Cs", "LIT": "Li", "RUB": "Rb"}
# Elements whose symbols are followed by a position in names, and those of two letters that no one
# abbreviates in another way.
SINGLE, CERTAIN = frozenset("HCNOSPFBIKD"), frozenset(("Cl", "Br", "Si", "Fe"))
PLACES = slice(12, 16)


def element(name: str, residue: str, aligned: bool = False) -> str:
    """The element, or D, of an atom.

    Args:
        name: of the atom; four characters if ``aligned``, so that the symbol ends at the second.
        residue: its name.

    Raises:
        InputError: the name means no element, or may mean several.
    """
    bare, of_ion = name.strip(), re.sub(r"[\d+\-]", "", residue.strip().upper())
    letters = re.match(r"\d*([A-Za-z]*)", bare)
    word = letters.group(1) if letters else ""
    one, two = word[:1].upper(), word[:2].capitalize() if len(word) > 1 else ""
    ion = of_ion == word.upper() or of_ion in ("ION", "IONS")
    if ion and word.upper() in IONS:
        return IONS[word.upper()]
    known = two in SYMBOLS
    if known and (ion or word[1].islower()):
        return two
    first = one in SINGLE and not word.upper().startswith("DU")
    if first and (one in "HD" or len(word) == 1 or residue.strip().upper() in BIOLOGICAL):
        return one
    if aligned and len(bare) < 4 and name[:1] == " " and first:
        return one
    if known and ((aligned and len(bare) < 4 and name[:1] != " ") or two in CERTAIN or not first):
        return two
    if len(word) == 1 and (one in SYMBOLS or one in ISOTOPES):
        return one
    if first and not known:
        return one
    which = f"can be {one} or {two}" if first and known else "is no element"
    raise InputError(
        f"atom {bare} of residue {residue.strip()} {which}; write the elements into the file "
        "(columns 77-78 of a PDB file), or convert it to a format with elements"
    )


def pdb(text: str) -> TextIO:
    """A PDB file with an element for each atom.

    Raises:
        InputError: atoms have alternative places, or no element.
    """
    lines, alternatives, new = [], set(), False
    for line in text.splitlines():
        if line.startswith("END") and not new:  # behind the last ENDMDL
            continue
        new = not line.startswith("END") and (new or line.startswith(("ATOM  ", "HETATM")))
        if line.startswith(("ATOM  ", "HETATM")):
            alternatives.add(line[16:17].strip())
            if _share(line) or len(alternatives - {""}) > 1:
                raise InputError(
                    f"has partially occupied sites or alternative places of atoms ({line[:26]}); "
                    "keep one of them"
                )
            symbol = line[76:78].strip()
            if not symbol.isalpha():
                symbol = element(line[PLACES], line[17:21], aligned=True)
            line = f"{line[:76].ljust(76)}{symbol.upper():>2s}"
        lines.append(line)
    return io.StringIO("\n".join(lines) + "\n")


def _share(line: str) -> bool:
    """Whether an atom is there only partially; 0 is written by programs that do not know it."""
    try:
        return 0.005 < float(line[54:60]) < 0.995
    except ValueError:
        return False


def gromacs(text: str) -> TextIO:
    """A GROMACS file with elements as the names of its atoms.

    Raises:
        InputError: an atom has no element.
    """
    lines = text.splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    for k in range(2, len(lines) - 1):
        line = lines[k]
        lines[k] = f"{line[:10]}{element(line[10:15], line[5:10]):>5s}{line[15:]}"
    return io.StringIO("\n".join(lines) + "\n")
