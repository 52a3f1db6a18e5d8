"""Every public protocol offers the same: Settings, Result, check, stages and run."""

import dataclasses
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import dpa3sim.protocols
from dpa3sim.common import settings as options_of
from dpa3sim.protocols import PUBLIC
from dpa3sim.protocols.base import Result

KEYWORD, POSITIONAL = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD


def parameters(function, kind):
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is kind]


def test_no_public_module_is_forgotten():
    files = {path.stem for path in Path(dpa3sim.protocols.__file__).parent.glob("*.py")}
    assert files == {*PUBLIC, "base", "__init__"}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_protocol_satisfies_the_contract(name):
    module = import_module(f"dpa3sim.protocols.{name}")
    assert dataclasses.is_dataclass(module.Settings)
    assert module.Settings.__dataclass_params__.frozen
    assert options_of.options(module.Settings)
    module.Settings()  # every option has a default

    assert issubclass(module.Result, Result)
    assert module.Result.__dataclass_params__.frozen
    assert module.Result.to_dict is Result.to_dict
    fields = {field.name for field in dataclasses.fields(module.Result)}
    assert {"settings", "converged", "reasons", "warnings"} <= fields

    structures = parameters(module.check, POSITIONAL)[:-1]
    assert structures in (["atoms"], ["initial", "final"])
    assert parameters(module.check, POSITIONAL) == [*structures, "settings"]
    assert parameters(module.stages, POSITIONAL) == [*structures, "settings", "cutoff"]
    assert parameters(module.run, POSITIONAL) == [*structures, "potential", "settings"]
    assert "progress" in parameters(module.run, KEYWORD)
    assert inspect.signature(module.run).parameters["settings"].default is None
