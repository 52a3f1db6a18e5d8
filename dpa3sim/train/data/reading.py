"""Training data of any format: found, read once, checked, and packed."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.structures.sources import PATTERN
from dpa3sim.train.data import deepmd, named
from dpa3sim.train.data.checks import FrameCheck, outliers
from dpa3sim.train.data.frames import Frame, Frames, Rejected
from dpa3sim.train.data.settings import DataSettings

HDF5 = (".h5", ".hdf5")
# The database of a screening, in its folder and in those of its shards.
SCREENING = "results.sqlite"


def read_frames(
    sources: Sequence[str | Path], settings: DataSettings, type_map: Sequence[str] | None = None
) -> tuple[Frames, tuple[Rejected, ...]]:
    """Read all frames, in order.

    A source is an extended XYZ file (also compressed), a trajectory or another file from which
    ASE reads results, an ASE database, the results of a screening (file or folder), a folder with
    deepmd-kit's data (a system, or any folder with systems in it), an HDF5 file with such data,
    ``FILE#/GROUP`` for one group of it, or a pattern such as ``'in/*.xyz'``.

    Args:
        sources: see above.
        settings: names of labels, and what is done with bad frames.
        type_map: the elements that are allowed, and those of numbered types; None for all.

    Returns:
        The good frames, and the bad ones, which there can be only if ``settings.skip_bad``.

    Raises:
        InputError: a source cannot be read, a frame is bad and may not be skipped, or no frame is
            left.
    """
    rejected: list[Rejected] = []
    frames = Frames.from_frames(_good(sources, settings, type_map, rejected))
    strange = outliers(frames, settings)
    if strange:
        _refuse(list(strange.values()), settings)
        rejected.extend(strange.values())
        frames = frames.select(np.setdiff1d(np.arange(len(frames)), list(strange)))
    return frames, tuple(rejected)


def _good(
    sources: Sequence[str | Path],
    settings: DataSettings,
    type_map: Sequence[str] | None,
    rejected: list[Rejected],
) -> Iterator[Frame]:
    """The frames that are good by themselves; the others are appended to ``rejected``.

    Raises:
        InputError: see :func:`read_frames`.
    """
    check, count = FrameCheck(type_map), 0
    for source in sources:
        for file in _files(str(source), settings, type_map):
            bad = []
            for found in file:
                result = _checked(found, check)
                if isinstance(result, Rejected):
                    bad.append(result)
                else:
                    count += 1
                    yield result
            _refuse(bad, settings)
            rejected += bad
    if rejected and not count:
        raise InputError(f"no frame can be used; the first of {len(rejected)}: {rejected[0]}")


def _checked(found: Frame | Rejected, check: FrameCheck) -> Frame | Rejected:
    if isinstance(found, Rejected):
        return found
    try:
        check(found)
    except InputError as error:
        return Rejected(found.origin, str(error))
    return found


def _refuse(bad: Sequence[Rejected], settings: DataSettings) -> None:
    """Raise InputError if there are bad frames, unless they may be skipped."""
    if bad and not settings.skip_bad:
        count = "1 bad frame" if len(bad) == 1 else f"{len(bad)} bad frames, the first"
        raise InputError(f"{count}: {bad[0]}; --skip-bad leaves such frames out")


def _files(
    source: str, settings: DataSettings, type_map: Sequence[str] | None
) -> Iterator[Iterator[Frame | Rejected]]:
    """The frames of every file that a source stands for.

    Raises:
        InputError: there is none.
    """
    path = Path(source)
    file, separator, group = source.partition("#")
    if path.is_dir():
        yield from _folder(path, settings, type_map)
    elif path.exists():
        if path.suffix in HDF5:
            yield deepmd.hdf5_frames(source, None, type_map)
        else:
            yield named.frames(source, settings)
    elif separator and Path(file).is_file():
        yield deepmd.hdf5_frames(file, group, type_map)
    elif PATTERN & set(source):
        found = sorted(glob.glob(source, recursive=True))
        if not found:
            raise InputError(f"{source}: no file has a matching name")
        for name in found:
            yield from _files(name, settings, type_map)
    else:
        raise InputError(f"{source}: no such file")


def _folder(
    folder: Path, settings: DataSettings, type_map: Sequence[str] | None
) -> Iterator[Iterator[Frame | Rejected]]:
    """Deepmd-kit's systems, and results of screenings."""
    systems = deepmd.find(folder)
    databases = [folder / SCREENING, *sorted(folder.glob(f"shard-*-of-*/{SCREENING}"))]
    databases = [path for path in databases if path.is_file()]
    if not systems and not databases:
        raise InputError(
            f"{folder}: has neither systems of deepmd-kit ({deepmd.TYPES}) nor results of a "
            f"screening ({SCREENING}); name other files by a pattern, such as '{folder}/*.xyz'"
        )
    for system in systems:
        yield deepmd.frames(system, type_map)
    for path in databases:
        yield named.frames(str(path), settings)
