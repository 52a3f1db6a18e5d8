"""Options of distillations: sizes, what overrides them, and when a distillation ends."""

import pytest
from distill_support import MODEL, water

from dpa3sim.cli.commands.distill import prepare
from dpa3sim.cli.main import find
from dpa3sim.common.errors import InputError
from dpa3sim.distill.rules import ALL_ROUNDS, NO_GAIN, TARGET, end
from dpa3sim.distill.settings import (
    SIZES,
    DistillOptions,
    DistillSampleSettings,
    DistillSettings,
    of_size,
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    water()


def options(*arguments):
    _, parser, rest = find(["distill", "water.xyz", *MODEL, *arguments])
    return prepare(parser.parse_intermixed_args(rest))[0]


@pytest.mark.parametrize("size", SIZES)
def test_a_size_sets_what_is_not_given(size):
    found = options("--size", size).student
    assert found == of_size(size)
    assert found.smooth_edge_update
    assert found.precision == "float32"
    # Also a value that is the default of the class, or that of another size.
    found = options("--size", size, "--nlayers", "2", "--set", "e_dim=32").student
    assert (found.nlayers, found.e_dim, found.n_dim) == (2, 32, SIZES[size]["n_dim"])


def test_sizes_grow_and_python_has_the_same_defaults():
    sizes = [of_size(size) for size in SIZES]
    assert [s.n_dim for s in sizes] == sorted({s.n_dim for s in sizes})
    assert options() == DistillOptions()
    assert DistillOptions().student == of_size(DistillSettings().size)


def test_a_written_config_gives_the_same_options(tmp_path):
    (tmp_path / "x.yaml").write_text("size: tiny\nnlayers: 3\ntemperatures: 300 900\n")
    found = options("--config", "x.yaml", "--target", "20")
    assert (found.student.nlayers, found.student.n_dim) == (3, SIZES["tiny"]["n_dim"])
    assert found.sample.temperatures == "300 900"
    assert found.distill.target == 20


def test_temperatures_are_needed():
    with pytest.raises(InputError, match="temperatures = '' must name"):
        DistillSampleSettings(temperatures="")


@pytest.mark.parametrize(
    ("errors", "added", "expected"),
    [
        ([], [], ""),
        # However good, there is one look at the student's own dynamics.
        ([10.0], [], ""),
        ([10.0], [0], TARGET),
        ([10.0], [5], ""),
        ([50.0], [0], ""),
        ([50.0, 39.0], [5], TARGET),
        ([60.0, 50.0], [5], ""),
        ([60.0, 59.5], [5], NO_GAIN),
        ([60.0, 50.0], [5, 3], ""),
        ([60.0, 50.0, 45.0], [5, 3], ALL_ROUNDS),
        ([60.0, 50.0, 40.0], [5, 3], TARGET),
    ],
)
def test_when_a_distillation_ends(errors, added, expected):
    assert end(errors, added, DistillSettings(target=40.0, rounds=2)) == expected
