"""Options: one definition, checked values, suggestions for typing errors."""

import dataclasses

import pytest

from dpa3sim.cli.options import Parser, add_config, add_settings, resolve
from dpa3sim.common import settings
from dpa3sim.common.errors import InputError
from dpa3sim.protocols.relax import Settings
from dpa3sim.train.settings import SINGLE, ArchitectureSettings, SourceSettings, TrainSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cell": "ful"}, "did you mean 'full'"),
        ({"fmax": -1.0}, "at least 0"),
        ({"fmax": "small"}, "must be a number"),
        ({"fmax": float("nan")}, "finite"),
        ({"steps": 1.5}, "whole number"),
        ({"steps": True}, "whole number"),
        ({"fix_symmetry": 1}, "true or false"),
        ({"optimizer": "LBFG"}, "did you mean 'LBFGS'"),
        ({"pressure": 5.0}, "no effect with cell=fixed"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(InputError, match=message):
        Settings(**values)


def test_choices_in_any_case():
    assert Settings(optimizer="fire").optimizer == "FIRE"
    assert parse("--set", "optimizer=lbfgs", "--cell", "Full") == Settings(
        cell="full", optimizer="LBFGS"
    )


def test_dictionary_carries_units():
    values = settings.to_dict(Settings())
    assert values["fmax_eV_per_A"] == 0.01
    assert values["pressure_GPa"] == 0.0
    assert values["cell"] == "fixed"


def parse(*arguments):
    parser = Parser(prog="test")
    add_settings(parser, "relaxation", Settings)
    add_config(parser)
    return resolve(parser.parse_args(list(arguments)), Settings)[0]


def test_flags_win_over_set_over_config(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("fmax: 1e-3\nsmax: 0.5\nsteps: 7\n")
    arguments = ("--config", str(config))
    assert parse(*arguments) == Settings(fmax=1e-3, smax=0.5, steps=7)
    arguments = (*arguments, "--set", "smax=0.4", "--set", "relax.steps=8")
    assert parse(*arguments) == Settings(fmax=1e-3, smax=0.4, steps=8)
    arguments = (*arguments, "--steps", "9")
    assert parse(*arguments) == Settings(fmax=1e-3, smax=0.4, steps=9)


def test_every_option_has_a_flag_with_the_same_default():
    assert parse() == Settings()
    changed = parse(
        *("--cell", "full", "--pressure", "1", "--fmax", "0.1", "--smax", "1", "--steps", "5"),
        *("--optimizer", "FIRE", "--fix-symmetry", "--symprec", "0.1"),
    )
    assert changed == Settings("full", 1.0, 0.1, 1.0, 5, "FIRE", True, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "fmx=1"), "unknown option 'fmx'; did you mean 'fmax'"),
        (("--set", "fmax"), "KEY=VALUE"),
        (("--set", "fmax=tiny"), "must be a number"),
        (("--set", "fix_symmetry=maybe"), "true or false"),
        (("--config", "/nowhere.yaml"), "cannot be read"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        parse(*arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fmx: 1", "did you mean 'fmax'"),
        ("- 1", "'name: value'"),
        ("a: [", "not valid YAML"),
        ("fmax: [1]", "must be a number"),
        ("cell: 5", "is not one of"),
        ("cell: 5.5", "must be a text"),
        ("cell: yes", "must be a text"),
        ("fmax: !!float ", "tags"),
        ("relax: !!bool perhaps", "tags"),
        ("!!python/object:os.system {}", "tags"),
        ("a: &a 1\nb: *a", "aliases"),
    ],
)
def test_bad_config_files(tmp_path, text, message):
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises(InputError, match=message):
        parse("--config", str(config))


def test_texts_may_be_numbers_and_lists_in_config_files(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("batch_size: 3\nneuron: [24, 16]\ndata: [a.xyz, 'b c.xyz']\n")
    parser = Parser(prog="test")
    classes = SourceSettings, ArchitectureSettings, TrainSettings
    for cls in classes:
        add_settings(parser, cls.__name__, cls)
    add_config(parser)
    sources, architecture, train = resolve(parser.parse_args(["--config", str(config)]), *classes)
    assert (train.batch_size, architecture.neuron) == ("3", "24 16")
    assert sources.by_task("data") == {SINGLE: ["a.xyz", "b c.xyz"]}


def test_a_flag_that_may_be_repeated():
    @dataclasses.dataclass(frozen=True)
    class Words:
        faces: str = settings.option("auto", "some words", repeatable=True)

    parser = Parser(prog="test")
    add_settings(parser, "words", Words)
    add_config(parser)
    args = parser.parse_args(["--faces", "1,1,1", "--faces=-1,0,0"])
    assert resolve(args, Words)[0].faces == "1,1,1 -1,0,0"
    assert resolve(parser.parse_args([]), Words)[0].faces == "auto"
