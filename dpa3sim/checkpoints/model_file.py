"""The result of every checkpoint reader: a checked model, independent of the file format."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dpa3sim.checkpoints.covariance import Covariance
from dpa3sim.common.elements import ATOMIC_NUMBERS
from dpa3sim.common.errors import CheckpointError
from dpa3sim.graph.edges import Truncation
from dpa3sim.model.config import ModelConfig
from dpa3sim.model.weights import Weights, check_weights, parameter_count


@dataclass(frozen=True)
class ModelFile:
    """A DPA3 model as read from a file: options, tensors and their origin.

    Attributes:
        config: the options.
        weights: the tensors by name (:mod:`dpa3sim.model.weights`), numpy arrays.
        name: short name for messages and outputs.
        path: the file that was read.
        source_format: ``torchscript``, ``training`` or ``native``.
        sha256: checksum of the file that was read.
        head: the head that was selected, None for single-task models.
        heads: all heads of the file, empty for single-task models.
        origin: the original checkpoint of a converted model.
        notes: facts about the file that the user should know.
        truncate: which neighbours the model was trained with, see :class:`dpa3sim.Potential`.
        covariance: how certain it is, if the file says so; for these weights and options only.
    """

    config: ModelConfig
    weights: Weights
    name: str
    path: Path
    source_format: str
    sha256: str
    head: str | None = None
    heads: tuple[str, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    truncate: Truncation = "deepmd"
    covariance: Covariance | None = None

    def __post_init__(self) -> None:
        try:
            check_weights(self.config, self.weights)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from None

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars."""
        return parameter_count(self.weights)

    @property
    def untrained_types(self) -> tuple[str, ...]:
        """Types of the map that did not occur in the training data.

        Their energy bias, which is fitted to the data, stayed at zero. The result is empty if no
        type has a bias.
        See docs/model.md#elements-without-training-data.
        """
        bias = np.abs(self.weights["out_bias"][0, :, 0])
        if not bias.any():
            return ()
        unseen = bias < 1e-6 * bias.max()
        return tuple(t for t, u in zip(self.config.type_map, unseen, strict=True) if u)

    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical elements of the type map that the model was trained on."""
        unseen = set(self.untrained_types)
        return tuple(t for t in self.config.type_map if t in ATOMIC_NUMBERS and t not in unseen)

    def smoothed(self, width: float) -> ModelFile:
        """This model without the step at the angle cutoff, see :meth:`ModelConfig.smoothed`."""
        config = self.config.smoothed(width)
        return self if config == self.config else replace(self, config=config, covariance=None)

    def traps(self) -> list[str]:
        """Limits of this model that its user should know (docs/model.md#traps)."""
        descriptor, found = self.config.descriptor, []
        if descriptor.has_step:
            found.append(
                f"non-smooth at {descriptor.a_rcut:g} Å: the energy jumps by some meV whenever a "
                "pair of atoms crosses that distance (smooth_cutoff removes this step)"
            )
        if self.truncate == "none":
            return [*found, *self._later_traps()]
        found.append(
            f"selection limit: the nearest {descriptor.e_sel} neighbours within "
            f"{descriptor.e_rcut:g} Å and the nearest {descriptor.a_sel} within "
            f"{descriptor.a_rcut:g} Å count; in denser structures the energy depends on how "
            "equal distances are ordered (truncate='none' keeps all neighbours)"
        )
        return [*found, *self._later_traps()]

    def _later_traps(self) -> list[str]:
        """Those that do not depend on which neighbours count."""
        descriptor, found = self.config.descriptor, []
        activations = (descriptor.activation, self.config.fitting.activation)
        if any(a.name == "silut" and a.threshold < 5 for a in activations):
            found.append(
                "the activation's second derivative jumps at its threshold: Hessians from finite "
                "differences and analytic ones can differ slightly"
            )
        if self.untrained_types:
            found.append(f"elements never seen in training: {' '.join(self.untrained_types)}")
        return found


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
