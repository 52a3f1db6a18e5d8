"""Model files: one reader and one writer a format, around a checked :class:`ModelFile`."""

from __future__ import annotations

from pathlib import Path

from dpa3sim.checkpoints.archive import Archive
from dpa3sim.checkpoints.deepmd_writer import DEEPMD_SUFFIX, write_training
from dpa3sim.checkpoints.model_file import ModelFile, file_sha256
from dpa3sim.checkpoints.native import SUFFIX, read_native, write_native
from dpa3sim.checkpoints.torchscript import read_torchscript
from dpa3sim.checkpoints.training import SINGLE_TASK, read_training
from dpa3sim.common.errors import CheckpointError

__all__ = ["DEEPMD_SUFFIX", "SUFFIX", "ModelFile", "read_model", "write_native", "write_training"]

_ZIP_MAGIC = b"PK\x03\x04"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def read_model(path: str | Path, head: str | None = None, ema: bool = False) -> ModelFile:
    """Read a DPA3 model from any supported file; the content, not the name, decides the format.

    Args:
        path: ``.pth`` (frozen), ``.pt`` (training checkpoint) or dpa3sim's own ``.safetensors``.
        head: which head of a multi-task checkpoint.
        ema: use the moving averages that a training checkpoint stores in addition to its weights.

    Raises:
        CheckpointError: the file cannot be read, is damaged, unsupported or malicious, or the
            head does not exist. Nothing from the file is ever executed.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: {what}")
    try:
        with path.open("rb") as file:
            magic = file.read(16)
        sha256 = file_sha256(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if magic[8:9] == b"{":
        if ema:
            raise CheckpointError(
                f"{path}: only training checkpoints contain moving averages (EMA)"
            )
        return _from_native(path, sha256, head)
    if not magic.startswith(_ZIP_MAGIC):
        raise CheckpointError(f"{path}: {_why_not(magic)}")
    archive = Archive(path)
    if archive.is_torchscript:
        if ema:
            raise CheckpointError(
                f"{path}: only training checkpoints contain moving averages (EMA)"
            )
        config, weights = read_torchscript(archive)
        notes: tuple[str, ...] = ()
        if head is not None:
            notes = (f"a frozen model does not name its head; {head!r} cannot be verified",)
        return ModelFile(
            config, weights, path.stem, path, "torchscript", sha256, head=head, notes=notes
        )
    found = read_training(archive, head, ema)
    notes = ()
    if found.has_ema:
        notes = (
            "the moving averages (EMA) are used"
            if ema
            else "the file also contains moving averages (EMA); the regular weights are used",
        )
    return ModelFile(
        found.config,
        found.weights,
        path.stem,
        path,
        "training",
        sha256,
        head=found.head,
        heads=found.heads,
        notes=notes,
    )


def _from_native(path: Path, sha256: str, head: str | None) -> ModelFile:
    found = read_native(path)
    if head is not None and head.lower() != (found.head or SINGLE_TASK).lower():
        raise CheckpointError(
            f"{path}: there is no head {head!r}; the file contains "
            + (f"the head {found.head}" if found.head else "a single-task model")
        )
    return ModelFile(
        found.config,
        found.weights,
        found.name,
        path,
        "native",
        sha256,
        head=found.head,
        heads=(found.head,) if found.head else (),
        origin=found.origin,
        truncate=found.truncate,
        covariance=found.covariance,
    )


def _why_not(magic: bytes) -> str:
    if not magic:
        return "the file is empty"
    if magic.startswith(_HDF5_MAGIC):
        return "this is an HDF5 file (.dp?); freeze the model to .pth with deepmd-kit first"
    if magic.startswith(b"\x80"):
        return "a bare pickle, not a torch zip archive; refused, because loading it would run code"
    return "not a model file (expected .pth, .pt or .safetensors)"
