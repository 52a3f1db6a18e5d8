"""Vacancies of crystals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpa3sim.common.errors import InputError
from dpa3sim.protocols import vacancy
from dpa3sim.run.job import PropertyJob
from dpa3sim.run.output import write_structure
from dpa3sim.structures.reading import Source, read_structures


class VacancyJob(PropertyJob):
    """Vacancies of one crystal, with references that are read from files."""

    name, title, protocol = "vacancy", "vacancies", vacancy

    settings: vacancy.Settings

    def check(self) -> None:
        """Raise InputError if the structure is not a crystal, or a reference cannot be used."""
        super().check()
        self._references = _read(self.settings.reference)
        for source in self._references:
            self.potential.check(source.atoms)
            vacancy.reference_element(source.origin, source.atoms)

    def read(self) -> tuple[Source, ...]:
        """The crystal and the references."""
        return (*self.sources, *self._references)

    def arguments(self) -> dict[str, Any]:
        """The references by their file names."""
        return {"references": {source.origin: source.atoms for source in self._references}}

    def _summary(self) -> dict[str, Any]:
        hashes = [source.sha256 for source in self._references]
        return {**super()._summary(), **({"reference_sha256": hashes} if hashes else {})}

    def write(self, folder: Path, result: vacancy.Result) -> None:
        """Write the relaxed crystal, and each vacancy in its largest supercell."""
        write_structure(folder, "structure_relaxed", result.prepared.atoms)
        digits = max(2, len(str(len(result.vacancies) - 1)))
        for number, by_size in enumerate(result.vacancies):
            largest = by_size[-1]
            name = f"vacancy-{number:0{digits}d}-{largest.site.element}"
            write_structure(folder, name, largest.atoms)

    def draw(self, folder: Path, result: vacancy.Result, label: str) -> None:
        """Draw the convergence with the size of the supercell."""
        from dpa3sim.report.plots.defects import plot_vacancies

        plot_vacancies(folder, result, label)

    def findings(self, stored: dict[str, Any]) -> list[str]:
        """The reference energies, and a table of all sites and sizes."""
        summary = [
            f"chemical potential of {element}: {entry['chemical_potential_eV']:.6f} eV "
            f"({entry['reference']})"
            for element, entry in stored["chemical_potentials"].items()
        ]
        summary.append(
            "site            atoms  faces (Å)  formation energy (eV)  unrelaxed  shell (Å)"
        )
        for number, site in enumerate(stored["sites"]):
            name = f"{number} {site['element']} ({site['wyckoff']})"
            for size in site["by_size"]:
                # Without a chemical potential, the removal energy is shown and marked.
                kind = "formation" if size["formation_energy_eV"] is not None else "removal"
                value, start = size[f"{kind}_energy_eV"], size[f"{kind}_energy_unrelaxed_eV"]
                text = f"{value:.4f}" + (" - mu" if kind == "removal" else "")
                summary.append(
                    f"{name:<14}  {size['n_atoms_perfect']:5d}  {size['face_distance_A']:9.2f}  "
                    f"{text:>21}  {start:9.4f}  {size['neighbour_displacement_A']:+9.3f}"
                )
                name = ""
        return summary


def _read(files: str | None) -> list[Source]:
    """The reference structures.

    Raises:
        InputError: one cannot be read.
    """
    names = [name.strip() for name in (files or "").split(",") if name.strip()]
    sources = []
    for source in read_structures(names):
        if isinstance(source, InputError):
            raise source
        sources.append(source)
    return sources
