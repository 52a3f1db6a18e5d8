"""Random checkpoints of every option, made by deepmd-kit, in float64.

``data/make_variants.py`` says how those under ``data/variants`` were made.
"""

import json

import numpy as np
import pytest
from tests_support import DATA, MODELS, assert_parity, head_of, load_reference

from dpa3sim import Potential, load_model

ENERGY, FORCE, VIRIAL = 1e-9, 1e-9, 1e-8
SHARED = ("charge_spin", "dynamic", "multitask", "static_linear")
VARIANTS = sorted((DATA / "variants").glob("*/model.pt")) + sorted(
    (DATA / "variants").glob("*/frozen.pth")
)


def _cases():
    for name in SHARED:
        folder = DATA / "models" / name
        for case in load_reference(folder / "reference.json"):
            head = case["head"]
            label = f"{name}-{head or ''}-{case['system']}-{case['charge_spin'] or ''}"
            yield pytest.param(folder / "model.pt", head, case, id=f"{label}-pt")
            frozen = folder / (f"frozen_{head}.pth" if head else "frozen.pth")
            if frozen.exists():
                yield pytest.param(frozen, None, case, id=f"{label}-pth")


@pytest.mark.parametrize(("path", "head", "case"), list(_cases()))
def test_shared_checkpoint(path, head, case):
    assert_parity(Potential(path, head=head, dtype="float64"), case, ENERGY, FORCE, VIRIAL)


@pytest.mark.parametrize("path", VARIANTS, ids=lambda p: f"{p.parent.name}-{p.suffix[1:]}")
def test_variant(path):
    potential = Potential(path)
    # Where a part of the model is float32, rounding is what remains.
    exact = potential.dtype == "float64"
    bounds = (ENERGY, FORCE, VIRIAL) if exact else (1e-6, 1e-7, 1e-6)
    for case in load_reference(path.parent / "reference.json"):
        assert_parity(potential, case, *bounds)


def test_moving_averages():
    """The EMA checkpoint, and the averages that the regular one of the same step carries."""
    folder = DATA / "variants" / "ema"
    averages = load_model(folder / "model.pt", ema=True)
    for model in (averages, load_model(folder / "model_ema.pt")):
        for case in load_reference(folder / "reference_ema.json"):
            assert_parity(Potential(model), case, ENERGY, FORCE, VIRIAL)


def test_frozen_and_training_files_hold_the_same_model():
    for name in ("excl", "fparam_aparam", "econf_bias16"):
        training = load_model(DATA / "variants" / name / "model.pt")
        frozen = load_model(DATA / "variants" / name / "frozen.pth")
        assert training.config == frozen.config
        for key, array in training.weights.items():
            np.testing.assert_array_equal(frozen.weights[key], array)


def test_the_variants_cover_the_options():
    """Every option of the descriptor and fitting net departs from its default somewhere."""
    seen: dict[str, set[str]] = {}
    for path in MODELS:
        config = load_model(path, head_of(path)).config.to_dict()
        for part in ("descriptor", "fitting"):
            for option, value in config[part].items():
                seen.setdefault(option, set()).add(json.dumps(value))
    fixed = {"e_rcut", "a_rcut", "a_rcut_smth", "sel_reduce_factor"}
    assert {o for o, values in seen.items() if len(values) == 1} <= fixed
