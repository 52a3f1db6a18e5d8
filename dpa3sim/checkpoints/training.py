"""Read deepmd-kit training checkpoints (``.pt``): docs/model.md#training-checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dpa3sim.checkpoints.archive import Archive
from dpa3sim.checkpoints.deepmd import (
    HeadRequiredError,
    plain,
    read_config,
    select_head,
    take_weights,
)
from dpa3sim.common.errors import CheckpointError
from dpa3sim.model.config import ModelConfig

SINGLE_TASK = "Default"


class TrainingModel(NamedTuple):
    """One head of a training checkpoint; ``heads`` is empty for single-task files."""

    config: ModelConfig
    weights: dict[str, np.ndarray]
    head: str | None
    heads: tuple[str, ...]
    has_ema: bool


def read_training(archive: Archive, head: str | None, ema: bool = False) -> TrainingModel:
    """Read configuration and tensors of one head.

    Args:
        archive: the file.
        head: name or alias of the head, in any case; required if there are several.
        ema: use the moving averages that a regular checkpoint of a training with EMA stores in
            addition to its weights. (``*_ema`` checkpoints contain the averages as weights.)
    """
    try:
        return _read(archive.tree, head, ema)
    except HeadRequiredError as error:
        raise HeadRequiredError(f"{archive.path}: {error}", error.heads) from None
    except CheckpointError as error:
        raise CheckpointError(f"{archive.path}: {error}") from None


def _read(tree: Any, head: str | None, ema: bool) -> TrainingModel:
    if not isinstance(tree, Mapping):
        raise CheckpointError("not a deepmd-kit checkpoint: the file contains no dictionary")
    state = tree.get("model", tree)
    extra = state.get("_extra_state") if isinstance(state, Mapping) else None
    params = extra.get("model_params") if isinstance(extra, Mapping) else None
    if not isinstance(params, Mapping):
        raise CheckpointError("not a deepmd-kit checkpoint: it contains no model description")
    params = plain(params)
    tensors = _tensors(state)
    averages = _averages(tree)
    if ema and averages is None:
        raise CheckpointError("the checkpoint contains no moving averages (EMA)")

    heads = params.get("model_dict")
    if heads is None:
        if head is not None and head.lower() != SINGLE_TASK.lower():
            raise CheckpointError(
                f"there is no head {head!r}: this is a single-task model without heads"
            )
        chosen, names, section = None, (), params
    else:
        if not isinstance(heads, Mapping) or not heads:
            raise CheckpointError("the model description names no heads")
        chosen = select_head(heads, head, _aliases(heads))
        names, section = tuple(sorted(heads)), heads[chosen]
    if not isinstance(section, Mapping):
        raise CheckpointError("the model description is malformed")

    config = read_config(section)
    prefix = f"model.{chosen or SINGLE_TASK}."
    selected = _with_prefix(tensors, prefix)
    if ema and averages is not None:
        selected |= _with_prefix(averages, f"{chosen}." if chosen else "")
    weights = take_weights(config, selected)
    return TrainingModel(config, weights, chosen, names, averages is not None)


def _tensors(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    tensors = {}
    for name, value in state.items():
        if name == "_extra_state":
            continue
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise CheckpointError(f"entry {str(name)[:60]!r} of the model is not a tensor")
        tensors[name] = value
    return tensors


def _with_prefix(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _averages(tree: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """The EMA weights: an entry beside the model with a decay and a table of tensors."""
    for value in tree.values():
        if isinstance(value, Mapping) and "decay" in value and isinstance(value.get("model"), dict):
            return _tensors(value["model"])
    return None


def _aliases(heads: Mapping[str, Any]) -> dict[str, str]:
    aliases = {}
    for name, section in heads.items():
        listed = section.get("model_branch_alias") if isinstance(section, Mapping) else None
        for alias in listed if isinstance(listed, list) else ():
            aliases[str(alias)] = name
    return aliases
