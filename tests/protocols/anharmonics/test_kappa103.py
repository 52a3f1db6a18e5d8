"""The errors of the benchmark kappa103, and the published table from its rows."""

import csv
import json
from dataclasses import asdict

import numpy as np
import pytest
from tests_support import TESTS


@pytest.fixture
def kappa103(monkeypatch):
    monkeypatch.syspath_prepend(TESTS.parent / "benchmarks")
    import kappa103

    return kappa103


@pytest.fixture
def folder(kappa103):
    if not (kappa103.DATA / "structures.extxyz").is_file():
        pytest.skip(f"{kappa103.DATA} is not there; the benchmark reads it")
    return kappa103.DATA


@pytest.mark.parametrize("scale", [1.0, 0.25, 3.0])
def test_errors_of_a_scaled_copy(kappa103, scale):
    modes = np.random.default_rng(0).uniform(0, 1, (20, 6))
    expected = 2 * (scale - 1) / (scale + 1)
    assert kappa103.srme(scale * modes, modes) == pytest.approx(abs(expected))
    assert kappa103.srd(scale * modes.sum(), modes.sum()) == pytest.approx(expected)


def test_errors_that_cancel_in_the_sum_count(kappa103):
    reference = np.array([[1.0, 1.0]])
    swapped = np.array([[2.0, 0.0]])
    assert kappa103.srd(swapped.sum(), reference.sum()) == 0
    assert kappa103.srme(swapped, reference) == pytest.approx(1)


def test_no_prediction_is_the_worst(kappa103):
    modes = np.ones((4, 6))
    assert kappa103.srd(None, 1.0) == kappa103.srd(float("nan"), 1.0) == -2
    assert kappa103.srme(np.ones((3, 6)), modes) == 2
    assert kappa103.srme(-3 * modes, modes) == 2


def test_reference(kappa103, folder):
    """Modes sum to the conductivities of the table, and the spectrum has no distance to itself."""
    with open(folder / "reference_kappa.csv", encoding="utf-8") as file:
        table = {line["material_id"]: line for line in csv.DictReader(file)}
    with np.load(folder / "reference_modes_noNAC.npz") as data:
        for name in ("mp-23193", "mp-1265", "mp-830"):
            reference = kappa103.Reference.of(data, name)
            value = float(table[name]["kappa_noNAC_300K_W_per_mK"])
            assert reference.modes.sum() == pytest.approx(value, rel=1e-4)
            assert kappa103.srme(reference.modes, reference.modes) == 0


def test_means_are_the_published_ones(kappa103, folder):
    names = {atoms.info["mp_id"] for atoms in kappa103.materials(folder)}
    assert len(names) == 103
    with open(folder / "published_aggregate.csv", encoding="utf-8") as file:
        expected = {line["model"]: float(line["srme"]) for line in csv.DictReader(file)}
    found = dict(kappa103.published(folder, names))
    assert len(found) == 40
    for model, means in found.items():
        assert means["srme"] == pytest.approx(expected[model], abs=1e-4)


def test_rows_are_kept(kappa103, tmp_path):
    row = kappa103.Row(
        "mp-1", "KCl", "rock salt", 6.0, 6.1, 0.2, 0.1, -0.1, "", 0.1, 1.0, 0.5, 1e-3, 2.0
    )
    (tmp_path / "mp-1").mkdir()
    (tmp_path / "mp-1" / "row.json").write_text(json.dumps(asdict(row)))
    assert kappa103.finished(tmp_path) == {"mp-1": row}
    kappa103.write_table(tmp_path, [row])
    (line,) = csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
    assert float(line["srme"]) == 0.2
    bad = kappa103.Row(
        "mp-2", "KBr", "rock salt", None, 1.7, 2.0, 2.0, -2.0, "error", None, None, None, None, 0.0
    )
    means = kappa103.means([row, bad])
    assert means["srme"] == pytest.approx(1.1)
    assert means["failure_rate"] == 0.5
    assert means["spectrum_w1_THz"] == pytest.approx(0.1)
