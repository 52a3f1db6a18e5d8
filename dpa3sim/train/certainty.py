"""How certain a trained model is, from the frames that it was trained on and others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dpa3sim.potential import Potential
from dpa3sim.train.data.frames import Frames
from dpa3sim.uncertainty.rigidity import MEMBERS, Errors, Labelled, Rigidity, fit

# Frames whose forces calibrate an uncertainty, spread over all of them: each takes some ten
# evaluations.
FORCE_FRAMES = 64
# Frames with so many atoms together, spread over all of them, are enough to say what a model
# knows, and how large its errors are.
_FITTED_ATOMS, _MEASURED_ATOMS = 20_000, 4000


def labelled(frames: Frames, force_frames: int = FORCE_FRAMES) -> Iterator[Labelled]:
    """Frames with what is known of them; forces, which take long, of some.

    Args:
        frames: with labels. force_frames: of at most so many, forces are given.
    """
    known = np.flatnonzero(frames.has_forces)
    kept = set(known[:: max(1, -(-len(known) // force_frames))].tolist())
    for index, frame in enumerate(frames):
        yield Labelled(frame.system, frame.energy, frame.forces if index in kept else None)


def certainty_of(potential: Potential, training: Frames, validation: Frames | None) -> Rigidity:
    """The covariance of training frames, with scales from the errors of others.

    Of large sets, some frames are taken, evenly.

    Args:
        potential: the trained model. training: its frames.
        validation: frames whose errors are measured; without, those of training, which are too
            small.

    Raises:
        InputError: the model cannot compute a frame.
    """
    rigidity = fit(potential, (frame.system for frame in _some(training, _FITTED_ATOMS)))
    held = validation if validation is not None and len(validation) else training
    measured = _some(held, _MEASURED_ATOMS)
    # An uncertainty of forces takes as long as all members together.
    force_frames = max(1, len(measured) // MEMBERS)
    return Errors.of(potential, rigidity, labelled(measured, force_frames)).calibrated(rigidity)


def _some(frames: Frames, atoms: int) -> Frames:
    """Frames that have at most so many atoms together, evenly from all; at least one."""
    stride = max(1, -(-int(frames.starts[-1]) // atoms))
    return frames.select(np.arange(0, len(frames), stride))
