"""How a potential goes to another process: as the file of its model and its options.

A model that no file holds, such as one whose weights were changed, goes along itself.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from dpa3sim.checkpoints import ModelFile, read_model
from dpa3sim.checkpoints.model_file import file_sha256
from dpa3sim.checkpoints.registry import load_model
from dpa3sim.common.errors import Dpa3simError, InputError
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.uncertainty.rigidity import Rigidity

T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """All that makes an equal potential in another process.

    Attributes:
        settings: with the name or path of the model, the device that was asked for, and no
            uncertainty.
        sha256: of the file of the model, or of the model itself if that goes along.
        model: the model, if no file holds it.
        rigidity: what uncertainties are made from.
        skin, max_memory: as in :class:`Potential`.
    """

    settings: ModelSettings
    sha256: str
    model: ModelFile | None
    rigidity: Rigidity | None
    skin: float
    max_memory: float | None

    @property
    def key(self) -> Hashable:
        """Equal for potentials that compute the same."""
        judged = None if self.rigidity is None else self.rigidity.identity
        whole = self.model is not None
        return self.settings, self.sha256, whole, judged, self.skin, self.max_memory

    def load(self) -> ModelFile:
        """The model.

        Raises:
            CheckpointError: its file is not here. InputError: it is another file by now.
        """
        if self.model is not None:
            return self.model
        found = load_model(self.settings.model, self.settings.head)
        if found.sha256 != self.sha256:
            raise InputError(
                f"{found.path} is not the model that was pickled: its SHA-256 is "
                f"{found.sha256[:12]}..., not {self.sha256[:12]}...; bring back that file, or make "
                "the calculator anew"
            )
        return found


def recipe(
    model: ModelFile,
    settings: ModelSettings,
    rigidity: Rigidity | None,
    skin: float,
    max_memory: float | None,
) -> Recipe:
    """The recipe of a potential, of the model that it uses and its options."""
    if _is_in_its_file(model):
        return Recipe(settings, model.sha256, None, rigidity, skin, max_memory)
    return Recipe(settings, _digest(model), model, rigidity, skin, max_memory)


def _is_in_its_file(model: ModelFile) -> bool:
    """Whether :func:`load_model` would give this model, apart from smoothing, from its file."""
    try:
        if file_sha256(model.path) != model.sha256:
            return False
        found = read_model(model.path, model.head)
    except (OSError, Dpa3simError):
        return False
    width = model.config.descriptor.smooth_cutoff
    if width is not None:
        found = found.smoothed(width)
    same = (found.config, found.truncate, found.head) == (model.config, model.truncate, model.head)
    return same and all(np.array_equal(x, model.weights[k]) for k, x in found.weights.items())


def _digest(model: ModelFile) -> str:
    digest = hashlib.sha256(repr((model.config, model.truncate, model.head)).encode())
    for name, values in sorted(model.weights.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


class Residents(Generic[T]):
    """What this process has loaded, by a key.

    Everything is kept as long as it is used, and the last one after that: a worker that unpickles
    the same calculator for each of its tasks loads the model once.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._all: weakref.WeakValueDictionary[Hashable, T] = weakref.WeakValueDictionary()
        self._last: T | None = None

    def add(self, key: Hashable, value: T) -> None:
        """Let others find this one, unless they find another one already."""
        with self._lock:
            self._all.setdefault(key, value)

    def find(self, key: Hashable, make: Callable[[], T]) -> T:
        """The one with this key, made if there is none."""
        with self._lock:
            found = self._all.get(key)
            if found is None:
                found = self._all[key] = make()
            self._last = found
            return found
