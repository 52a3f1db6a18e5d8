"""Read the training input of deepmd-kit 3.1.3 (``input.json``) for DPA3 models, unmodified.

Each option is honoured, or ignored because it changes no result here, or refused. An unknown one is
refused too, because it may be a misspelt one. A few options of later versions of deepmd-kit, for
which dpa3sim has an equivalent, are accepted: the schedule ``wsd``, moving averages, the loss
``mae``.

Keys that begin with ``_`` are comments, as in deepmd-kit.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpa3sim.checkpoints.deepmd import read_config
from dpa3sim.checkpoints.training import SINGLE_TASK
from dpa3sim.common.errors import CheckpointError, InputError
from dpa3sim.common.files import usual_recursion
from dpa3sim.common.option_files import read_options
from dpa3sim.common.settings import suggestion
from dpa3sim.model.config import ModelConfig
from dpa3sim.train.statistics import selection_factor

# What deepmd-kit 3.1.3 uses where neither stop_lr nor stop_lr_ratio is there.
_DEFAULT_STOP = 5e-8
_OPTIMIZERS = {"Adam": "adam", "AdamW": "adamw", "HybridMuon": "muon"}
_BETAS = {"adam": (0.9, 0.999), "adamw": (0.9, 0.999), "muon": (0.9, 0.95)}
_DECAY = {"adam": 0.0, "adamw": 0.001, "muon": 0.001}
_OPTIMIZER_NAMES = "adam_beta1 adam_beta2 weight_decay momentum muon_momentum".split()
_BATCH_RULE = re.compile(r"(auto|max|filter):[1-9]\d*")
_AUTO_PROB = re.compile(r"prob_uniform|prob_sys_size(;\d+:\d+:[\d.eE+-]+)*")
_REQUIRED: Any = object()

_IN_MODEL = {
    "data_stat_nbatch": "statistics use all training data",
    "data_bias_nsample": "the energy bias uses all training data",
    "srtab_add_bias": "is for pair tables in TensorFlow",
    "type_embedding": "is for TensorFlow; the descriptor has a type embedding",
    "model_branch_alias": "heads have one name",
    "info": "is free text",
}
_IN_TRAINING = {
    "stat_file": "statistics are computed at every start, so that they fit the data",
    "disp_file": "the learning curve has a fixed name in the run directory",
    "save_ckpt": "checkpoints have fixed names in the run directory",
    "max_ckpt_keep": "the last and the best checkpoint are kept",
    "disp_training": "affects printing only",
    "time_training": "affects printing only",
    "disp_avg": "affects printing only",
    "profiling": "does not affect results",
    "profiling_file": "does not affect results",
    "enable_profiler": "does not affect results",
    "tensorboard": "does not affect results",
    "tensorboard_log_dir": "does not affect results",
    "tensorboard_freq": "does not affect results",
    "acc_freq": "is for Paddle",
    "zero_stage": "affects the memory of deepmd-kit only",
    "enable_compile": "affects the speed of deepmd-kit only",
}
_IN_VALIDATION = dict.fromkeys(
    ("numb_btch", "numb_batch"), "all validation frames are evaluated each time"
)


@dataclass(frozen=True)
class SystemSet:
    """Systems in one of deepmd-kit's formats, and how batches are drawn from them.

    Attributes:
        systems: folders with ``type.raw``, HDF5 files, or ``FILE#GROUP``; all exist.
        batch_size: frames in a batch; a rule ``auto:N``, ``max:N`` or ``filter:N`` for the number
            of atoms in it; or the frames for each system.
        auto_prob: the rule for the probabilities of the systems.
        sys_probs: the probabilities themselves, one for each system; they replace the rule.
    """

    systems: tuple[str, ...]
    batch_size: int | str | tuple[int, ...]
    auto_prob: str
    sys_probs: tuple[float, ...] | None


@dataclass(frozen=True)
class DataOptions:
    """The data of a head; ``validation`` is None if there are no validation data."""

    training: SystemSet
    validation: SystemSet | None


@dataclass(frozen=True)
class DeepmdInput:
    """A training input, in our terms.

    Attributes:
        models: the options of each head, in the order of the file; ``Default`` is the name of a
            model without heads.
        training: the training options by our names, plain values; all of them are there, with
            deepmd-kit's defaults where the file has none.
        overrides: options of single heads that differ from ``training``, which has those of the
            first head; every head has an entry.
        data: the data of each head.
        initial: the options of :func:`dpa3sim.model.initial.initial_weights` beside the seed.
        selection: ``e_sel``, ``a_sel`` where they are ``auto`` in the file; the models have
            arbitrary numbers there until ``resolve_selection`` has replaced them.
        frozen: ``descriptor`` or ``fitting_net``, which are not trained.
        finetune_heads: the head of the pretrained model that a head starts from, where named.
        ignored: options that change nothing here, by dotted path, with the reason.
    """

    models: dict[str, ModelConfig]
    training: dict[str, Any]
    overrides: dict[str, dict[str, Any]]
    data: dict[str, DataOptions]
    initial: dict[str, Any]
    selection: dict[str, str]
    frozen: tuple[str, ...]
    finetune_heads: dict[str, str]
    ignored: tuple[str, ...]


def read_deepmd_input(path: str | Path) -> DeepmdInput:
    """Read a training input of deepmd-kit, JSON or YAML.

    Relative paths of systems are relative to the folder of the file if they exist there, else to
    the working directory.

    Raises:
        InputError: the file cannot be read, or has an option that is unknown or cannot be
            honoured; or data that do not exist.
    """
    path = Path(path)
    yaml = path.suffix.lower() in (".yaml", ".yml")
    values = read_options(path) if yaml else _read_json(path)
    try:
        return _read(values, path.parent)
    except (InputError, CheckpointError) as error:
        raise InputError(f"{path}: {error}") from None


def _read_json(path: Path) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in items]
        twice = {name for name in names if names.count(name) > 1} if len(items) < 1000 else set()
        if twice:
            raise ValueError(f"{min(twice)!r} occurs twice")
        return dict(items)

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a number of JSON")

    try:
        text = path.read_text(encoding="utf-8-sig")
        with usual_recursion():
            return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None


class _Section:
    """A dictionary of the input whose options are taken one by one, until none is left.

    Attributes:
        path: dotted path to it, empty for the whole input.
    """

    def __init__(self, values: Any, path: str, ignored: list[str]) -> None:
        if not isinstance(values, Mapping):
            raise InputError(f"{path or 'the input'} = {_short(values)} must be a section {{...}}")
        self.path, self._ignored = path, ignored
        self._left = {str(k): v for k, v in values.items() if not str(k).startswith("_")}
        self._known: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def names(self) -> list[str]:
        """The options that nobody has taken yet."""
        return list(self._left)

    def at(self, name: str) -> str:
        """Dotted path of an option."""
        return f"{self.path}.{name}" if self.path else name

    def refuse(self, name: str, value: Any, why: str) -> InputError:
        """The error for an option that cannot be honoured."""
        return InputError(f"{self.at(name)} = {_short(value)} {why}")

    def value(self, name: str, default: Any = _REQUIRED, aliases: Iterable[str] = ()) -> Any:
        """Take an option, whatever it is, under one of its names."""
        self._known |= {name, *aliases}
        found = [n for n in (name, *aliases) if n in self._left]
        if len(found) > 1:
            raise InputError(f"{self.at(found[0])} and {self.at(found[1])} are the same option")
        if found:
            return self._left.pop(found[0])
        if default is _REQUIRED:
            raise InputError(f"{self.at(name)} is missing")
        return default

    def number(
        self, name: str, aliases: Iterable[str] = (), *, positive: bool = False
    ) -> float | None:
        """Take a number as :meth:`real` does, or None if it is missing or null."""
        found = [n for n in (name, *aliases) if self._left.get(n) is not None]
        if found:
            return self.real(name, aliases=aliases, positive=positive)
        self.value(name, None, aliases)
        return None

    def real(
        self,
        name: str,
        default: float = _REQUIRED,
        aliases: Iterable[str] = (),
        *,
        positive: bool = False,
    ) -> float:
        """Take a number that is not negative, or is positive."""
        value = self.value(name, default, aliases)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(name, value, "must be a number")
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            raise self.refuse(name, value, f"must be {'above' if positive else 'at least'} 0")
        return float(value)

    def count(
        self, name: str, default: int, aliases: Iterable[str] = (), *, positive: bool = False
    ) -> int:
        """Take a whole number that is not negative, or is positive."""
        value = self.real(name, default, aliases, positive=positive)
        if not value.is_integer():
            raise self.refuse(name, value, "must be a whole number")
        return int(value)

    def flag(self, name: str, default: bool) -> bool:
        """Take true or false."""
        value = self.value(name, default)
        if not isinstance(value, bool):
            raise self.refuse(name, value, "must be true or false")
        return value

    def seed(self) -> int | None:
        """Take the seed of random numbers."""
        value = self.value("seed", None)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.refuse("seed", value, "must be a whole number")
        return value

    def choice(self, name: str, default: str, choices: Iterable[str]) -> str:
        """Take one of several words."""
        value = self.value(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.refuse(name, value, f"is not supported, only {', '.join(choices)}")
        return value

    def neutral(self, name: str, *allowed: Any) -> None:
        """Take an option that is supported with some values only, the default first."""
        value = self.value(name, allowed[0])
        if value not in allowed:
            raise self.refuse(name, value, "is not supported; leave it out")

    def ignore(self, reasons: Mapping[str, str]) -> None:
        """Take options that change nothing, and note that they are there."""
        for name, reason in reasons.items():
            if self.value(name, None) is not None:
                self._ignored.append(f"{self.at(name)}: {reason}")

    def section(self, name: str, default: Any = _REQUIRED) -> _Section:
        """Take a section."""
        return _Section(self.value(name, default), self.at(name), self._ignored)

    def other(self, values: Any, path: str) -> _Section:
        """A section from elsewhere in the same input."""
        return _Section(values, path, self._ignored)

    def rest(self) -> dict[str, Any]:
        """Take everything that is left."""
        left, self._left = self._left, {}
        return left

    def finish(self) -> None:
        """Raise InputError if something is left."""
        for name in self._left:
            hint = suggestion(name, self._known)
            raise InputError(f"unknown option {self.at(name)} = {_short(self._left[name])}{hint}")


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- the whole input ---------------------------------------------------------------------------


def _read(values: Any, folder: Path) -> DeepmdInput:
    ignored: list[str] = []
    top = _Section(values, "", ignored)
    model = top.section("model")
    multitask = "model_dict" in model
    sections = _head_sections(model) if multitask else {SINGLE_TASK: _Parts.of(model)}
    heads = {name: _read_head(parts) for name, parts in sections.items()}
    first = next(iter(heads.values()))
    if multitask:
        _check_heads(heads, sections)

    training = top.section("training")
    losses = _by_head(top, "loss", multitask, heads)
    options = _steps(training, heads, multitask)
    options |= _learning_rate(top.section("learning_rate"), options["steps"])
    options |= _optimizer(top, training)
    options |= _reporting(training)
    data, batches = _data(training, heads, multitask, folder)
    options["model_prob"] = _model_prob(training, data, options) if multitask else None
    seeds = (training.seed(), *(head.seed for head in heads.values()))
    options["seed"] = next((seed for seed in seeds if seed is not None), 1)
    training.finish()
    top.finish()

    of_head = {
        name: {**_loss(losses[name]), **batches[name], "preset_out_bias": head.preset_out_bias}
        for name, head in heads.items()
    }
    common = next(iter(of_head.values()))
    return DeepmdInput(
        models={name: head.config for name, head in heads.items()},
        training=options | common,
        overrides={
            name: {key: value for key, value in own.items() if value != common[key]}
            for name, own in of_head.items()
        },
        data=data,
        initial=first.initial,
        selection=first.selection,
        frozen=first.frozen,
        finetune_heads={n: h.finetune_head for n, h in heads.items() if h.finetune_head},
        ignored=tuple(dict.fromkeys(ignored)),
    )


def _by_head(
    section: _Section, name: str, multitask: bool, heads: Iterable[str]
) -> dict[str, _Section]:
    """The section ``name`` of a single model, or those of all heads in ``name_dict``."""
    if not multitask:
        return {SINGLE_TASK: section.section(name)}
    parent = section.section(f"{name}_dict")
    found = {head: parent.section(head) for head in heads}
    parent.finish()
    return found


# -- the model ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parts:
    """A head of the model section with its references resolved.

    Attributes:
        own: what belongs to the head alone; type_map, descriptor, fitting_net: its parts.
        shared: names in ``shared_dict`` of the descriptor and of the fitting net, None where the
            head has its own.
    """

    own: _Section
    type_map: Any
    descriptor: _Section
    fitting_net: _Section
    shared: tuple[str | None, str | None] = (None, None)

    @classmethod
    def of(cls, model: _Section) -> _Parts:
        """Those of a model without heads."""
        parts = model.section("descriptor"), model.section("fitting_net")
        return cls(model, model.value("type_map"), *parts)


@dataclass(frozen=True)
class _Head:
    config: ModelConfig
    initial: dict[str, Any]
    selection: dict[str, str]
    frozen: tuple[str, ...]
    seed: int | None
    preset_out_bias: list[float | None] | None
    finetune_head: str | None


def _head_sections(model: _Section) -> dict[str, _Parts]:
    shared = model.section("shared_dict", {})
    tables = shared.rest()
    heads = model.section("model_dict")
    used: set[str] = set()

    def resolve(head: _Section, name: str) -> tuple[Any, str, str | None]:
        """Value of a part, its path, and its name in ``shared_dict``."""
        value = head.value(name)
        if not isinstance(value, str):
            return value, head.at(name), None
        key, _, level = value.partition(":")
        if key not in tables:
            hint = suggestion(key, tables)
            raise head.refuse(name, value, f"is not in model.shared_dict{hint}")
        if level not in ("", "0"):
            raise head.refuse(name, value, "is not supported: parts are shared at level 0 only")
        used.add(key)
        return tables[key], shared.at(key), key

    found = {}
    for name in heads.names():
        head = heads.section(name)
        type_map, _, _ = resolve(head, "type_map")
        descriptor, descriptor_path, descriptor_key = resolve(head, "descriptor")
        fitting, fitting_path, fitting_key = resolve(head, "fitting_net")
        found[name] = _Parts(
            head,
            type_map,
            head.other(descriptor, descriptor_path),
            head.other(fitting, fitting_path),
            (descriptor_key, fitting_key),
        )
    model.finish()
    if not found:
        raise InputError("model.model_dict names no heads")
    for key in tables:
        if key not in used:
            raise InputError(f"model.shared_dict.{key} is not used by any head")
    return found


def _check_heads(heads: Mapping[str, _Head], sections: Mapping[str, _Parts]) -> None:
    """Raise InputError unless the heads share their descriptor, and all or no fitting net."""
    listing = ", ".join(heads)
    descriptors = {parts.shared[0] for parts in sections.values()}
    fittings = {parts.shared[1] for parts in sections.values()}
    if len({head.config.type_map for head in heads.values()}) > 1:
        raise InputError(f"model.model_dict: the heads {listing} have different type maps")
    if len(heads) > 1 and (len(descriptors) > 1 or None in descriptors):
        raise InputError(f"model.model_dict: the heads {listing} must share one descriptor")
    if len(fittings) > 1:
        raise InputError(
            f"model.model_dict: all heads or none must share the fitting net: {listing}"
        )
    if len({head.config.fitting.dim_case_embd for head in heads.values()}) > 1:
        raise InputError("model.model_dict: dim_case_embd must be the same for all heads")
    if len({head.frozen for head in heads.values()}) > 1:
        raise InputError("model.model_dict: trainable must be the same for all heads")
    dim = next(iter(heads.values())).config.fitting.dim_case_embd
    if dim < len(heads) and (dim or (len(heads) > 1 and fittings != {None})):
        raise InputError(
            f"model.model_dict: dim_case_embd = {dim} is too small for {len(heads)} heads, whose "
            "case vectors tell them apart"
        )


def _read_head(parts: _Parts) -> _Head:
    own, descriptor, fitting = parts.own, parts.descriptor, parts.fitting_net
    kind = descriptor.value("type", None)
    if kind != "dpa3":
        raise descriptor.refuse("type", kind, "is not supported, only dpa3")
    initial, selection, repflow = _repflow(descriptor.section("repflow"))
    frozen = [n for n, s in (("descriptor", descriptor), ("fitting_net", fitting)) if _frozen(s)]
    seeds = [part.seed() for part in (descriptor, fitting)]
    descriptor.ignore({"use_loc_mapping": "affects only how deepmd-kit computes"})
    fitting.neutral("rcond", None)
    fitting.ignore({"layer_name": "is for TensorFlow"})
    own.ignore(_IN_MODEL)
    preset = own.value("preset_out_bias", None)
    protect = own.value("data_stat_protect", 0.01)
    finetune_head = own.value("finetune_head", None)
    if finetune_head is not None and not isinstance(finetune_head, str):
        raise own.refuse("finetune_head", finetune_head, "must be the name of a head")
    neuron = fitting.value("neuron", None, ["n_neuron"])
    try:
        config = read_config(
            {
                **own.rest(),
                "type_map": parts.type_map,
                "descriptor": {"type": "dpa3", **descriptor.rest(), "repflow": repflow},
                "fitting_net": fitting.rest() | ({} if neuron is None else {"neuron": neuron}),
            }
        )
    except CheckpointError as error:
        raise InputError(f"{own.path}: {error}") from None
    if protect != 0.01 and (config.fitting.numb_fparam or config.fitting.numb_aparam):
        raise own.refuse("data_stat_protect", protect, "is not supported, only 0.01")
    return _Head(
        config,
        initial,
        selection,
        tuple(frozen),
        next((seed for seed in seeds if seed is not None), None),
        None if preset is None else _preset(own, preset, config.ntypes),
        finetune_head,
    )


def _repflow(section: _Section) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Options for the start, selections that are ``auto``, and the section for the reader."""
    deviation = section.real("fix_stat_std", 0.3)
    if section.flag("skip_stat", False):
        deviation = 0.3
    initial = {
        "update_residual": section.real("update_residual", 0.1),
        "update_residual_init": section.choice("update_residual_init", "const", ("const", "norm")),
        "fix_stat_std": deviation,
    }
    section.ignore({"optim_update": "affects only how deepmd-kit computes"})
    selection = {}
    repflow = section.rest()
    for name in ("a_sel", "e_sel"):
        if isinstance(value := repflow.get(name), str):
            selection_factor(section.at(name), value)
            selection[name] = value
            # Any number that the model allows, until the data are known.
            other = repflow.get("a_sel") if name == "e_sel" else 1
            repflow[name] = other if isinstance(other, int) else 1
    return initial, selection, repflow


def _frozen(section: _Section) -> bool:
    value = section.value("trainable", True)
    layers = value if isinstance(value, list) else [value]
    if not layers or any(not isinstance(layer, bool) for layer in layers):
        raise section.refuse("trainable", value, "must be true or false")
    if len(set(layers)) > 1:
        raise section.refuse("trainable", value, "is not supported: all layers or none are trained")
    return not layers[0]


def _preset(own: _Section, preset: Any, ntypes: int) -> list[float | None]:
    """The energy biases that are given, one for each type, eV."""
    values = preset.get("energy") if isinstance(preset, dict) and len(preset) == 1 else None
    if not isinstance(values, list) or len(values) != ntypes:
        why = f'must be {{"energy": [...]}} with {ntypes} numbers or null'
        raise own.refuse("preset_out_bias", preset, why)
    numbers = [v[0] if isinstance(v, list) and len(v) == 1 else v for v in values]
    for number in numbers:
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise own.refuse("preset_out_bias", preset, "contains something else than numbers")
    return [None if number is None else float(number) for number in numbers]


# -- the training ------------------------------------------------------------------------------


def _steps(training: _Section, heads: Iterable[str], multitask: bool) -> dict[str, Any]:
    """``steps`` or ``epochs``, a number or one for each head; the other one is None."""
    aliases = "stop_batch num_step num_steps numb_step".split()
    steps = training.number("numb_steps", aliases, positive=True)
    if multitask:
        name = "num_epoch_dict"
        epochs: Any = _numbers_of_heads(training, name, heads)
    else:
        name, aliases = "numb_epoch", "num_epochs num_epoch numb_epochs".split()
        epochs = training.number(name, aliases, positive=True)
    if (steps is None) == (epochs is None):
        raise InputError(f"one of training.numb_steps and training.{name} must be there")
    if steps is not None and not steps.is_integer():
        raise training.refuse("numb_steps", steps, "must be a whole number")
    return {"steps": None if steps is None else int(steps), "epochs": epochs}


def _numbers_of_heads(
    section: _Section, name: str, heads: Iterable[str]
) -> dict[str, float] | None:
    """A table with one number that is not negative for each head, or None."""
    values = section.value(name, None)
    if values is None:
        return None
    table = section.other(values, section.at(name))
    found = {head: table.real(head) for head in heads}
    table.finish()
    if not any(found.values()):
        raise section.refuse(name, values, "must contain a number above 0")
    return found


def _learning_rate(section: _Section, steps: int | None) -> dict[str, Any]:
    schedule = section.choice("type", "exp", ("exp", "cosine", "wsd"))
    start = section.real("start_lr", positive=True)
    stop, ratio = section.number("stop_lr"), section.number("stop_lr_ratio")
    if stop is not None and ratio is not None:
        raise InputError(f"{section.path}: stop_lr and stop_lr_ratio exclude each other")
    if stop is None and ratio is None:
        stop = _DEFAULT_STOP
    options: dict[str, Any] = {
        "schedule": schedule,
        "learning_rate": start,
        "stop_learning_rate": stop if ratio is None else start * ratio,
        "decay_steps": 5000,
        "decay_rate": None,
        "smooth": False,
        "decay_phase_ratio": 0.1,
        "decay_type": "inverse_linear",
    }
    if schedule == "exp":
        options["decay_steps"] = section.count("decay_steps", 5000, positive=True)
        options["decay_rate"] = section.number("decay_rate", positive=True)
        options["smooth"] = section.flag("smooth", False)
    elif schedule == "wsd":
        kinds = ("inverse_linear", "cosine", "linear")
        options["decay_phase_ratio"] = section.real("decay_phase_ratio", 0.1)
        options["decay_type"] = section.choice("decay_type", "inverse_linear", kinds)
    options |= _warmup(section, steps)
    section.ignore({"scale_by_worker": "has no effect in deepmd-kit with PyTorch either"})
    section.finish()
    return options


def _warmup(section: _Section, steps: int | None) -> dict[str, Any]:
    warmup, ratio = section.count("warmup_steps", 0), section.number("warmup_ratio")
    if ratio is not None:
        if warmup:
            raise InputError(f"{section.path}: warmup_steps and warmup_ratio exclude each other")
        if steps is None:
            raise section.refuse(
                "warmup_ratio", ratio, "needs training.numb_steps; or write warmup_steps"
            )
        warmup = int(ratio * steps)
    factor = section.real("warmup_start_factor", 0.0)
    return {"warmup_steps": warmup, "warmup_start_factor": factor}


def _optimizer(top: _Section, training: _Section) -> dict[str, Any]:
    section = top.section("optimizer", {})
    # Until 3.1.2 the options of the optimizer stood in the training section; 3.1.3 accepts both.
    old = {n: training.value(n) for n in _OPTIMIZER_NAMES if n in training}
    if "opt_type" in training:
        old["type"] = training.value("opt_type")
    if old:
        if section.names():
            raise InputError(
                f"training.{next(iter(old))} and the section optimizer exclude each other"
            )
        section = top.other(old, "training")
    kind = _OPTIMIZERS[section.choice("type", "Adam", _OPTIMIZERS)]
    first, second = _BETAS[kind]
    options = {
        "optimizer": kind,
        "betas": [section.real("adam_beta1", first), section.real("adam_beta2", second)],
        "weight_decay": section.real("weight_decay", _DECAY[kind]),
    }
    if kind == "muon":
        momentum = section.real("momentum", 0.95, ["muon_momentum"])
        if momentum != 0.95:
            raise section.refuse("momentum", momentum, "is not supported, only 0.95")
        section.neutral("lr_adjust", 0.0)
        section.neutral("lr_adjust_coeff", 0.2)
        section.neutral("magma_muon", False)
        same = "changes nothing for the two-dimensional weights of DPA3"
        section.ignore({"muon_mode": same, "flash_muon": "affects the speed of deepmd-kit only"})
    section.finish()
    return options


def _reporting(training: _Section) -> dict[str, Any]:
    """What is left of the training section beside seed and data."""
    training.ignore(_IN_TRAINING)
    training.neutral("mixed_precision", None)
    training.neutral("change_bias_after_training", False)
    average, decay = training.flag("enable_ema", False), training.real("ema_decay", 0.999)
    return {
        "gradient_max_norm": training.number("gradient_max_norm") or None,
        "ema_decay": decay if average else None,
        "report_every": training.count("disp_freq", 1000, positive=True),
        "save_every": training.count("save_freq", 1000, positive=True),
    }


def _loss(section: _Section) -> dict[str, Any]:
    section.choice("type", "ener", ("ener",))
    defaults = {"e": (0.02, 1.0), "f": (1000.0, 1.0), "v": (0.0, 0.0), "ae": (0.0, 0.0)}
    options: dict[str, Any] = {}
    for term, (start, limit) in defaults.items():
        names = f"start_pref_{term}", f"limit_pref_{term}"
        values = [section.real(n, d) for n, d in zip(names, (start, limit), strict=True)]
        if (values[0] == 0) != (values[1] == 0):
            zero = values.index(0)
            why = f"beside {names[1 - zero]} > 0: deepmd-kit trains nothing then; set both to 0"
            raise section.refuse(names[zero], 0, why)
        options |= dict(zip(names, values, strict=True))
    for term in ("h", "pf", "gf"):
        section.neutral(f"start_pref_{term}", 0)
        section.neutral(f"limit_pref_{term}", 0)
    section.neutral("enable_atom_ener_coeff", False)
    section.neutral("numb_generalized_coord", 0)
    options["relative_f"] = section.number("relative_f")
    options["huber_delta"] = section.real("huber_delta", 0.01, positive=True)
    huber, kind = (
        section.flag("use_huber", False),
        section.choice("loss_func", "mse", ("mse", "mae")),
    )
    options["loss"] = "huber" if huber else kind
    options["force_norm"] = section.flag("f_use_norm", False)
    options["intensive"] = section.flag("intensive_ener_virial", False)
    if options["loss"] != "mse" and options["relative_f"] is not None:
        raise section.refuse("relative_f", options["relative_f"], "needs the squared loss")
    if huber and kind == "mae":
        raise section.refuse("use_huber", True, 'and loss_func = "mae" exclude each other')
    section.finish()
    return options


# -- the data ----------------------------------------------------------------------------------


def _data(
    training: _Section, heads: Iterable[str], multitask: bool, folder: Path
) -> tuple[dict[str, DataOptions], dict[str, dict[str, Any]]]:
    """Data of every head, and its options of batches."""
    if multitask:
        sections = _by_head(training, "data", True, heads)
    else:
        sections = {SINGLE_TASK: training}
    data, batches = {}, {}
    for head, section in sections.items():
        found = _systems(section.section("training_data"), folder)
        validation = None
        values = section.value("validation_data", None)
        if values is not None:
            part = section.other(values, section.at("validation_data"))
            part.ignore(_IN_VALIDATION)
            validation = _systems(part, folder)
        if multitask:
            section.ignore({"stat_file": _IN_TRAINING["stat_file"]})
            section.finish()
        data[head] = DataOptions(found, validation)
        size = found.batch_size
        batches[head] = {"batch_size": list(size) if isinstance(size, tuple) else size}
    return data, batches


def _model_prob(
    training: _Section, data: Mapping[str, DataOptions], options: Mapping[str, Any]
) -> dict[str, float] | None:
    """Probabilities of the heads; None where they follow from the epochs of each."""
    given = _numbers_of_heads(training, "model_prob", data)
    if options["epochs"] is not None:
        if given is not None:
            raise InputError("training.model_prob and training.num_epoch_dict exclude each other")
        return None
    weights = given or {head: float(len(own.training.systems)) for head, own in data.items()}
    total = sum(weights.values())
    return {head: weight / total for head, weight in weights.items()}


def _systems(section: _Section, folder: Path) -> SystemSet:
    patterns = section.value("rglob_patterns", None) or ["type.raw"]
    if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
        raise section.refuse("rglob_patterns", patterns, "must be a list of texts")
    given = section.value("systems")
    entries = given if isinstance(given, list) else [given]
    if not entries or not all(isinstance(entry, str) and entry for entry in entries):
        raise section.refuse("systems", given, "must be a path or a list of paths")
    systems = [s for e in entries for s in _expand(section, e, folder, patterns)]
    batch_size = _batch_size(section, len(systems))
    rule = section.value("auto_prob", "prob_sys_size", ["auto_prob_style"])
    if not isinstance(rule, str) or not _AUTO_PROB.fullmatch(rule):
        raise section.refuse(
            "auto_prob",
            rule,
            "is not prob_uniform, prob_sys_size or prob_sys_size;BEGIN:END:WEIGHT",
        )
    probabilities = section.value("sys_probs", None, ["sys_weights"])
    if probabilities is not None:
        _check_list(section, "sys_probs", probabilities, len(systems), lambda p: math.isfinite(p))
    section.finish()
    chosen = None if probabilities is None else tuple(float(p) for p in probabilities)
    return SystemSet(tuple(systems), batch_size, rule, chosen)


def _expand(section: _Section, entry: str, base: Path, patterns: list[str]) -> list[str]:
    """The systems that one entry stands for."""
    place, mark, group = entry.partition("#")
    found = next((p for p in (base / place, Path(place)) if os.path.exists(p)), None)
    if found is None:
        raise section.refuse("systems", entry, f"does not exist, neither in {base} nor here")
    if not found.is_dir():
        return [f"{found}{mark}{group}"]
    if (found / "type.raw").is_file():
        return [str(found)]
    try:
        hits = [hit for pattern in patterns for hit in found.rglob(pattern)]
    except (ValueError, NotImplementedError) as error:
        raise section.refuse("rglob_patterns", patterns, f"cannot be used ({error})") from None
    folders = {hit.parent if hit.name == "type.raw" else hit for hit in hits}
    systems = sorted(str(folder) for folder in folders if (folder / "type.raw").is_file())
    if not systems:
        raise section.refuse("systems", entry, "contains no system: there is no type.raw below it")
    return systems


def _batch_size(section: _Section, n_systems: int) -> int | str | tuple[int, ...]:
    value = section.value("batch_size", "auto")
    if value == "auto":
        return "auto:32"
    if isinstance(value, str) and _BATCH_RULE.fullmatch(value):
        return value
    if isinstance(value, list):
        _check_list(section, "batch_size", value, n_systems, lambda n: n >= 1 and n == int(n))
        return tuple(int(n) for n in value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise section.refuse(
        "batch_size", value, "is not supported: a number, auto, auto:N, max:N, filter:N or a list"
    )


def _check_list(
    section: _Section, name: str, values: Any, length: int, valid: Callable[[float], bool]
) -> None:
    """Raise InputError unless ``values`` are numbers, one for each system."""
    numbers = isinstance(values, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and valid(v) for v in values
    )
    if not numbers or len(values) != length:
        raise section.refuse(
            name, values, f"must be a list of numbers, one for each of {length} systems"
        )
