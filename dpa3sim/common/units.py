"""Units that :mod:`ase.units` lacks; values are in terms of eV, Å and u by default."""

from __future__ import annotations

GPA = 1.0 / 160.21766208
"""eV/Å^3 in a GPa (CODATA 2014, as in ASE)."""
KJ_PER_MOL = 96.48533212
"""kJ/mol in an eV."""
J_PER_K_MOL = 1000 * KJ_PER_MOL
"""J/(K mol) in an eV/K."""
KELVIN_PER_THZ = 47.99243
"""h/k_B, K in a THz."""
KM_PER_S = 0.1
"""km/s in a THz Å."""
J_PER_M2 = 16.02176634
"""J/m^2 in an eV/Å^2."""
G_PER_CM3 = 1.66053906660
"""g/cm^3 in a u/Å^3."""
M2_PER_S = 1e-8
"""m^2/s in an Å^2/ps."""
KCAL_PER_MOL = 4184 / (1.602176634e-19 * 6.02214076e23)
"""eV in a kcal/mol."""
