"""Plots of paths, vacancies and surfaces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dpa3sim.common.units import J_PER_M2
from dpa3sim.report.plots.properties import pyplot, save

if TYPE_CHECKING:
    from dpa3sim.protocols import neb, surface, vacancy


def plot_path(folder: Path, result: neb.Result, label: str) -> None:
    """Plot the energy along the path, with its spline: ``path.png``, ``path.svg``."""
    band = result.band
    zero = band.energies[0]
    dense, spline = band.spline()
    figure, axis = pyplot().subplots(figsize=(6, 4), layout="constrained")
    axis.plot(dense, spline - zero, "-", label="spline through energies and forces")
    axis.plot(band.path, band.energies - zero, "ko", markersize=5, label="images")
    reach = 0.25 * band.path[-1] / (len(band.path) - 1)
    for s, energy, force in zip(band.path, band.energies - zero, band.forces, strict=True):
        ends = [s - reach, s + reach]
        axis.plot(ends, [energy + force * reach, energy - force * reach], color="tab:green")
    forward = band.energies.max() - zero
    backward = band.energies.max() - band.energies[-1]
    if result.has_barrier:
        axis.plot(band.path[result.highest], forward, "r*", markersize=12, label="saddle point")
    axis.set_xlabel("path (Å)")
    axis.set_ylabel("energy (eV)")
    axis.grid(alpha=0.3)
    axis.margins(y=0.1)
    axis.legend(fontsize="small")
    state = "" if result.converged else ", not converged"
    axis.set_title(f"{label}: barrier {forward:.3f} eV, back {backward:.3f} eV{state}")
    save(figure, folder, "path")


def plot_vacancies(folder: Path, result: vacancy.Result, label: str) -> None:
    """Plot energies against the supercell size: ``vacancy.png``, ``vacancy.svg``."""
    figure, axis = pyplot().subplots(figsize=(6, 4), layout="constrained")
    known = all(site[0].formation is not None for site in result.vacancies)
    for by_size in result.vacancies:
        site = by_size[0].site
        inverse = [1 / v.n_atoms for v in by_size]
        mu = (by_size[0].chemical_potential or 0.0) if known else 0.0
        name = f"{site.element} ({site.wyckoff})"
        relaxed = [v.removal + mu for v in by_size]
        (line,) = axis.plot(inverse, relaxed, "o-", label=f"{name}, relaxed")
        start = [v.start - v.perfect + mu for v in by_size]
        axis.plot(
            inverse,
            start,
            "s--",
            color=line.get_color(),
            fillstyle="none",
            label=f"{name}, unrelaxed",
        )
    counts = sorted({v.n_atoms for by_size in result.vacancies for v in by_size})
    axis.set_xlim(0, 1.1 / counts[0])
    axis.set_xticks([1 / n for n in counts], [f"1/{n}" for n in counts])
    axis.set_xlabel("1 / atoms in the perfect supercell")
    axis.set_ylabel(f"{'formation energy' if known else 'energy without chemical potential'} (eV)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    formula = result.prepared.atoms.get_chemical_formula(empirical=True)
    axis.set_title(f"vacancies of {label}" + ("" if label == formula else f": {formula}"))
    save(figure, folder, "vacancy")


def plot_surfaces(folder: Path, result: surface.Result, label: str) -> None:
    """Plot energies of all faces, and against the thickness: ``surface.png``, ``.svg``."""
    from dpa3sim.protocols.crystals.slabs import face_name

    several = result.settings.terminations > 1
    names = [
        face_name(s.miller) + (f" cut {s.termination}" if several else "") for s in result.surfaces
    ]
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(9, 4), layout="constrained")
    ends = [s.slabs[-1] for s in result.surfaces]
    bars = {"relaxed": [s.gamma for s in ends], "unrelaxed": [s.gamma_unrelaxed for s in ends]}
    for shift, (kind, values) in zip((-0.2, 0.2), bars.items(), strict=True):
        places = [place + shift for place in range(len(names))]
        left.bar(places, [value * J_PER_M2 for value in values], width=0.38, label=kind)
    left.set_xticks(range(len(names)), names, rotation=0 if len(names) < 5 else 60)
    left.set_ylabel("surface energy (J/m²)")
    left.margins(y=0.25)
    left.legend(fontsize="small", ncols=2)
    for name, s in zip(names, result.surfaces, strict=True):
        change = [1000 * (slab.gamma - s.gamma) * J_PER_M2 for slab in s.slabs]
        right.plot([slab.thickness for slab in s.slabs], change, "o-", label=name)
    right.set_xlabel("thickness of the slab (Å)")
    right.set_ylabel("difference from the thickest slab (mJ/m²)")
    right.grid(alpha=0.3)
    right.legend(fontsize="small")
    formula = result.prepared.atoms.get_chemical_formula(empirical=True)
    figure.suptitle(f"surfaces of {label}" + ("" if label == formula else f": {formula}"))
    save(figure, folder, "surface")
