"""What protocols say they will evaluate is what they evaluate."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from tests_support import TESTS, EMTPotential

from dpa3sim.protocols import (
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
    surface,
    vacancy,
)
from dpa3sim.protocols.base import HESSIAN
from dpa3sim.protocols.dynamics.ring_polymers import simulate
from dpa3sim.protocols.harmonics.properties import HarmonicRun

CUTOFF = 6.0
STRAINED = bulk("Cu", a=3.65, cubic=True)


class Counting(EMTPotential):
    """Notes the sizes of what was asked for, by request."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def evaluate_each(self, structures):
        self.asked.append(Counter(len(getattr(s, "numbers", s)) for s in structures))
        return super().evaluate_each(structures)


def alloy(c=3.75):
    places = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return Atoms("AuCu3", scaled_positions=places, cell=[3.75, 3.75, c], pbc=True)


def compare(protocol, atoms, settings, *others):
    """Run a protocol and hold what it asked for against its stages; these are returned by name."""
    potential = Counting()
    planned = protocol.stages(atoms, *others, settings, CUTOFF)
    protocol.run(atoms, *others, potential, settings)
    asked = sum(potential.asked, Counter())
    possible, unknown = Counter(), set()
    for stage in planned:
        low, high = stage.evaluations
        assert 0 <= low <= high
        # All structures of a stage are in one request.
        sizes = Counter(stage.atoms)
        assert low == 0 or any(request >= sizes for request in potential.asked), stage
        if stage.exact:
            possible += Counter({n: low * count for n, count in sizes.items()})
        else:
            unknown |= set(sizes)
    assert set(asked) == set(possible) | (unknown & set(asked))
    for size, count in possible.items():
        assert asked[size] >= count if size in unknown else asked[size] == count, size
    return {stage.name: stage for stage in planned}, potential.asked


def test_elastic():
    hexagonal = bulk("Al", "hcp", a=2.8, c=4.6)
    for atoms, strains in ((STRAINED, 8), (alloy(), 8), (hexagonal, 12)):
        stages, asked = compare(elastic, atoms, elastic.Settings(fmax=1e-3, smax=0.05))
        assert stages["crystal and strained cells"].exact
        assert len(stages["crystal and strained cells"].atoms) == 1 + strains
        assert max(request.total() for request in asked) == 1 + strains
    settings = elastic.Settings(all_strains=True, magnitudes=3, relax_ions=False, relax=False)
    stages, asked = compare(elastic, STRAINED, settings)
    assert [request.total() for request in asked] == [37, 1]
    assert [s.exact for s in stages.values()] == [True, False]


def test_eos():
    stages, asked = compare(eos, STRAINED, eos.Settings(points=7))
    assert max(request.total() for request in asked) == 7
    assert not stages["volumes"].exact


HARMONIC = {"supercell": "2,2,2", "mesh": 20.0, "t_max": 300.0, "t_step": 50.0}


def test_phonon():
    stages, _ = compare(phonon, STRAINED, phonon.Settings(**HARMONIC))
    assert stages["displaced supercells"].atoms == [32]
    assert stages["displaced supercells"].exact
    stages, _ = compare(phonon, alloy(), phonon.Settings(**HARMONIC))
    assert len(stages["displaced supercells"].atoms) == 2
    # What relaxes to a higher symmetry takes less, which is told.
    (*_, less) = phonon.stages(alloy(c=3.7), phonon.Settings(**HARMONIC), CUTOFF)
    assert len(less.atoms) > 2
    assert not less.exact
    assert "fewer if" in less.note
    # The relaxed cell may need another one as wide.
    stages, _ = compare(phonon, STRAINED, phonon.Settings(**HARMONIC | {"supercell": "7A"}))
    assert not stages["displaced supercells"].exact
    assert "another supercell" in stages["displaced supercells"].note


@pytest.mark.slow
def test_kappa():
    pytest.importorskip("phono3py")
    options = {"supercell": "max-atoms=32", "supercell_fc2": "max-atoms=32", "mesh": "3,3,3"}
    options |= {"fmax": 1e-3, "smax": 0.05}
    systematic = kappa.Settings(displacements="systematic", **options)
    stages, asked = compare(kappa, STRAINED, systematic)
    third = stages["supercells of third order"]
    assert third.atoms == [32] * 37
    assert max(request.total() for request in asked) == 38
    assert "phono3py scatters phonons at 4 wave vectors" in third.note
    stages, _ = compare(kappa, STRAINED, kappa.Settings(displacements="random", **options))
    third = stages["supercells of third order"]
    assert not third.exact
    assert third.total[0] < 37 <= third.total[1]


def test_volumes_of_phonons():
    stages, _ = compare(gruneisen, STRAINED, gruneisen.Settings(**HARMONIC))
    assert stages["displaced supercells"].atoms == [32] * 3
    assert len(stages["volumes"].atoms) == 2
    settings = qha.Settings(volumes=5, relax=False, smallest=-0.02, **HARMONIC)
    stages, _ = compare(qha, bulk("Cu", a=3.59), settings)
    assert stages["displaced supercells"].atoms == [8] * 5
    assert all(stage.exact for name, stage in stages.items() if not name.startswith("checks"))


def test_analytic_phonons_ask_for_those_cells():
    class Derivatives(Counting):
        def hessian(self, structure, atoms):
            self.cells.append(len(structure))
            return np.zeros((3 * len(atoms), 3 * len(structure)))

    potential = Derivatives()
    potential.cells = []
    settings = phonon.Settings(method="analytic", **HARMONIC)
    found = phonon.stages(STRAINED, settings, CUTOFF)[-1]
    begun = HarmonicRun.begin(STRAINED, potential, settings)
    begun.force_constants([begun.prepared.cells.primitive.atoms])
    assert found.kind == HESSIAN
    assert found.exact
    assert list(found.atoms) == potential.cells
    assert len(set(potential.cells)) > 1


def test_vacancy():
    stages, _ = compare(vacancy, alloy(), vacancy.Settings(supercell="2,2,2", fmax=0.05))
    assert stages["perfect supercells"].atoms == [4, 32]
    assert stages["vacancies"].atoms == [3, 31] * 2
    assert stages["vacancies, not relaxed"].exact
    pure = {"Cu": bulk("Cu")}
    settings = vacancy.Settings(supercell="2,2,2", sizes=1)
    found = vacancy.stages(alloy(), settings, CUTOFF, references=pure)
    assert found[2].name == "reference Cu"
    assert found[2].atoms == [1]


def test_surface():
    settings = surface.Settings(thickness=5.0, sizes=2, relax=False, fmax=0.02, miller="1,1,1 100")
    stages, _ = compare(surface, bulk("Cu", a=3.59), settings)
    assert stages["slabs of all cuts, not relaxed"].exact
    assert len(stages["slabs"].atoms) == 4
    relaxed = surface.stages(STRAINED, replace(settings, relax=True), CUTOFF)
    assert not relaxed[2].exact


def test_neb():
    perfect = bulk("Cu", cubic=True)
    initial, final = perfect.copy(), perfect.copy()
    final.positions[1] = perfect.positions[0]
    del initial[0], final[0]
    stages, asked = compare(neb, initial, neb.Settings(images=3, fmax=0.2), final)
    assert max(request.total() for request in asked) == 3
    assert len(stages["images of the band"].atoms) == 3


def test_relax():
    stages, _ = compare(relax, STRAINED, relax.Settings(cell="full"))
    assert stages["relax"].evaluations == (4, 61)
    assert relax.stages(STRAINED, relax.Settings(steps=0), CUTOFF)[0].exact
    assert relax.stages(STRAINED, relax.Settings(steps=9), CUTOFF)[0].evaluations == (4, 10)


@pytest.mark.parametrize(
    "options",
    [
        {"ensemble": "nve"},
        *({"thermostat": t} for t in ("langevin", "nose-hoover", "bussi", "berendsen")),
        *({"ensemble": "npt", "barostat": b} for b in ("mtk", "mtk-full", "berendsen")),
    ],
    ids=str,
)
def test_md(options):
    for replicas in (1, 3):
        settings = md.Settings(steps=4, replicas=replicas, **options)
        stages, asked = compare(md, STRAINED, settings)
        assert all(stage.exact for stage in stages.values())
        # Berendsen's barostat takes two evaluations a step, and two for the bulk modulus.
        scaled = options.get("barostat") == "berendsen"
        expected = (9 if scaled else 5) * replicas
        assert stages["steps"].total == (expected, expected)
        assert sum(asked, Counter()).total() == expected + 2 * scaled


@pytest.mark.parametrize("options", [{}, {"ensemble": "npt"}, {"method": "trpmd"}], ids=str)
def test_pimd(tmp_path, options):
    """As many calls of the forces as there are planned, each for all beads."""
    from dpa3sim.clients.ipi.inputs import STRUCTURE, direct_forcefield

    source = (TESTS / "clients/ipi/harmonic_pes.py").read_text()
    note = f"open({str(tmp_path / 'calls')!r}, 'a').write(f'{{len(pos)}} ')"
    counting = source.replace("self.calls += 1", f"self.calls += 1; {note}")
    assert counting != source
    (tmp_path / "pes.py").write_text(counting)
    settings = pimd.Settings(steps=3, beads=4, classical=True, timestep=0.5, **options)
    planned = pimd.stages(STRAINED, settings, CUTOFF)
    plan = pimd.check(STRAINED, settings)
    folder = tmp_path / "run"
    folder.mkdir()
    values = {"structure": STRUCTURE, "wavenumber": 200.0}
    forcefield = direct_forcefield(tmp_path / "pes.py", 4, values)
    simulate(folder, STRAINED, plan, "pimd", 4, forcefield)
    calls = [int(n) for n in (tmp_path / "calls").read_text().split()]
    assert set(calls) == {4}
    assert planned[0].total == (sum(calls),) * 2
    assert [len(stage.atoms) for stage in planned] == [4, 1]
