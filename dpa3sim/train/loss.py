"""The loss of a batch of frames of any sizes, and its derivatives with respect to predictions.

With N atoms in a frame, and each term averaged over the frames that have the label::

    L = mean_f w_f [ p_e rho(dE / s) + p_f / (3 N) sum rho(dF) + p_v / 9 sum rho(dW / s)
                     + p_ae / N sum rho(dE_i) ]

=======  =================================  ==========================
loss     rho(x)                             s
=======  =================================  ==========================
mse      x^2                                sqrt(N), or N if intensive
huber    x^2 / 2 for abs(x) <= D,           N
         else D (abs(x) - D / 2)
mae      abs(x)                             N
=======  =================================  ==========================

For frames of one size these are the losses of deepmd-kit. With the default, s = sqrt(N), a frame of
200 atoms counts 100 times as much as one of 2 atoms with the same error of the energy per atom.

Gradients with respect to weights need no other derivatives of the loss than those with respect to
energies, forces and virial, which are given in closed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dpa3sim.common.errors import InputError
from dpa3sim.train.settings import TERMS, LossSettings

_MEASURED = {"energy": "per_atom_eV", "forces": "eV_per_A", "virial": "per_atom_eV"}


@dataclass(frozen=True)
class Predictions:
    """What a model says of the frames of a batch; float64.

    Attributes:
        energy: ``(n_frames,)`` eV.
        forces: ``(n_atoms, 3)`` eV/Å.
        virial: ``(n_frames, 3, 3)`` eV, -dE/dstrain.
        atomic_energies: ``(n_atoms,)`` eV; needed where atomic energies are trained.
    """

    energy: Tensor
    forces: Tensor
    virial: Tensor
    atomic_energies: Tensor | None = None


@dataclass(frozen=True)
class Labels:
    """What the predictions are to become; float64.

    A label is missing in a frame if one of its numbers there is NaN.

    Attributes:
        structure: ``(n_atoms,)`` int64, the frame of each atom.
        n_atoms_of: ``(n_frames,)`` int64, atoms of each frame.
        energy, forces, virial: see :class:`Predictions`.
        weight: ``(n_frames,)``, factors of the frames' terms.
        atomic_energies: ``(n_atoms,)`` eV, None if no frame has them.
    """

    structure: Tensor
    n_atoms_of: Tensor
    energy: Tensor
    forces: Tensor
    virial: Tensor
    weight: Tensor
    atomic_energies: Tensor | None = None

    @cached_property
    def present(self) -> dict[str, Tensor]:
        """Which frames have the label of each term: ``(n_frames,)`` bool."""
        atomic = self.atomic_energies
        nowhere = torch.zeros_like(self.n_atoms_of, dtype=torch.bool)
        return {
            "e": ~self.energy.isnan(),
            "f": self._complete(self.forces.isnan().any(dim=1)),
            "v": ~self.virial.isnan().any(dim=2).any(dim=1),
            "ae": nowhere if atomic is None else self._complete(atomic.isnan()),
        }

    @cached_property
    def counts(self) -> dict[str, Tensor]:
        """The number of frames that have the label of each term, scalars in float64."""
        return {term: mask.sum(dtype=torch.float64) for term, mask in self.present.items()}

    def _complete(self, missing: Tensor) -> Tensor:
        """Which frames have no atom with a missing number; ``missing`` is ``(n_atoms,)`` bool."""
        numbers = torch.zeros_like(self.n_atoms_of)
        return numbers.index_add(0, self.structure, missing.long()) == 0


@dataclass(frozen=True)
class Seeds:
    """Derivatives of the loss, from which the backward pass starts; float64.

    Attributes:
        energy: ``(n_atoms,)`` dL/dE_i, that of the frame's energy included.
        forces: ``(n_atoms, 3)`` dL/dF_i, in Å/eV.
        virial: ``(n_frames, 3, 3)`` dL/dW, in 1/eV; symmetric where predictions and labels are.
    """

    energy: Tensor
    forces: Tensor
    virial: Tensor


@dataclass(frozen=True)
class Measures:
    """Errors of many frames, to be averaged over all of them; add them up with ``+``.

    Attributes:
        sums: ``(3, 3)`` float64: for energies per atom, force components and components of virials
            per atom, the sum of the squared errors, that of their absolute values, and their
            number. A sum over ranks is that of this tensor.
    """

    sums: Tensor

    def __add__(self, other: Measures) -> Measures:
        return Measures(self.sums + other.sums)

    def values(self) -> dict[str, float]:
        """``rmse_energy_per_atom_eV``, ``mae_forces_eV_per_A`` ...; none without labels."""
        found = {}
        for (name, unit), (squares, absolute, number) in zip(
            _MEASURED.items(), self.sums.tolist(), strict=True
        ):
            if number:
                found[f"rmse_{name}_{unit}"] = (squares / number) ** 0.5
                found[f"mae_{name}_{unit}"] = absolute / number
        return found


def measure(predicted: Predictions, labels: Labels) -> Measures:
    """The errors of a batch where there are labels."""
    has = labels.present
    size = labels.n_atoms_of.double()
    errors = (
        (_error(predicted.energy, labels.energy, has["e"]) / size, has["e"].sum()),
        (
            _error(predicted.forces, labels.forces, has["f"][labels.structure]),
            3 * (has["f"] * labels.n_atoms_of).sum(),
        ),
        (
            _error(predicted.virial, labels.virial, has["v"]) / size.view(-1, 1, 1),
            9 * has["v"].sum(),
        ),
    )
    rows = [torch.stack([x.square().sum(), x.abs().sum(), n.double()]) for x, n in errors]
    return Measures(torch.stack(rows))


class Loss:
    """The loss as a function of predictions and labels.

    Args:
        settings: the options.
        start_lr: the learning rate after the warm-up, with which the prefactors start.
    """

    def __init__(self, settings: LossSettings, start_lr: float) -> None:
        if not start_lr > 0:
            raise InputError(f"learning rate {start_lr:g} at the start must be above 0")
        self._settings, self._start_lr = settings, start_lr
        self._trained = [t for t in TERMS if getattr(settings, f"start_pref_{t}") > 0]

    def prefactors(self, lr: float) -> dict[str, float]:
        """The prefactor of each of :data:`TERMS` at a learning rate; 0 if it is not trained."""
        fraction = lr / self._start_lr
        found = {}
        for term in TERMS:
            start = getattr(self._settings, f"start_pref_{term}")
            limit = getattr(self._settings, f"limit_pref_{term}")
            found[term] = limit + (start - limit) * fraction
        return found

    def __call__(
        self,
        predicted: Predictions,
        labels: Labels,
        lr: float,
        scale: Mapping[str, Tensor | float] | None = None,
    ) -> tuple[Tensor, Seeds, Measures]:
        """The loss, its derivatives and the errors of a batch; the host does not wait for them.

        Args:
            predicted: what the model says. A prediction without label has no effect, even if it
                is not finite.
            labels: what it should say.
            lr: the learning rate of the step.
            scale: :attr:`Labels.counts` added over all ranks, if several share a batch; losses and
                seeds of the ranks then add up to those of the whole batch.

        Returns:
            The loss, a scalar; its derivatives; the errors.
        """
        counts = labels.counts if scale is None else scale
        prefactors = self.prefactors(lr)
        loss = torch.zeros_like(labels.energy).sum()
        atoms = torch.zeros_like(predicted.forces[:, 0])
        forces, virial = torch.zeros_like(predicted.forces), torch.zeros_like(predicted.virial)
        for term in self._trained:
            # Without a single label the sum is 0, whatever it is divided by.
            number = torch.as_tensor(counts[term], dtype=torch.float64).clamp(min=1)
            factor = labels.weight * (prefactors[term] / number)
            match term:
                case "e":
                    value, seed = self._energy(predicted, labels, factor)
                    atoms = atoms + seed[labels.structure]
                case "f":
                    value, forces = self._forces(predicted, labels, factor)
                case "v":
                    value, virial = self._virial(predicted, labels, factor)
                case _:
                    value, seed = self._atomic_energies(predicted, labels, factor)
                    atoms = atoms + seed
            loss = loss + value
        return loss, Seeds(atoms, forces, virial), measure(predicted, labels)

    # Each term has the frames' factors, ``(n_frames,)``, and returns its part of the loss and the
    # derivatives with respect to its predictions.

    def _energy(
        self, predicted: Predictions, labels: Labels, factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        size = self._size(labels)
        error = _error(predicted.energy, labels.energy, labels.present["e"])
        value, slope = self._penalty(error / size)
        return (factor * value).sum(), factor * slope / size

    def _forces(
        self, predicted: Predictions, labels: Labels, factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        has = labels.present["f"][labels.structure]
        error = _error(predicted.forces, labels.forces, has)
        factor = (factor / labels.n_atoms_of)[labels.structure].unsqueeze(1)
        if self._settings.force_norm:
            length = error.norm(dim=1, keepdim=True)
            value, slope = self._penalty(length)
            # Where the error is 0, so is its direction.
            return (factor * value).sum(), factor * slope * _divided(error, length)
        factor = factor / 3
        if self._settings.relative_f is None:
            value, slope = self._penalty(error)
            return (factor * value).sum(), factor * slope
        true = torch.where(has.unsqueeze(1), labels.forces, 0.0).norm(dim=1, keepdim=True)
        unit = true + self._settings.relative_f
        value, slope = self._penalty(error / unit)
        return (factor * value).sum(), factor * slope / unit

    def _virial(
        self, predicted: Predictions, labels: Labels, factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        size, factor = self._size(labels).view(-1, 1, 1), factor.view(-1, 1, 1) / 9
        error = _error(predicted.virial, labels.virial, labels.present["v"])
        value, slope = self._penalty(error / size)
        return (factor * value).sum(), factor * slope / size

    def _atomic_energies(
        self, predicted: Predictions, labels: Labels, factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        if labels.atomic_energies is None:
            nothing = torch.zeros_like(predicted.forces[:, 0])
            return nothing.sum(), nothing
        if predicted.atomic_energies is None:
            raise ValueError("atomic energies are trained, but not among the predictions")
        has = labels.present["ae"][labels.structure]
        factor = (factor / labels.n_atoms_of)[labels.structure]
        error = _error(predicted.atomic_energies, labels.atomic_energies, has)
        value, slope = self._penalty(error)
        return (factor * value).sum(), factor * slope

    def _size(self, labels: Labels) -> Tensor:
        """What errors of energy and virial are divided by, ``(n_frames,)``; s above."""
        size = labels.n_atoms_of.double()
        per_atom = self._settings.intensive or self._settings.loss != "mse"
        return size if per_atom else size.sqrt()

    def _penalty(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """rho(x) and its derivative, elementwise."""
        if self._settings.loss == "mse":
            return x.square(), 2 * x
        if self._settings.loss == "mae":
            return x.abs(), x.sign()
        slope = x.clamp(-self._settings.huber_delta, self._settings.huber_delta)
        # In both of its ranges, Huber's function is this.
        return slope * (x - slope / 2), slope


def _error(predicted: Tensor, label: Tensor, has: Tensor) -> Tensor:
    """Prediction minus label, 0 in the rows that have none; ``has`` is ``(n_rows,)`` bool."""
    return torch.where(has.view(-1, *[1] * (label.dim() - 1)), predicted - label, 0.0)


def _divided(error: Tensor, length: Tensor) -> Tensor:
    """``error / length``, 0 where the length is 0."""
    return error / torch.where(length > 0, length, 1.0)
