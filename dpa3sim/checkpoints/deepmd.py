"""Translate deepmd-kit's model description and tensor names strictly to our own.

Every option is either used, known not to affect the energy, or accepted only with the value at
which it has no effect. A file with an option outside these tables is not supported, rather than
silently wrong (docs/model.md#translation-of-options).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpa3sim.common.errors import CheckpointError
from dpa3sim.model.config import DescriptorConfig, FittingConfig, ModelConfig, build
from dpa3sim.model.electrons import econf_rows
from dpa3sim.model.weights import REPFLOWS

# Options that affect only training, logging or the execution in deepmd-kit.
_MODEL_IGNORED = frozenset(
    (
        "type data_stat_nbatch data_stat_protect data_bias_nsample preset_out_bias "
        "srtab_add_bias min_nbor_dist info model_branch_alias finetune_head type_embedding "
        "hessian_mode bridging_r_inner bridging_r_outer"
    ).split()
)
_REPFLOW_IGNORED = frozenset(
    (
        "optim_update update_residual update_residual_init fix_stat_std skip_stat "
        "h1_message_sub_axis n_attn_hidden n_attn_head auto_batchsize bn_moment use_unet_n "
        "use_unet_e use_unet_a unet_rate unet_norm h1_dim"
    ).split()
)
_DESCRIPTOR_IGNORED = frozenset("type trainable seed use_loc_mapping ntypes type_map".split())
_FITTING_IGNORED = frozenset(
    (
        "type trainable seed rcond layer_name type_map ntypes dim_descrpt embedding_width "
        "mixed_types var_name"
    ).split()
)
# Options of other models or of pre-releases, with the values at which they have no effect.
_MODEL_NEUTRAL: dict[str, Any] = {
    "bridging_method": ("None", None),
    "use_srtab": (None, ""),
    "smin_alpha": (0.1, None),
    "sw_rmin": (None, 0.0),
    "sw_rmax": (None, 0.0),
    "spin": (None,),
    "modifier": (None,),
    "compress": (None, {}, False),
    "enable_eval_descriptor_hook": (False,),
}
REPFLOW_NEUTRAL: dict[str, Any] = {
    "a_mess_has_n": (True,),
    "a_use_e_mess": (False,),
    "update_n_has_h1": (False,),
    "update_e_has_h1": (False,),
    "update_n_has_attn": (False,),
    "n_update_has_a": (False,),
    "n_update_has_a_first_sum": (False,),
    "h1_message_idc": (False,),
    "h1_message_only_nei": (False,),
    "has_h1": (False,),
    "pre_ln": (False,),
    "only_e_ln": (False,),
    "pre_bn": (False,),
    "only_e_bn": (False,),
    "use_unet": (False,),
    "a_norm_use_max_v": (False,),
    "e_norm_use_max_v": (False,),
    "e_a_reduce_use_sqrt": (True,),
    "no_sym": (False,),
    "use_mix_act": (False,),
}
_FITTING_NEUTRAL: dict[str, Any] = {"spin": (None,), "exclude_types": ([], None)}
_ALIASES = {"edge_use_dist": "edge_init_use_dist", "use_env_envelope": "use_exp_switch"}
_PRECISIONS = {
    "default": "float64",
    "double": "float64",
    "float64": "float64",
    "single": "float32",
    "float32": "float32",
}
# Tensors of a checkpoint without information beyond the configuration.
_REDUNDANT = re.compile(
    r"(^min_nbor_dist|^out_std|\.type_mask|^atomic_model\.out_std|"
    r"^fitting_net\.default_fparam_tensor)$|^fitting_net\.filter_layers\._networks\."
)
REPFLOW_FIELDS = (
    "n_dim e_dim a_dim nlayers e_rcut e_rcut_smth e_sel a_rcut a_rcut_smth a_sel "
    "axis_neuron a_compress_rate a_compress_e_rate a_compress_use_split "
    "n_multi_edge_message update_angle update_style smooth_edge_update edge_init_use_dist "
    "use_exp_switch use_dynamic_sel sel_reduce_factor sequential_update"
).split()
DESCRIPTOR_FIELDS = (
    "exclude_types env_protection concat_output_tebd use_econf_tebd use_tebd_bias "
    "add_chg_spin_ebd default_chg_spin activation_function precision"
).split()
FITTING_FIELDS = (
    "neuron resnet_dt numb_fparam numb_aparam dim_case_embd default_fparam "
    "use_aparam_as_mask activation_function precision"
).split()
_REPFLOW_DEFAULTS = {"n_dim": 128, "e_dim": 64, "a_dim": 64, "nlayers": 6}


# A description has fewer entries and levels than these.
_MAX_ENTRIES, _MAX_LEVELS = 1_000_000, 32


class HeadRequiredError(CheckpointError):
    """A checkpoint with several heads was opened without naming one.

    Attributes:
        heads: their names, sorted.
    """

    def __init__(self, message: str, heads: Sequence[str]) -> None:
        super().__init__(message)
        self.heads = tuple(heads)


def plain(tree: Any) -> Any:
    """A copy that consists of dictionaries with string keys, lists, strings and numbers only.

    The content of a file can be anything: objects with their own comparison, or a few nested
    lists that would be larger than any memory when written out.

    Raises:
        CheckpointError: there are other objects, or too many.
    """
    left = _MAX_ENTRIES

    def copy(node: Any, level: int) -> Any:
        nonlocal left
        left -= node.size if isinstance(node, np.ndarray) else 1
        if left < 0 or level > _MAX_LEVELS:
            raise CheckpointError("the model description is larger than that of any model")
        if isinstance(node, Mapping) and all(isinstance(key, str) for key in node):
            return {key: copy(value, level + 1) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [copy(value, level + 1) for value in node]
        if isinstance(node, np.ndarray):
            return node.tolist()
        if isinstance(node, int) and abs(node) >= 2**63:
            raise CheckpointError("the model description has a number of more than 64 bits")
        if node is None or isinstance(node, str | int | float):
            return node
        raise CheckpointError(f"the model description contains a {type(node).__name__}")

    return copy(tree, 0)


def read_config(params: Mapping[str, Any]) -> ModelConfig:
    """Make a ModelConfig from the model section of a deepmd-kit input (one head).

    Raises:
        CheckpointError: the kind of model or an option is unknown or not supported.
    """
    kind = params.get("type", "standard")
    if kind != "standard":
        raise CheckpointError(f"models of type {kind!r} are not supported, only 'standard' ones")
    descriptor = _section(params, "descriptor")
    fitting = _section(params, "fitting_net")
    used = {"type_map", "descriptor", "fitting_net", "pair_exclude_types", "atom_exclude_types"}
    _check_keys("model", params, used | _MODEL_IGNORED, _MODEL_NEUTRAL)
    return build(
        ModelConfig,
        {
            "type_map": params.get("type_map", ()),
            "descriptor": _read_descriptor(descriptor),
            "fitting": _read_fitting(fitting),
            "pair_exclude_types": params.get("pair_exclude_types") or (),
            "atom_exclude_types": params.get("atom_exclude_types") or (),
        },
    )


def _read_descriptor(params: Mapping[str, Any]) -> DescriptorConfig:
    if params.get("type") != "dpa3":
        raise CheckpointError(
            f"the descriptor is {params.get('type')!r}; dpa3sim supports DPA3 models only"
        )
    repflow = {_ALIASES.get(k, k): v for k, v in _section(params, "repflow").items()}
    _check_keys("repflow", repflow, {*REPFLOW_FIELDS, *_REPFLOW_IGNORED}, REPFLOW_NEUTRAL)
    used = {"repflow", *DESCRIPTOR_FIELDS}
    _check_keys("descriptor", params, used | _DESCRIPTOR_IGNORED, {})
    values = _REPFLOW_DEFAULTS | {k: repflow[k] for k in REPFLOW_FIELDS if k in repflow}
    for name in ("e_sel", "a_sel"):
        if isinstance(values.get(name), list) and len(values[name]) == 1:
            values[name] = values[name][0]
    values |= {k: params[k] for k in DESCRIPTOR_FIELDS if k in params}
    values["exclude_types"] = values.get("exclude_types") or ()
    values["activation"] = _pop_activation(values, "silu")
    values["precision"] = _pop_precision(values)
    return build(DescriptorConfig, values)


def _read_fitting(params: Mapping[str, Any]) -> FittingConfig:
    if params.get("type", "ener") != "ener":
        raise CheckpointError(
            f"the fitting net is {params.get('type')!r}; only energy models ('ener') are supported"
        )
    used = {"atom_ener", *FITTING_FIELDS}
    _check_keys("fitting_net", params, used | _FITTING_IGNORED, _FITTING_NEUTRAL)
    values: dict[str, Any] = {"neuron": (120, 120, 120)}
    values |= {k: params[k] for k in FITTING_FIELDS if k in params}
    values["activation"] = _pop_activation(values, "tanh")
    values["precision"] = _pop_precision(values)
    values["subtract_vacuum"] = any(e is not None for e in params.get("atom_ener") or ())
    return build(FittingConfig, values)


def take_weights(config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename and reduce the tensors of a checkpoint to those of :func:`weight_shapes`.

    ``tensors`` are named as in docs/model.md#names-of-tensors, ``atomic_model.`` before it.
    Unknown tensors are kept for the strict check of the caller.
    """
    weights = {}
    for name, array in tensors.items():
        name = name.removeprefix("atomic_model.")
        if _REDUNDANT.search(name):
            continue
        if name in (f"{REPFLOWS}.mean", f"{REPFLOWS}.stddev"):
            array = _one_slot(name, array)
        elif name.endswith("econf_tebd"):
            _check_econf(config, array)
            continue
        weights[name] = array
    return weights


def _one_slot(name: str, array: np.ndarray) -> np.ndarray:
    """The statistics, which are equal in all slots (docs/model.md#normalisation-by-slot)."""
    if array.ndim != 3 or array.shape[1] < 1:
        raise CheckpointError(f"tensor {name} has shape {array.shape}, not (types, slots, 4)")
    if (array != array[:, :1]).any():
        raise CheckpointError(
            f"tensor {name} differs between neighbour slots, which is not supported"
        )
    return array[:, 0]


def _check_econf(config: ModelConfig, array: np.ndarray) -> None:
    expected = econf_rows(config.type_map)
    if array.shape != expected.shape or not np.allclose(array, expected, atol=1e-6):
        raise CheckpointError("the electron configurations in the file are not the expected ones")


def select_head(heads: Mapping[str, Any], head: str | None, aliases: Mapping[str, str]) -> str:
    """Find a head by name or alias, in any case (docs/model.md#names-of-heads).

    Raises:
        CheckpointError: there are several heads and none is named, or the head does not exist.
    """
    listing = ", ".join(sorted(heads))
    if head is None:
        if len(heads) == 1:
            return next(iter(heads))
        raise HeadRequiredError(f"there are several heads, choose one of: {listing}", sorted(heads))
    by_name = {alias.lower(): name for alias, name in aliases.items()}
    by_name |= {name.lower(): name for name in heads}
    found = by_name.get(head.lower())
    if found is None:
        raise CheckpointError(f"there is no head {head!r}; the file has: {listing}")
    return found


def _section(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = params.get(name)
    if not isinstance(section, Mapping):
        raise CheckpointError(f"the model description has no section {name!r}")
    return section


def _check_keys(
    where: str, params: Mapping[str, Any], known: set[str] | frozenset[str], neutral: dict[str, Any]
) -> None:
    for key, value in params.items():
        if key in known:
            continue
        if key not in neutral:
            raise CheckpointError(f"unknown option {where}.{key} = {str(value)[:60]!r}")
        if value not in neutral[key]:
            raise CheckpointError(f"option {where}.{key} = {value!r} is not supported")


def _pop_activation(values: dict[str, Any], default: str) -> str:
    value = values.pop("activation_function", default)
    return "linear" if value is None else str(value)


def _pop_precision(values: dict[str, Any]) -> str:
    value = str(values.pop("precision", "default"))
    if value not in _PRECISIONS:
        raise CheckpointError(f"precision {value!r} is not supported, only float32 and float64")
    return _PRECISIONS[value]
