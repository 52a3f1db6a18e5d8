"""Options of a training: of the new model, and of the run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import CheckpointError, InputError
from dpa3sim.common.settings import option, validate
from dpa3sim.graph.edges import Truncation
from dpa3sim.model.config import Activation, DescriptorConfig, FittingConfig, ModelConfig
from dpa3sim.train.sampling import BatchRule
from dpa3sim.train.schedule import ScheduleSettings

# Names of the options whose name in the model's configuration is another one.
_FITTING = {
    "neuron": "neuron",
    "fitting_activation": "activation",
    "fitting_precision": "precision",
}
_FITTING |= {name: name for name in ("resnet_dt", "numb_fparam", "numb_aparam")}
ALL_ELEMENTS, FROM_DATA = "all", "data"
SINGLE = "Default"
"""The name of the task of a model without heads."""
TERMS = ("e", "f", "v", "ae")
"""Terms of the loss: energy, forces, virial, atomic energies."""
Shift = Literal["elements", "uniform", "none"]
"""How the energies of a trained model are fitted to other labels."""
OPTIMIZERS = {"adam": (0.999, 0.0, 1e-8), "adamw": (0.999, 1e-3, 1e-8), "muon": (0.95, 1e-3, 1e-7)}
"""Beta2, weight decay and eps of each kind of optimizer, as in deepmd-kit."""


@dataclass(frozen=True)
class ArchitectureSettings:
    """Options of a new model (docs/model.md#options); the defaults are the 6-layer recipe."""

    type_map: str = option(
        FROM_DATA,
        "elements of the model in their order, such as 'H O'; 'data': those of the training data; "
        "'all': H to Og",
    )
    nlayers: int = option(6, "number of layers", minimum=1)
    n_dim: int = option(128, "width of node features", minimum=1)
    e_dim: int = option(64, "width of edge features", minimum=1)
    a_dim: int = option(32, "width of angle features", minimum=1)
    e_rcut: float = option(6.0, "cutoff of edges", unit="Å", minimum=0)
    e_rcut_smth: float = option(5.3, "where the switch of edges begins", unit="Å", minimum=0)
    e_sel: str = option(
        "120", "edges of an atom at most, and their usual number; auto:1.1: times the data's most"
    )
    a_rcut: float = option(4.0, "cutoff of angles", unit="Å", minimum=0)
    a_rcut_smth: float = option(3.5, "where the switch of angles begins", unit="Å", minimum=0)
    a_sel: str = option("30", "the same as e_sel for the edges of angles")
    axis_neuron: int = option(4, "columns of the symmetrisation", minimum=1)
    a_compress_rate: int = option(1, "compression of nodes and edges in angles; 0: none", minimum=0)
    a_compress_e_rate: int = option(2, "edges are compressed less by this factor", minimum=1)
    a_compress_use_split: bool = option(True, "compress by taking the first columns")
    n_multi_edge_message: int = option(1, "messages of an edge to its node", minimum=1)
    update_angle: bool = option(True, "whether there are angles")
    update_style: str = option(
        "res_residual", "form of updates", choices=("res_residual", "res_avg", "res_incr")
    )
    update_residual: float = option(0.1, "first weight of updates")
    update_residual_init: str = option(
        "const", "whether all weights of updates start alike", choices=("const", "norm")
    )
    smooth_edge_update: bool = option(True, "no step of the energy at the cutoff of angles")
    edge_init_use_dist: bool = option(True, "edges start from the distance, not from its inverse")
    use_exp_switch: bool = option(True, "exponential switch instead of a polynomial")
    use_dynamic_sel: bool = option(False, "sums are divided by sel / sel_reduce_factor")
    sel_reduce_factor: float = option(10.0, "see use_dynamic_sel", minimum=0)
    sequential_update: bool = option(False, "phases of a layer read each other's results")
    activation: str = option("silut:10.0", "activation function of the layers")
    precision: str = option("float32", "of the layers", choices=("float32", "float64"))
    concat_output_tebd: bool = option(False, "the fitting net also reads the type embedding")
    use_econf_tebd: bool = option(False, "embed electron configurations instead of types")
    use_tebd_bias: bool = option(False, "whether the type embedding has a bias")
    add_chg_spin_ebd: bool = option(False, "embed total charge and spin")
    env_protection: float = option(0.0, "added to distances before their inverse", minimum=0)
    fix_stat_std: float = option(
        0.3, "normalisation of environment vectors; 0: from the data", minimum=0
    )
    neuron: str = option("240 240 240", "widths of the fitting net's layers")
    resnet_dt: bool = option(True, "scale the outputs of equally wide layers of the fitting net")
    fitting_activation: str = option("silut:10.0", "activation function of the fitting net")
    fitting_precision: str = option(
        "float32", "of the fitting net in files", choices=("float32", "float64")
    )
    numb_fparam: int = option(0, "parameters of a frame, fparam", minimum=0)
    numb_aparam: int = option(0, "parameters of an atom, aparam", minimum=0)

    def __post_init__(self) -> None:
        validate(self)
        self.config(("H",))  # whatever is wrong is said now

    @property
    def selection(self) -> dict[str, str]:
        """``e_sel``, ``a_sel`` where they are to be found from data."""
        both = {"e_sel": self.e_sel, "a_sel": self.a_sel}
        return {name: text for name, text in both.items() if not text.isdigit()}

    @property
    def given_types(self) -> tuple[str, ...] | None:
        """The type map, if it does not follow from data."""
        return None if self.type_map == FROM_DATA else self._types(())

    def config(self, elements: Sequence[str], encoding: int = 0) -> ModelConfig:
        """The configuration of the model.

        Args:
            elements: those of the data, for the type map. encoding: width of the case vector.

        Raises:
            InputError: options that contradict each other.
        """
        names = {f.name for f in fields(DescriptorConfig)} & {f.name for f in fields(self)}
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        for name in self.selection:
            values[name] = "100000" if name == "e_sel" else "10"  # replaced later
        try:
            values["e_sel"], values["a_sel"] = int(values["e_sel"]), int(values["a_sel"])
            values["activation"] = Activation.parse(self.activation)
            fitting: dict[str, Any] = {mine: getattr(self, name) for name, mine in _FITTING.items()}
            fitting["activation"] = Activation.parse(self.fitting_activation)
            fitting["neuron"] = self._neurons()
            return ModelConfig(
                self._types(elements),
                DescriptorConfig(**values),
                FittingConfig(**fitting, dim_case_embd=encoding),
            )
        except CheckpointError as error:
            raise InputError(str(error).replace("model configuration: ", "option ")) from None

    def _neurons(self) -> tuple[int, ...]:
        words = self.neuron.replace(",", " ").split()
        if not all(word.isascii() and word.isdigit() for word in words):
            raise InputError(f"option neuron = {self.neuron!r} must be widths, such as '240 240'")
        return tuple(map(int, words))

    def _types(self, elements: Sequence[str]) -> tuple[str, ...]:
        if self.type_map == FROM_DATA:
            return tuple(elements)
        if self.type_map == ALL_ELEMENTS:
            return tuple(SYMBOLS)
        found = tuple(self.type_map.replace(",", " ").split())
        for symbol in found:
            if symbol not in SYMBOLS:
                raise InputError(f"option type_map: {symbol!r} is not an element")
        return found


@dataclass(frozen=True)
class SourceSettings:
    """Which files a training reads."""

    data: str = option(
        "",
        "files and folders of training frames; TASK=FILE for several tasks in one model; can be "
        "repeated",
        repeatable=True,
    )
    validation: str = option(
        "", "the same for frames to validate with; can be repeated", repeatable=True
    )

    def __post_init__(self) -> None:
        validate(self)

    def by_task(self, name: str) -> dict[str, list[str]]:
        """The files of ``"data"`` or ``"validation"`` by task; quotes keep blanks in a name.

        Raises:
            InputError: some files have a task and others have none.
        """
        try:
            words = shlex.split(getattr(self, name))
        except ValueError as error:
            raise InputError(f"option {name}: {error}") from None
        found: dict[str, list[str]] = {}
        for word in words:
            task, separator, path = word.partition("=")
            if not separator or Path(word).exists():
                task, path = SINGLE, word
            elif not task.isidentifier():
                raise InputError(f"option {name}: {task!r} in {word!r} is not a name for a task")
            found.setdefault(task, []).append(path)
        if SINGLE in found and len(found) > 1:
            raise InputError(
                f"option {name}: {found[SINGLE][0]} has no task, but others have; write TASK=FILE"
            )
        return found


@dataclass(frozen=True)
class TrainSettings:
    """Options of a training run."""

    steps: int = option(100_000, "number of steps", minimum=1)
    epochs: float | None = option(
        None, "passes through the training data, instead of steps", minimum=0
    )
    batch_size: str = option(
        "auto:128",
        "frames in a batch; or auto:N: frames until they have N atoms, max:N: at most N atoms, "
        "filter:N: without larger frames",
    )
    gradient: str = option(
        "difference",
        "difference of two first derivatives, or exact second derivatives, which take many times "
        "as long",
        choices=("difference", "exact"),
    )
    gradient_max_norm: float | None = option(
        5.0, "longer gradients are shortened to this norm", minimum=0
    )
    ema_decay: float | None = option(
        None, "train exponential averages of the weights too, such as 0.999", minimum=0
    )
    energy_bias: str = option(
        "residual",
        "the energy of each element at the start is fitted to the labels, or to what the untrained "
        "model leaves of them",
        choices=("labels", "residual"),
    )
    validation_share: float = option(
        0.05, "share of the training frames to validate with, if no others are given", minimum=0
    )
    validate_every: int = option(500, "steps between validations of all validation data", minimum=1)
    report_every: int = option(100, "steps between rows of the learning curve", minimum=1)
    save_every: int = option(500, "steps between saved states", minimum=1)
    patience: int | None = option(
        None, "stop after so many validations without a better one", minimum=1
    )
    task_weights: str = option(
        "", "how often each task is trained, such as 'PBE=1 SCAN=3'; equally by default"
    )
    separate_fitting: bool = option(
        False, "several tasks: a fitting net for each, instead of one that is told the task"
    )
    covariance: bool = option(
        True, "the best model's file says how certain it is (--uncertainty model)"
    )
    seed: int = option(1, "of the first weights, and of the order of the frames", minimum=0)
    max_hours: float | None = option(
        None, "stop in time to be continued later", unit="h", minimum=0
    )
    device: str = option("auto", "auto (CUDA if available), cpu, cuda, cuda:1, ...")
    ranks: int = option(
        1,
        "processes on this machine that share each batch, which is as many times larger",
        minimum=1,
    )

    def __post_init__(self) -> None:
        validate(self)
        BatchRule.parse(self.batch_size)
        self.weights_of_tasks()
        if self.epochs == 0:
            raise InputError("option epochs = 0 must be above 0")
        if self.validation_share >= 0.5:
            raise InputError(
                f"option validation_share = {self.validation_share:g} must be below 0.5"
            )
        if self.ema_decay is not None and self.ema_decay >= 1:
            raise InputError(f"option ema_decay = {self.ema_decay:g} must be below 1")
        if self.gradient_max_norm == 0:
            raise InputError("option gradient_max_norm = 0 must be above 0")

    def weights_of_tasks(self) -> dict[str, float] | None:
        """``task_weights`` as numbers; None if there are none.

        Raises:
            InputError: it is not of the form NAME=NUMBER ...
        """
        found = {}
        for word in self.task_weights.replace(",", " ").split():
            name, _, text = word.partition("=")
            try:
                found[name] = float(text)
            except ValueError:
                raise InputError(
                    f"option task_weights: {word!r} must be NAME=NUMBER, such as PBE=1"
                ) from None
        return found or None


@dataclass(frozen=True)
class OptimizerSettings:
    """Options of the optimizer; the defaults are those of deepmd-kit's DPA3 recipe."""

    optimizer: str = option(
        "adamw",
        "Adam with the decay of weights in the gradient, Adam with a separate decay, or Muon for "
        "matrices with Adam for the rest",
        choices=tuple(OPTIMIZERS),
    )
    beta1: float = option(0.9, "decay of the mean of gradients", minimum=0)
    beta2: float | None = option(
        None, "decay of the mean of squared gradients; default 0.999, 0.95 for muon", minimum=0
    )
    weight_decay: float | None = option(
        None, "decay of weights; default 0.001, 0 for adam", minimum=0
    )

    def __post_init__(self) -> None:
        validate(self)
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            if value is not None and value >= 1:
                raise InputError(f"option {name} = {value:g} must be below 1")


@dataclass(frozen=True)
class LossSettings:
    """Options of the loss; the defaults are those of deepmd-kit's DPA3 recipe.

    A prefactor goes from its ``start`` to its ``limit`` value as the learning rate goes to 0. A
    term with both at 0 is not trained.
    """

    loss: str = option(
        "mse",
        "mean of squares, of Huber's function, or of absolute values of the errors",
        choices=("mse", "huber", "mae"),
    )
    huber_delta: float = option(0.01, "error beyond which Huber's function is linear")
    start_pref_e: float = option(0.2, "prefactor of energies at the start", minimum=0)
    limit_pref_e: float = option(20.0, "prefactor of energies at the end", minimum=0)
    start_pref_f: float = option(100.0, "prefactor of forces at the start", minimum=0)
    limit_pref_f: float = option(60.0, "prefactor of forces at the end", minimum=0)
    start_pref_v: float = option(0.02, "prefactor of virials at the start", minimum=0)
    limit_pref_v: float = option(1.0, "prefactor of virials at the end", minimum=0)
    start_pref_ae: float = option(0.0, "prefactor of atomic energies at the start", minimum=0)
    limit_pref_ae: float = option(0.0, "prefactor of atomic energies at the end", minimum=0)
    relative_f: float | None = option(
        None, "divide errors of forces by this plus the length of the true force", unit="eV/Å"
    )
    force_norm: bool = option(
        False, "use the lengths of force errors instead of their components; not with mse"
    )
    intensive: bool = option(
        False,
        "square the errors of energy and virial per atom, for frames of different sizes; "
        "huber and mae always use those",
    )

    def __post_init__(self) -> None:
        validate(self)
        for term in TERMS:
            names = f"start_pref_{term}", f"limit_pref_{term}"
            values = [getattr(self, name) for name in names]
            if (values[0] == 0) != (values[1] == 0):
                zero = values.index(0)
                raise InputError(
                    f"option {names[zero]} = 0 beside {names[1 - zero]} = {max(values):g}: set "
                    "both to 0 to leave the term out, or none"
                )
        if not any(getattr(self, f"start_pref_{term}") for term in TERMS):
            raise InputError("all prefactors of the loss are 0: set that of energies or of forces")
        for name in ("huber_delta", "relative_f"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"option {name} = {value:g} must be above 0")
        if self.relative_f is not None and self.loss != "mse":
            raise InputError(f"option relative_f needs loss=mse, not {self.loss}")
        if self.force_norm and self.loss == "mse":
            raise InputError("option force_norm needs loss=huber or loss=mae")


@dataclass(frozen=True)
class FinetuneSettings:
    """Which model is trained further, and how much of it."""

    model: str | None = option(None, "checkpoint file or registry name [embedded dpa3-openlam]")
    head: str | None = option(None, "which head of a multi-task checkpoint to start from")
    smooth_cutoff: float | None = option(
        None, "smooth the step at the angle cutoff over this width first", unit="Å", minimum=0
    )
    truncate: str = option(
        "auto",
        "train with the model's limits on the number of neighbours, or with all neighbours; auto "
        "is as the model was trained",
        choices=("auto", *get_args(Truncation)),
    )
    trainable: str = option(
        "all",
        "which weights are trained: all; of the last layers and the fitting net; of the fitting "
        "net; or low-rank changes of all matrices",
        choices=("all", "last", "fitting", "lora"),
    )
    last_layers: int = option(1, "layers that trainable=last trains", minimum=1)
    lora_rank: int = option(8, "rank of the changes of matrices", minimum=1)
    lora_alpha: float | None = option(None, "their scale is this over the rank [the rank]")
    shift: Shift = option(
        "elements",
        "what is fitted to the labels before the first step: an energy for each element, one for "
        "all atoms, or nothing",
        choices=get_args(Shift),
    )
    replay: str = option(
        "",
        "structures that the model must not forget, labelled by the model as it was: files, or "
        "'auto' for crystals and pairs of its elements; can be repeated",
        repeatable=True,
    )
    replay_count: int = option(256, "number of structures that replay=auto makes", minimum=8)
    replay_weight: float = option(
        1.0, "steps for the replayed structures per step for the data; 0 only measures", minimum=0
    )

    checks: bool = option(
        True, "at the end, compare with the model before, and try volumes, close pairs and dynamics"
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.lora_alpha is not None and self.lora_alpha <= 0:
            raise InputError(f"option lora_alpha = {self.lora_alpha:g} must be above 0")


@dataclass(frozen=True)
class FinetuneTrainSettings(TrainSettings):
    """Options of a run that trains a model further: fewer steps, averages, an early end."""

    steps: int = option(1000, "number of steps", minimum=1)
    ema_decay: float | None = option(
        0.99, "train exponential averages of the weights too, with this decay", minimum=0
    )
    validation_share: float = option(
        0.1, "share of the training frames to validate with, if no others are given", minimum=0
    )
    validate_every: int = option(50, "steps between validations of all validation data", minimum=1)
    report_every: int = option(10, "steps between rows of the learning curve", minimum=1)
    save_every: int = option(50, "steps between saved states", minimum=1)
    patience: int | None = option(
        8, "stop after so many validations without a better one", minimum=1
    )


@dataclass(frozen=True)
class FinetuneLossSettings(LossSettings):
    """Options of the loss of a model that is trained further: strange labels count less."""

    loss: str = option(
        "huber",
        "mean of squares, of Huber's function, or of absolute values of the errors",
        choices=("mse", "huber", "mae"),
    )


@dataclass(frozen=True)
class FinetuneScheduleSettings(ScheduleSettings):
    """Options of the learning rate of a model that is trained further: small, with a warm-up."""

    schedule: str = option(
        "cosine",
        "how the learning rate falls: exp, a cosine, or constant with a decay at the end (wsd)",
        choices=("exp", "cosine", "wsd"),
    )
    learning_rate: float = option(2e-4, "learning rate after the warm-up")
    stop_learning_rate: float = option(2e-6, "learning rate at the end", minimum=0)
    warmup_steps: int = option(20, "steps in which the learning rate rises", minimum=0)
