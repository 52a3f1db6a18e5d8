"""Read frozen deepmd-kit models (``.pth``, TorchScript): docs/model.md#frozen-models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from dpa3sim.checkpoints.archive import Archive, ScriptObject
from dpa3sim.checkpoints.deepmd import (
    DESCRIPTOR_FIELDS,
    FITTING_FIELDS,
    REPFLOW_FIELDS,
    REPFLOW_NEUTRAL,
    plain,
    read_config,
    take_weights,
)
from dpa3sim.common.errors import CheckpointError
from dpa3sim.common.files import usual_recursion
from dpa3sim.model.config import ModelConfig

_DEPTH_LIMIT, _MAX_PARTS = 64, 1_000_000


def read_torchscript(archive: Archive) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Read configuration and tensors of a frozen model.

    The JSON description inside the file names the options. The attributes of the frozen objects,
    which deepmd-kit really uses, supply options that old descriptions lack, and must not
    contradict the others.
    """
    root = archive.tree
    if not isinstance(root, ScriptObject):
        raise CheckpointError(f"{archive.path}: not a TorchScript model")
    if any(archive.extra_files.values()):
        raise CheckpointError(
            f"{archive.path}: contains {', '.join(archive.extra_files)}, which would change the "
            "model's results; such models are not supported"
        )
    try:
        config = read_config(_description(root))
        _check_exclusions(config, root)
        return config, take_weights(config, dict(_tensors(root, iter(range(_MAX_PARTS)))))
    except CheckpointError as error:
        raise CheckpointError(f"{archive.path}: {error}") from None


def _description(root: ScriptObject) -> dict[str, Any]:
    """The JSON description, completed from and checked against the frozen objects."""
    text = root.state.get("model_def_script")
    if not isinstance(text, str) or not text:
        raise CheckpointError(f"frozen object {root.kind} has no model description")
    try:
        with usual_recursion():
            description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the model description is not JSON: {error}") from None
    description = plain(description)
    if not isinstance(description, dict):
        raise CheckpointError("the model description is not a JSON object")

    atomic = _child(root, "atomic_model")
    descriptor = _child(atomic, "descriptor")
    repflows = _child(descriptor, "repflows")
    layers = _child(repflows, "layers").state.values()
    for module in (repflows, *(m for m in layers if isinstance(m, ScriptObject))):
        for name, neutral in REPFLOW_NEUTRAL.items():
            value = plain(module.state.get(name, neutral[0]))
            if value not in neutral:
                raise CheckpointError(f"pre-release option {name} = {value!r} is not supported")
    section = description.get("descriptor")
    if isinstance(section, dict):
        _complete(section, descriptor, DESCRIPTOR_FIELDS)
        _complete(section.get("repflow"), repflows, REPFLOW_FIELDS)
    _complete(description.get("fitting_net"), _child(atomic, "fitting_net"), FITTING_FIELDS)
    return description


def _complete(section: Any, module: ScriptObject, names: Iterable[str]) -> None:
    """Complete ``section`` in place from the attributes of ``module``, which must agree."""
    if not isinstance(section, dict):
        return  # the reader of the description reports it
    for name in names:
        value = module.state.get(name)
        if not isinstance(value, bool | int | float | str):
            continue
        value = plain(value)
        if section.setdefault(name, value) != value:
            raise CheckpointError(
                f"option {name} is {section[name]!r} in the description but {value!r} in the model"
            )


def _check_exclusions(config: ModelConfig, root: ScriptObject) -> None:
    """Check that the frozen type map and atom exclusion are those of the description."""
    atomic = _child(root, "atomic_model")
    if plain(atomic.state.get("type_map", config.type_map)) != list(config.type_map):
        raise CheckpointError("the type map of the frozen model is not that of its description")
    excluded = plain(_child(atomic, "fitting_net").state.get("exclude_types")) or []
    if excluded != list(config.atom_exclude_types):
        raise CheckpointError(f"fitting_net.exclude_types = {excluded} is not supported")


def _child(parent: ScriptObject, name: str) -> ScriptObject:
    child = parent.state.get(name)
    if not isinstance(child, ScriptObject):
        raise CheckpointError(f"frozen object {parent.kind} has no part {name!r}")
    return child


def _tensors(
    node: Any, left: Iterator[int], name: str = "", depth: int = 0
) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors below an object, named by the path of attributes that leads to them.

    The countdown ``left`` ends it, because objects that share parts can have too many paths.
    """
    if depth > _DEPTH_LIMIT or next(left, None) is None:
        raise CheckpointError("the frozen objects are nested too deeply")
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, np.ndarray):
        yield name, node
    elif isinstance(node, ScriptObject):
        children = node.state.items()
    elif isinstance(node, Mapping):
        children = node.items()
    elif isinstance(node, list | tuple):
        children = enumerate(node)
    for key, child in children:
        if not isinstance(key, str | int):
            raise CheckpointError("a part of the frozen objects has no name")
        yield from _tensors(child, left, f"{name}.{key}" if name else str(key), depth + 1)
