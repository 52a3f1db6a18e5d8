"""The public DPA3 models: names, files, checksums, the local cache, and downloads.

Sources of the table: deepmd-kit's model registry, Matbench Discovery
(docs/model.md#public-models).
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPResponse
from importlib import resources
from pathlib import Path

from dpa3sim.checkpoints import ModelFile, read_model
from dpa3sim.checkpoints.model_file import file_sha256
from dpa3sim.common.errors import CheckpointError, DownloadError, Dpa3simWarning

DEFAULT_MODEL = "dpa3-openlam"
CACHE_VARIABLE = "DPA3SIM_CACHE"
_CHUNK = 1 << 18
_ATTEMPTS_PER_MIRROR = 3

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class RegistryModel:
    """A public model.

    Attributes:
        name: canonical name; aliases: other accepted spellings.
        filename: name of the file in the cache.
        urls: mirrors, tried in this order.
        size: bytes; None if the publisher does not state it.
        sha256: checksum; None if none was published.
        summary: one line for ``dpa3sim model list``.
        licence: as stated by the publisher.
        embedded: whether the converted model is part of dpa3sim.
    """

    name: str
    filename: str
    urls: tuple[str, ...]
    size: int | None
    sha256: str | None
    summary: str
    licence: str
    aliases: tuple[str, ...] = ()
    embedded: bool = False


def _hub(name: str) -> tuple[str, ...]:
    """The three mirrors of deepmd-kit's registry models."""
    return (
        f"https://huggingface.co/deepmodelingcommunity/{name}/resolve/main/{name}.pt",
        f"https://hf-mirror.com/deepmodelingcommunity/{name}/resolve/main/{name}.pt",
        f"https://modelscope.cn/models/DeepModelingCommunity/{name}/resolve/master/{name}.pt",
    )


_LGPL = "LGPL-3.0 (Matbench Discovery)"
_CC = "CC-BY-4.0"
REGISTRY: tuple[RegistryModel, ...] = (
    RegistryModel(
        name="dpa3-openlam",
        filename="2025-03-14-dpa3-openlam.pth",
        urls=(
            "https://figshare.com/files/52989059",
            "https://ndownloader.figshare.com/files/52989059",
        ),
        size=28403651,
        sha256="ec764d927f57b1d20912bba845c5cee1c1905f15c1df18b80903fcf69c5c07e2",
        summary="9 layers, 6.9 M parameters; OpenLAM, fine-tuned on MPtrj + sAlex (PBE/PBE+U)",
        licence=_LGPL,
        aliases=("dpa3-v2-openlam", "2025-03-14-dpa3-openlam"),
        embedded=True,
    ),
    RegistryModel(
        name="dpa3-mptrj",
        filename="2025-03-14-dpa3-mptrj.pth",
        urls=(
            "https://figshare.com/files/52989056",
            "https://ndownloader.figshare.com/files/52989056",
        ),
        size=20160148,
        sha256="cc106d8c978e0ab0b0ea1a977cf9a08cb642d30982a85ccfa54acbf4816e7a6a",
        summary="24 layers, 4.8 M parameters; MPtrj only (PBE/PBE+U)",
        licence=_LGPL,
        aliases=("dpa3-v2-mptrj", "2025-03-14-dpa3-mptrj"),
    ),
    RegistryModel(
        name="DPA-3.1-MPtrj",
        filename="DPA-3.1-MPtrj.pth",
        urls=(
            "https://figshare.com/files/55141124",
            "https://ndownloader.figshare.com/files/55141124",
        ),
        size=None,
        sha256=None,
        summary="24 layers, 4.8 M parameters; MPtrj only, angle cutoff 4.5 Å",
        licence=_LGPL,
    ),
    RegistryModel(
        name="DPA-3.1-3M-FT",
        filename="DPA-3.1-3M-FT.pth",
        urls=(
            "https://figshare.com/files/55141895",
            "https://ndownloader.figshare.com/files/55141895",
        ),
        size=None,
        sha256=None,
        summary="16 layers, 3.3 M parameters; OpenLAM, fine-tuned on MPtrj + sAlex",
        licence=_LGPL,
    ),
    RegistryModel(
        name="DPA-3.1-3M",
        filename="DPA-3.1-3M.pt",
        urls=_hub("DPA-3.1-3M"),
        size=None,
        sha256="86dd3a804d78ca5d203ebf98747e8f16dff9713ba8950097ceb760b161e19907",
        summary="16 layers, 3.3 M parameters; OpenLAM v1, 31 heads (about 47 MB)",
        licence=_CC,
    ),
    RegistryModel(
        name="DPA-3.2-5M",
        filename="DPA-3.2-5M.pt",
        urls=_hub("DPA-3.2-5M"),
        size=None,
        sha256="876354744aeaae17b2639a6a690514470273784f2b4836280850f50cbb799165",
        summary="24 layers, 4.8 M parameters; OpenLAM v2, many heads, charge and spin",
        licence=_CC,
    ),
    RegistryModel(
        name="DPA-3.3-1M",
        filename="DPA-3.3-1M.pt",
        urls=_hub("DPA-3.3-1M"),
        size=None,
        sha256="36fe440c111108d60cda54aa7d3fccac743794de25abef4d49564b9fb896a55b",
        summary="6 layers; OpenLAM v2, many heads, charge and spin",
        licence=_CC,
    ),
    RegistryModel(
        name="DPA3-Omol-Large",
        filename="DPA3-Omol-Large.pt",
        urls=_hub("DPA3-Omol-Large"),
        size=None,
        sha256="dc4d252b31450b41eb3546cc48f640ad0831c0b5d069ce27d996e0ff58fc037a",
        summary="molecules: OMol25 only, charge and spin",
        licence=_CC,
    ),
)


def load_model(
    model: str | Path | None = None, head: str | None = None, ema: bool = False
) -> ModelFile:
    """Load a model by registry name or path; None is the embedded default.

    A file with the given name takes precedence over a registry entry. Nothing is downloaded.

    Raises:
        CheckpointError: the model does not exist, is not downloaded yet, or is unreadable.
    """
    if model is None:
        model = DEFAULT_MODEL
    path = Path(model).expanduser()
    if path.is_file():
        found = read_model(path, head, ema)
    else:
        entry = find_entry(str(model))
        if entry is None:
            hint = "" if path.suffix else f"; known names: {', '.join(e.name for e in REGISTRY)}"
            raise CheckpointError(f"{model}: no such model file{hint}")
        found = read_model(installed_path(entry), head, ema)
        found = replace(found, name=entry.name)
    for note in found.notes:
        warnings.warn(f"{found.name}: {note}", Dpa3simWarning, stacklevel=2)
    return found


def find_entry(name: str) -> RegistryModel | None:
    """The registry entry with this name or alias, in any case."""
    for entry in REGISTRY:
        if name.lower() in (entry.name.lower(), *(a.lower() for a in entry.aliases)):
            return entry
    return None


def cache_directory() -> Path:
    """The folder of downloaded models; the environment variable DPA3SIM_CACHE overrides it."""
    override = os.environ.get(CACHE_VARIABLE)
    if override:
        return Path(override)
    import platformdirs

    return Path(platformdirs.user_cache_dir("dpa3sim")) / "models"


def embedded_path() -> Path:
    """The model file that is part of dpa3sim."""
    folder = resources.files("dpa3sim.checkpoints") / "embedded"
    return Path(str(folder / f"{DEFAULT_MODEL}.safetensors"))


def is_installed(entry: RegistryModel) -> bool:
    """Whether the model can be used without a download."""
    return entry.embedded or (cache_directory() / entry.filename).is_file()


def installed_path(entry: RegistryModel) -> Path:
    """The file of an installed model.

    Raises:
        CheckpointError: it is not installed; the message names the command that downloads it.
    """
    if entry.embedded:
        return embedded_path()
    path = cache_directory() / entry.filename
    if not path.is_file():
        raise CheckpointError(
            f"model {entry.name} is not on this machine; download it with: "
            f"dpa3sim model pull {entry.name}"
        )
    return path


def reference(model: ModelFile) -> str:
    """The name of this model for :func:`load_model`: its registry name or its absolute path."""
    entry = find_entry(model.name)
    if entry is not None and is_installed(entry) and installed_path(entry) == model.path:
        return entry.name
    return str(model.path.resolve())


def pull(
    entry: RegistryModel,
    *,
    sha256: str | None = None,
    allow_unverified: bool = False,
    timeout: float = 30.0,
    progress: Progress | None = None,
) -> Path:
    """Download a model into the cache and verify it; an unfinished download is resumed.

    Args:
        entry: the model.
        sha256: checksum for the verification, for models without a published one.
        allow_unverified: accept such a model without any checksum.
        timeout: seconds without a single byte after which a mirror is abandoned.
        progress: called with (bytes so far, total bytes or None).

    Returns:
        The file in the cache. It appears there only when it is complete and verified.

    Raises:
        DownloadError: no mirror delivered the right file.
    """
    expected = sha256.lower() if sha256 else entry.sha256
    if expected is None and not allow_unverified:
        raise DownloadError(
            f"no checksum of {entry.name} was published, so that it cannot be verified; "
            "pass one with --sha256, or accept this with --allow-unverified"
        )
    target = cache_directory() / entry.filename
    if target.is_file() and (expected is None or file_sha256(target) == expected):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"{target.parent}: cannot be created ({error.strerror})") from None
    part = target.with_name(target.name + ".part")
    failures: list[str] = []
    for url in entry.urls:
        reason = _fetch(url, part, entry.size, timeout, progress)
        reason = reason or _verify(part, entry.size, expected)
        if reason is None:
            part.replace(target)
            return target
        failures.append(f"{url}: {reason}")
    raise DownloadError(f"{entry.name} could not be downloaded:\n  " + "\n  ".join(failures))


def _fetch(
    url: str, part: Path, size: int | None, timeout: float, progress: Progress | None
) -> str | None:
    """Download ``url`` to ``part``, or continue; returns the reason of a failure or None."""
    reason: str | None = "no attempt"
    for _ in range(_ATTEMPTS_PER_MIRROR):
        before = part.stat().st_size if part.exists() else 0
        try:
            reason = _fetch_once(url, part, size, timeout, progress)
        except urllib.error.HTTPError as error:
            reason = f"HTTP status {error.code}"
            if error.code == 416:  # the part is longer than the file
                part.unlink(missing_ok=True)
        except (OSError, HTTPException, ValueError) as error:
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        if reason is None:
            return None
        if part.exists() and part.stat().st_size > before:
            continue  # the connection broke after some bytes: continue from there
        if not reason.startswith("HTTP status 416"):
            return reason
    return reason


def _fetch_once(
    url: str, part: Path, size: int | None, timeout: float, progress: Progress | None
) -> str | None:
    offset = part.stat().st_size if part.exists() else 0
    if size is not None and offset >= size:
        if offset == size:
            return None
        part.unlink()
        offset = 0
    request = urllib.request.Request(url, headers={"User-Agent": "dpa3sim"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    with urllib.request.urlopen(request, timeout=timeout) as response:
        resumed = response.status == 206 and _range_start(response) == offset
        done = offset if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else size
        if size is not None and total is not None and total != size:
            return f"the file on the server has {total} bytes, not {size}"
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read1(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done < total:
        return f"the connection broke after {done} of {total} bytes"
    return None


def _range_start(response: HTTPResponse) -> int | None:
    """The first byte of a partial response, from ``Content-Range: bytes START-END/SIZE``."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdigit() else None


def _verify(part: Path, size: int | None, sha256: str | None) -> str | None:
    """Check the size and checksum of a finished download; remove it if it is wrong."""
    if size is not None and part.stat().st_size != size:
        reason = f"{part.stat().st_size} bytes, not {size}"
    elif sha256 is not None and (found := file_sha256(part)) != sha256:
        reason = f"wrong content: SHA-256 {found}, not {sha256}"
    else:
        return None
    part.unlink(missing_ok=True)
    return reason


def describe(entries: Sequence[RegistryModel] = REGISTRY) -> list[dict[str, object]]:
    """JSON-ready list of the registry, for ``dpa3sim model list``."""
    return [
        {
            "name": e.name,
            "aliases": list(e.aliases),
            "installed": is_installed(e),
            "embedded": e.embedded,
            "size_bytes": e.size,
            "sha256": e.sha256,
            "licence": e.licence,
            "summary": e.summary,
            "urls": list(e.urls),
        }
        for e in entries
    ]
