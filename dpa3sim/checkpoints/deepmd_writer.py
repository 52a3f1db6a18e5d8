"""Write checkpoints (``.pt``) that deepmd-kit 3.1.3 evaluates, freezes, tests and fine-tunes.

The layout is that of docs/model.md#training-checkpoints. deepmd-kit loads strictly, and needs
beside our own tensors a few that contain nothing new: ``min_nbor_dist``, ``out_std``, statistics
for every slot, and each tensor of the fitting net under two names. The state of an optimizer is
not written, so ``dp train --restart`` is the one use that such a file does not have.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.checkpoints.deepmd import (
    DESCRIPTOR_FIELDS,
    FITTING_FIELDS,
    REPFLOW_FIELDS,
    plain,
)
from dpa3sim.checkpoints.model_file import ModelFile
from dpa3sim.checkpoints.training import SINGLE_TASK
from dpa3sim.common.errors import CheckpointError
from dpa3sim.common.files import atomic_write
from dpa3sim.model.config import DescriptorConfig, FittingConfig, ModelConfig
from dpa3sim.model.weights import FITTING_LAYERS, REPFLOWS, Weights

if TYPE_CHECKING:
    from torch import Tensor

DEEPMD_SUFFIX = ".pt"
_FITTING_ALIAS = FITTING_LAYERS.replace("filter_layers.networks", "filter_layers._networks")
# Options of later versions, which 3.1.3 does not know even at their neutral values.
_LATER_OPTIONS = {"sequential_update", "default_chg_spin"}


def write_training(
    models: ModelFile | Mapping[str, ModelFile],
    path: Path,
    *,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write a model, or the heads of a multi-task model, completely or not at all.

    The same models give the same bytes. Tensors that are equal in several heads are stored once.

    Args:
        models: a model, which becomes a single-task file, or one model for each head.
        path: the file.
        info: texts and numbers, which deepmd-kit keeps with the model (with every head).

    Raises:
        CheckpointError: deepmd-kit 3.1.3 cannot represent a model, or the heads do not fit
            together.
    """
    import torch

    heads = {SINGLE_TASK: models} if isinstance(models, ModelFile) else models
    _check_heads(heads)
    sections = {head: _model_section(model, info) for head, model in heads.items()}
    stored: dict[tuple[str, bytes], Tensor] = {}
    state: dict[str, Any] = {}
    for head, model in heads.items():
        for name, array in _entries(model.config, model.weights):
            key = (name, _digest(array))
            if key not in stored:
                stored[key] = torch.from_numpy(np.array(array, order="C"))
            for alias in dict.fromkeys((name, name.replace(FITTING_LAYERS, _FITTING_ALIAS))):
                state[f"model.{head}.{alias}"] = stored[key]
    multitask = not isinstance(models, ModelFile)
    state["_extra_state"] = {
        "model_params": {"model_dict": sections} if multitask else sections[SINGLE_TASK],
        "train_infos": {"lr": 0.0, "step": 0},
    }
    buffer = io.BytesIO()
    torch.save({"model": state, "optimizer": {}}, buffer)
    atomic_write(path, buffer.getvalue())


def _check_heads(heads: Mapping[str, ModelFile]) -> None:
    """Raise CheckpointError unless deepmd-kit can have these heads in one file."""
    if not heads:
        raise CheckpointError("a checkpoint needs at least one head")
    for name in heads:
        if not name or "." in name:
            raise CheckpointError(f"head {name!r}: deepmd-kit allows no empty name and no '.'")
    for what, values in (
        ("type maps", {m.config.type_map for m in heads.values()}),
        ("values of dim_case_embd", {m.config.fitting.dim_case_embd for m in heads.values()}),
    ):
        if len(values) > 1:
            raise CheckpointError(
                f"the heads {', '.join(heads)} have different {what}; deepmd-kit needs equal ones"
            )


def _entries(config: ModelConfig, weights: Weights) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a head, by its name behind ``model.<head>.``, aliases left out."""
    yield "min_nbor_dist", np.array(-1.0)  # for compression only, which DPA3 does not have
    for name, array in weights.items():
        if name in (f"{REPFLOWS}.mean", f"{REPFLOWS}.stddev"):
            array = np.repeat(array[:, None], config.descriptor.e_sel, axis=1)
        yield f"atomic_model.{name}", array
    yield "atomic_model.out_std", np.ones((1, config.ntypes, 1))
    if config.fitting.default_fparam is not None:
        default = np.array(config.fitting.default_fparam)
        yield "atomic_model.fitting_net.default_fparam_tensor", default


def _digest(array: np.ndarray) -> bytes:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(array.tobytes())
    return digest.digest()


# -- the description ---------------------------------------------------------------------------


def _model_section(model: ModelFile, info: Mapping[str, Any] | None) -> dict[str, Any]:
    """The model section of a training input, which ``deepmd.read_config`` reads back."""
    config = model.config
    try:
        if model.truncate == "none":
            raise CheckpointError(
                "it was trained with all neighbours (truncate=none), and deepmd-kit has limits"
            )
        _check_descriptor(config.descriptor, config.fitting)
        section: dict[str, Any] = plain(
            {
                "type_map": config.type_map,
                "descriptor": _descriptor_section(config.descriptor, model.weights),
                "fitting_net": _fitting_section(config.fitting, config.ntypes),
                "pair_exclude_types": config.pair_exclude_types,
                "atom_exclude_types": config.atom_exclude_types,
                "info": info or {},
            }
        )
    except CheckpointError as error:
        message = f"{model.name} cannot be written for deepmd-kit: {error}"
        raise CheckpointError(message) from None
    return section


def _check_descriptor(descriptor: DescriptorConfig, fitting: FittingConfig) -> None:
    """Raise CheckpointError for options that 3.1.3 does not have."""
    if descriptor.smooth_cutoff is not None:
        raise CheckpointError(
            f"smooth_cutoff = {descriptor.smooth_cutoff:g} is an option of dpa3sim only; leave it "
            "out, which gives another potential"
        )
    if descriptor.sequential_update:
        raise CheckpointError("sequential_update = true needs deepmd-kit 3.2.0")
    if descriptor.default_chg_spin is not None:
        raise CheckpointError(
            f"default_chg_spin = {list(descriptor.default_chg_spin)} needs deepmd-kit 3.2.0"
        )
    if descriptor.add_chg_spin_ebd and fitting.numb_fparam != 2:
        raise CheckpointError(
            "add_chg_spin_ebd = true: deepmd-kit 3.1.3 takes charge and spin from fparam and needs "
            f"numb_fparam = 2, not {fitting.numb_fparam}"
        )


def _descriptor_section(descriptor: DescriptorConfig, weights: Weights) -> dict[str, Any]:
    def options(names: list[str]) -> dict[str, Any]:
        return {n: getattr(descriptor, n) for n in names if n not in _LATER_OPTIONS}

    # The last three matter in further training only.
    repflow = options(REPFLOW_FIELDS) | {
        "fix_stat_std": _fixed_deviation(weights[f"{REPFLOWS}.stddev"]),
        "update_residual": 0.1,
        "update_residual_init": "const",
    }
    names = [name for name in DESCRIPTOR_FIELDS if name != "activation_function"]
    activation = str(descriptor.activation)
    section = {"type": "dpa3", "repflow": repflow, "activation_function": activation}
    return section | options(names)


def _fixed_deviation(stddev: np.ndarray) -> float:
    """``fix_stat_std``: the one number in the statistics, or 0 for those of data."""
    value = stddev.flat[0]
    # By its shortest text, so that the 0.3 of a float32 model is 0.3.
    return float(str(value)) if (stddev == value).all() else 0.0


def _fitting_section(fitting: FittingConfig, ntypes: int) -> dict[str, Any]:
    names = [name for name in FITTING_FIELDS if name != "activation_function"]
    return {name: getattr(fitting, name) for name in names} | {
        "type": "ener",
        "activation_function": str(fitting.activation),
        # Any number switches the subtraction on; its value has no effect.
        "atom_ener": [0.0] * ntypes if fitting.subtract_vacuum else [],
    }
