"""When a distillation ends."""

from __future__ import annotations

from collections.abc import Sequence

from dpa3sim.distill.settings import DistillSettings

TARGET, NO_GAIN, ALL_ROUNDS = "the target is reached", "no more improvement", "all rounds are done"
# A round that lowers the error by less than this share was in vain.
GAIN = 0.02


def end(errors: Sequence[float], added: Sequence[int], settings: DistillSettings) -> str:
    """Why nothing is left to train; empty if something is.

    Args:
        errors: after each training: RMSE of the forces of held-out frames at the temperature where
            it is largest, meV/Å.
        added: how many frames of the student's own dynamics each round has added. A round begins
            with that and ends with a training.
        settings: of the distillation.
    """
    if not added:
        return ""
    trained = len(errors) > len(added)  # since the last frames
    if errors[-1] <= settings.target and (trained or not added[-1]):
        return TARGET
    if not trained:
        return ""
    if errors[-1] > (1 - GAIN) * errors[-2]:
        return NO_GAIN
    return ALL_ROUNDS if len(added) >= settings.rounds else ""
