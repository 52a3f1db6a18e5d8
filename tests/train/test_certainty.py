"""Models that say in their own files how certain they are."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from safetensors import safe_open
from safetensors.numpy import save_file
from training_support import SMALL, labelled, water

from dpa3sim import Potential
from dpa3sim.checkpoints import read_model, write_native
from dpa3sim.cli.main import main
from dpa3sim.common.errors import BAD_INPUT, DONE, CheckpointError, InputError
from dpa3sim.train.certainty import certainty_of
from dpa3sim.train.data.frames import Frames
from dpa3sim.uncertainty.rigidity import Rigidity

SHAPE = {name: getattr(SMALL, name) for name in ("nlayers", "n_dim", "e_dim", "a_dim", "neuron")}
ARGUMENTS = ["--batch-size", "2", "--steps", "2", "--type-map", "H O", "--quiet", "--no-plot"]
for _name, _value in SHAPE.items():
    ARGUMENTS += [f"--{_name.replace('_', '-')}", str(_value)]
ARGUMENTS += ["--start-pref-v", "0", "--limit-pref-v", "0", "--validate-every", "1"]


def frames(name, number, seed):
    """Write frames with labels."""
    atoms = water(number, seed)
    for one, frame in zip(atoms, labelled(atoms), strict=True):
        one.calc = SinglePointCalculator(one, energy=frame.energy, forces=frame.forces)
    write(name, atoms)
    return atoms


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("certain")
    frames(found / "train.xyz", 8, 1)
    frames(found / "valid.xyz", 4, 2)
    files = ["train", str(found / "train.xyz"), "--validation", str(found / "valid.xyz")]
    assert main([*files, *ARGUMENTS, "--out", str(found / "run")]) == DONE
    return found


@pytest.fixture
def best(folder):
    return folder / "run/best.safetensors"


def test_a_trained_model_says_how_certain_it_is(folder, best, capsys):
    model = read_model(best)
    found = model.covariance
    assert (found.count, found.elements) == (8, ("H", "O"))
    assert found.alpha > 0
    assert found.alpha_forces > 0
    potential = Potential(best, uncertainty="model")
    assert potential.rigidity.path.name == potential.settings.uncertainty == "model"
    expected = certainty_of(
        Potential(model),
        Frames.from_frames(labelled(water(8, 1))),
        Frames.from_frames(labelled(water(4, 2))),
    )
    # Positions in the files have eight decimals.
    for one, two in ((found.factor, expected.factor), (found.atoms, expected.atoms)):
        np.testing.assert_allclose(one @ one.T, two @ two.T, rtol=1e-6, atol=1e-8)
    assert found.alpha == pytest.approx(expected.alpha, rel=0.01)
    near, far = potential.evaluate([water(1, 1)[0], molecule("H2O2", cell=[4] * 3, pbc=True)])
    assert near.uncertainty.novelty <= 1.0 < far.uncertainty.novelty
    assert far.uncertainty.energy > 0
    # Energies and forces are those without.
    (plain,) = Potential(best).evaluate([water(1, 1)[0]])
    assert plain.uncertainty is None
    assert plain.energy == near.energy
    assert main(["model", "info", str(best)]) == DONE
    text = "from 8 training structures of H O, calibrated with energies and forces"
    assert text in capsys.readouterr().out
    write(folder / "one.xyz", water(1, 3))
    given = ["sp", str(folder / "one.xyz"), "--model", str(best), "--uncertainty", "model"]
    assert main([*given, "--out", str(folder / "sp")]) == DONE
    assert json.loads((folder / "sp/result.json").read_text())["energy_uncertainty_eV"] > 0


def test_conversions_keep_it(folder, best):
    copied = folder / "copy.safetensors"
    assert main(["convert", str(best), str(copied)]) == DONE
    first, second = (Potential(path, uncertainty="model").rigidity for path in (best, copied))
    assert first.identity == second.identity
    write_native(read_model(copied), folder / "again.safetensors")
    assert copied.read_bytes() == (folder / "again.safetensors").read_bytes()


def test_other_models_do_not_say_it(folder, best):
    model = read_model(best)
    with pytest.raises(InputError, match="does not say how certain it is"):
        Potential(folder / "run/last.safetensors", uncertainty="model")
    with pytest.raises(InputError, match="does not say how certain it is"):
        Rigidity.of(replace(model, covariance=None))
    arguments = ["sp", str(folder / "train.xyz"), "--uncertainty", "model"]
    assert main(arguments) == BAD_INPUT


def test_it_can_be_left_out(folder):
    files = ["train", str(folder / "train.xyz"), "--validation", str(folder / "valid.xyz")]
    given = [*files, *ARGUMENTS, "--out", str(folder / "without")]
    assert main([*given, "--no-covariance"]) == DONE
    assert read_model(folder / "without/best.safetensors").covariance is None
    first, second = (read_model(folder / x / "best.safetensors") for x in ("run", "without"))
    for name, array in first.weights.items():
        np.testing.assert_array_equal(array, second.weights[name])


def test_damaged_files_are_refused(best, tmp_path):
    with safe_open(best, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = json.loads(metadata["dpa3sim"])
    assert header["format_version"] == 2

    def refused(message, tensors=tensors, **changes):
        path = tmp_path / "damaged.safetensors"
        new = {name: x for name, x in (header | changes).items() if x is not None}
        save_file(tensors, path, metadata={"dpa3sim": json.dumps(new)})
        with pytest.raises(CheckpointError, match=message):
            read_model(path)

    changed = tensors["covariance.atoms"].copy()
    changed[0, 0] *= 2
    refused("damaged: its covariance .*checksum", tensors | {"covariance.atoms": changed})
    refused("damaged: its covariance", covariance=None)
    refused("damaged: its covariance", covariance=[1])
    refused("checksum", covariance=header["covariance"] | {"alpha": -1.0})
    without = {name: x for name, x in tensors.items() if name != "covariance.factor"}
    refused("damaged: its covariance", without)
    refused("damaged: its content", format_version=1)
    refused("format version 3", format_version=3)
