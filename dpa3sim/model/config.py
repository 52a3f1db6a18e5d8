"""Every option that changes what a DPA3 model computes, as frozen dataclasses.

Names follow the training input of deepmd-kit (docs/model.md#options). Options that only matter
for training have no place here; the checkpoint readers drop them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, TypeVar, get_args

from dpa3sim.common.errors import CheckpointError, InputError

_T = TypeVar("_T")
UpdateStyle = Literal["res_residual", "res_avg", "res_incr"]
Precision = Literal["float32", "float64"]
ACTIVATIONS = (
    "relu",
    "gelu",
    "gelu_tf",
    "tanh",
    "relu6",
    "softplus",
    "sigmoid",
    "silu",
    "silut",
    "linear",
)
DEFAULT_SILUT_THRESHOLD = 3.0
# No model reaches these; with more, a few bytes of a file would ask for any time and memory.
MAX_REPEATS, MAX_SIZE, MAX_CUTOFF = 1000, 2**31, 100.0


@dataclass(frozen=True)
class Activation:
    """A named activation function; ``threshold`` is used by ``silut`` only.

    The functions are those of docs/model.md#activation-functions.
    """

    name: str
    threshold: float = DEFAULT_SILUT_THRESHOLD

    def __post_init__(self) -> None:
        if self.name not in ACTIVATIONS:
            raise CheckpointError(
                f"unknown activation function {self.name!r}; known: {', '.join(ACTIVATIONS)}"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``tanh``, ``silut:3.0``, ``custom_silu:10`` ... as deepmd-kit spells them."""
        name, _, argument = text.strip().lower().partition(":")
        name = {"custom_silu": "silut", "none": "linear", "": "linear"}.get(name, name)
        if not argument:
            return cls(name)
        if name != "silut":
            raise CheckpointError(f"activation function {text!r} takes no argument")
        try:
            threshold = float(argument)
        except ValueError:
            threshold = math.nan
        if not math.isfinite(threshold):
            raise CheckpointError(f"activation function {text!r}: bad threshold")
        return cls(name, threshold)

    def __str__(self) -> str:
        return f"{self.name}:{self.threshold:g}" if self.name == "silut" else self.name


@dataclass(frozen=True)
class DescriptorConfig:
    """Options of the DPA3 descriptor, the repflow block included (docs/model.md#options).

    Lengths are in Å; ``*_sel`` are neighbour counts; ``*_dim`` are feature widths.
    deepmd-kit has no option ``smooth_cutoff``: see :meth:`ModelConfig.smoothed`.
    """

    n_dim: int
    e_dim: int
    a_dim: int
    nlayers: int
    e_rcut: float
    e_rcut_smth: float
    e_sel: int
    a_rcut: float
    a_rcut_smth: float
    a_sel: int
    axis_neuron: int = 4
    a_compress_rate: int = 0
    a_compress_e_rate: int = 1
    a_compress_use_split: bool = False
    n_multi_edge_message: int = 1
    update_angle: bool = True
    update_style: UpdateStyle = "res_residual"
    smooth_edge_update: bool = False
    edge_init_use_dist: bool = False
    use_exp_switch: bool = False
    use_dynamic_sel: bool = False
    sel_reduce_factor: float = 10.0
    sequential_update: bool = False
    activation: Activation = Activation("silu")
    precision: Precision = "float64"
    exclude_types: tuple[tuple[int, int], ...] = ()
    env_protection: float = 0.0
    concat_output_tebd: bool = False
    use_econf_tebd: bool = False
    use_tebd_bias: bool = False
    add_chg_spin_ebd: bool = False
    default_chg_spin: tuple[float, float] | None = None
    smooth_cutoff: float | None = None

    def __post_init__(self) -> None:
        for name in ("n_dim", "e_dim", "a_dim", "nlayers", "e_sel", "a_sel", "axis_neuron"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("nlayers", "n_multi_edge_message"):
            value = getattr(self, name)
            _check(1 <= value <= MAX_REPEATS, name, value)
        _check(self.e_rcut <= MAX_CUTOFF, "e_rcut", self.e_rcut)
        _check(0.0 <= self.e_rcut_smth < self.e_rcut, "e_rcut_smth", self.e_rcut_smth)
        _check(0.0 <= self.a_rcut_smth < self.a_rcut, "a_rcut_smth", self.a_rcut_smth)
        if self.use_exp_switch:
            _check(self.e_rcut_smth > 0, "e_rcut_smth", 0, "needs to be positive (exp switch)")
            _check(self.a_rcut_smth > 0, "a_rcut_smth", 0, "needs to be positive (exp switch)")
        _check(self.a_rcut <= self.e_rcut, "a_rcut", self.a_rcut, "must not exceed e_rcut")
        _check(self.a_sel <= self.e_sel, "a_sel", self.a_sel, "must not exceed e_sel")
        _check(self.axis_neuron <= min(self.n_dim, self.e_dim), "axis_neuron", self.axis_neuron)
        _check(self.a_compress_rate >= 0, "a_compress_rate", self.a_compress_rate)
        _check(self.update_style in get_args(UpdateStyle), "update_style", self.update_style)
        _check(self.precision in get_args(Precision), "precision", self.precision)
        _check(self.sel_reduce_factor > 0, "sel_reduce_factor", self.sel_reduce_factor)
        if self.a_compress_rate:
            even = (self.a_dim // self.a_compress_rate) % 2 == 0
            _check(even, "a_compress_rate", self.a_compress_rate, "a_dim // it must be even")
            if self.a_compress_use_split:
                _check(self.node_angle_dim <= self.n_dim, "a_compress_rate", self.a_compress_rate)
                _check(self.edge_angle_dim <= self.e_dim, "a_compress_rate", self.a_compress_rate)
        if self.use_dynamic_sel:
            _check(self.smooth_edge_update, "use_dynamic_sel", True, "needs smooth_edge_update")
        if self.sequential_update:
            _check(
                self.update_style == "res_residual" and self.update_angle,
                "sequential_update",
                True,
                "needs update_style=res_residual and update_angle",
            )
        width = self.smooth_cutoff
        if width is not None:
            _check(self.update_angle and not self.smooth_edge_update, "smooth_cutoff", width)
            _check(0.0 < width < self.a_rcut, "smooth_cutoff", width, "is not in (0, a_rcut)")

    @property
    def node_angle_dim(self) -> int:
        """Width of n' (docs/model.md#angle-input)."""
        return self.a_dim // self.a_compress_rate if self.a_compress_rate else self.n_dim

    @property
    def edge_angle_dim(self) -> int:
        """Width of e' (docs/model.md#angle-input)."""
        if not self.a_compress_rate:
            return self.e_dim
        return self.a_dim // (2 * self.a_compress_rate) * self.a_compress_e_rate

    @property
    def edge_divisor(self) -> float:
        """N_e: the configured, never the actual, number (docs/model.md#the-repflow-layer)."""
        return self.e_sel / self.sel_reduce_factor if self.use_dynamic_sel else float(self.e_sel)

    @property
    def angle_divisor(self) -> float:
        """N_a, the same for angle-edges."""
        return self.a_sel / self.sel_reduce_factor if self.use_dynamic_sel else float(self.a_sel)

    @property
    def output_dim(self) -> int:
        """Width of the descriptor that the fitting net receives."""
        return self.n_dim * (2 if self.concat_output_tebd else 1)

    @property
    def has_step(self) -> bool:
        """Whether the energy jumps at ``a_rcut`` (docs/model.md#step-at-the-angle-cutoff)."""
        return self.update_angle and not self.smooth_edge_update and self.smooth_cutoff is None


@dataclass(frozen=True)
class FittingConfig:
    """Options of the energy fitting net (docs/model.md#fitting-net)."""

    neuron: tuple[int, ...]
    activation: Activation = Activation("tanh")
    resnet_dt: bool = True
    precision: Precision = "float64"
    numb_fparam: int = 0
    numb_aparam: int = 0
    dim_case_embd: int = 0
    default_fparam: tuple[float, ...] | None = None
    subtract_vacuum: bool = False
    use_aparam_as_mask: bool = False

    def __post_init__(self) -> None:
        _check(all(width >= 1 for width in self.neuron), "neuron", self.neuron)
        _check(self.precision in get_args(Precision), "precision", self.precision)
        for name in ("numb_fparam", "numb_aparam", "dim_case_embd"):
            _check(getattr(self, name) >= 0, name, getattr(self, name))
        if self.default_fparam is not None:
            _check(
                len(self.default_fparam) == self.numb_fparam, "default_fparam", self.default_fparam
            )


@dataclass(frozen=True)
class ModelConfig:
    """Everything that a DPA3 energy model is, except its weights."""

    type_map: tuple[str, ...]
    descriptor: DescriptorConfig
    fitting: FittingConfig
    pair_exclude_types: tuple[tuple[int, int], ...] = ()
    atom_exclude_types: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check(len(self.type_map) > 0, "type_map", self.type_map, "must name at least one type")
        _check(len(set(self.type_map)) == len(self.type_map), "type_map", self.type_map)
        pairs = (*self.descriptor.exclude_types, *self.pair_exclude_types)
        excluded = {t for pair in pairs for t in pair} | set(self.atom_exclude_types)
        _check(all(0 <= t < self.ntypes for t in excluded), "excluded types", sorted(excluded))

    @property
    def ntypes(self) -> int:
        """Number of atom types."""
        return len(self.type_map)

    @property
    def excluded_pairs(self) -> frozenset[tuple[int, int]]:
        """Ordered type pairs without an edge; both ways of excluding act alike."""
        pairs = (*self.descriptor.exclude_types, *self.pair_exclude_types)
        return frozenset(p for a, b in pairs for p in ((a, b), (b, a)))

    @property
    def input_dim(self) -> int:
        """Width of the fitting net's input: descriptor, fparam, aparam, case."""
        fitting = self.fitting
        aparam = 0 if fitting.use_aparam_as_mask else fitting.numb_aparam
        return self.descriptor.output_dim + fitting.numb_fparam + aparam + fitting.dim_case_embd

    def smoothed(self, width: float) -> Self:
        """This model without the step at ``a_rcut``: another potential.

        What the edge gives to its own R where it has no angles, e_ij, comes in over the last
        ``width`` before the cutoff, instead of all at once (docs/model.md#smooth-cutoff).

        Args:
            width: Å; 0 is the model without smoothing.

        Raises:
            InputError: a width that cannot be, or a model without such a step.
        """
        descriptor = replace(self.descriptor, smooth_cutoff=None)
        if width:
            _check_smoothing(descriptor, width)
            descriptor = replace(descriptor, smooth_cutoff=float(width))
        return replace(self, descriptor=descriptor)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready form; :meth:`from_dict` reads it back."""
        data = asdict(self)
        if self.descriptor.smooth_cutoff is None:  # files of other models stay as they were
            del data["descriptor"]["smooth_cutoff"]
        for part in ("descriptor", "fitting"):
            data[part]["activation"] = str(getattr(self, part).activation)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`; unknown or missing keys raise CheckpointError."""
        data = dict(data)
        for name, part in (("descriptor", DescriptorConfig), ("fitting", FittingConfig)):
            section = data.get(name)
            if not isinstance(section, Mapping):
                raise CheckpointError(f"model configuration: section {name!r} is missing")
            data[name] = build(part, section)
        return build(cls, data)


def build(cls: type[_T], data: Mapping[str, Any]) -> _T:
    """Make the config dataclass ``cls`` from plain JSON values, checking names and types."""
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise CheckpointError(f"model configuration: unknown option {', '.join(unknown)}")
    values = {}
    for name, value in data.items():
        values[name] = _coerce(name, str(known[name].type), value)
    try:
        return cls(**values)
    except TypeError as error:
        missing = re.sub(r"^.*__init__\(\) ", "", str(error))
        raise CheckpointError(f"model configuration: {missing}") from None


def _coerce(name: str, kind: str, value: Any) -> Any:
    """Check ``value`` against the annotation ``kind`` and make it immutable."""
    if isinstance(value, DescriptorConfig | FittingConfig | Activation):
        return value
    if kind == "Activation" and isinstance(value, str):
        return Activation.parse(value)
    if value is None and kind.endswith("| None"):
        return None
    kind = kind.removesuffix(" | None")
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if is_int or isinstance(value, float):
        _check(abs(value) < (MAX_SIZE if kind == "int" else math.inf), name, value)
    if kind == "int" and (is_int or (isinstance(value, float) and value.is_integer())):
        return int(value)
    if kind == "float" and (is_int or isinstance(value, float)):
        return float(value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind in ("UpdateStyle", "Precision") and isinstance(value, str):
        return value
    if kind.startswith("tuple") and isinstance(value, list | tuple):
        item = kind.removeprefix("tuple[").removesuffix("]")
        if item.startswith("tuple["):
            _check(all(isinstance(p, list | tuple) and len(p) == 2 for p in value), name, value)
            return tuple(_coerce(name, item.removesuffix(", ..."), v) for v in value)
        item = item.split(",")[0]
        return tuple(_coerce(name, item, v) for v in value)
    if kind == "str" and isinstance(value, str):
        return value
    raise CheckpointError(f"model configuration: option {name} = {value!r} is not a {kind}")


def _check_smoothing(descriptor: DescriptorConfig, width: float) -> None:
    """Raise InputError unless ``smooth_cutoff=width`` makes sense."""
    if not descriptor.has_step:
        why = "is smooth already" if descriptor.smooth_edge_update else "has no angles"
        raise InputError(f"smooth_cutoff {width:g}: this model {why}; leave the option out")
    if not 0.0 < width < descriptor.a_rcut:
        raise InputError(
            f"smooth_cutoff {width:g} must be between 0 and the cutoff of angles, "
            f"{descriptor.a_rcut:g} Å; 0 is off"
        )


def _check(condition: bool, name: str, value: object, why: str = "is not allowed") -> None:
    if not condition:
        raise CheckpointError(f"model configuration: {name} = {value!r} {why}")
