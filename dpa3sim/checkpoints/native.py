"""dpa3sim's own format: a safetensors file with the configuration as JSON in the metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dpa3sim.checkpoints.covariance import Covariance
from dpa3sim.checkpoints.model_file import ModelFile
from dpa3sim.common.errors import CheckpointError
from dpa3sim.common.files import atomic_write, usual_recursion
from dpa3sim.graph.edges import Truncation
from dpa3sim.model.config import ModelConfig
from dpa3sim.model.weights import Weights

METADATA_KEY = "dpa3sim"
# Files with a covariance have the later version, which older readers refuse with this reason.
FORMAT_VERSION, _WITH_COVARIANCE = 1, 2
_COVARIANCE = "covariance."
SUFFIX = ".safetensors"


class NativeModel(NamedTuple):
    """The content of a native file."""

    config: ModelConfig
    weights: dict[str, np.ndarray]
    name: str
    head: str | None
    origin: dict[str, str]
    truncate: Truncation
    covariance: Covariance | None


def write_native(model: ModelFile, path: Path) -> None:
    """Write a model to ``path``, completely or not at all.

    The file records its origin and a checksum over configuration and tensors.
    """
    config = model.config.to_dict()
    # A model that was converted before keeps its origin.
    origin = dict(model.origin) or {
        "file": model.path.name,
        "sha256": model.sha256,
        "format": model.source_format,
    }
    arrays: dict[str, np.ndarray] = dict(model.weights)
    header: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": model.name,
        "head": model.head,
        "origin": origin,
        "config": config,
        "truncate": model.truncate,
        "content_sha256": content_hash(config, model.weights),
    }
    if model.covariance is not None:
        more, facts = model.covariance.to_parts()
        arrays |= {_COVARIANCE + name: array for name, array in more.items()}
        header |= {"format_version": _WITH_COVARIANCE, "covariance": facts}
        header["covariance_sha256"] = content_hash(facts, more)
    # Only one entry, because safetensors writes several in random order.
    metadata = {METADATA_KEY: json.dumps(header, sort_keys=True)}
    data = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata=metadata)
    atomic_write(path, data)


def read_native(path: Path) -> NativeModel:
    """Read a file that :func:`write_native` wrote.

    Raises:
        CheckpointError: it is not such a file, or it is damaged or of a newer version.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, or not a safetensors file ({error})") from None
    if METADATA_KEY not in metadata:
        raise CheckpointError(f"{path}: a safetensors file, but not a dpa3sim model")
    header = _json_object(path, metadata[METADATA_KEY])
    if header.get("format_version") not in (FORMAT_VERSION, _WITH_COVARIANCE):
        raise CheckpointError(
            f"{path}: format version {header.get('format_version')}, "
            f"this dpa3sim reads version {FORMAT_VERSION} and {_WITH_COVARIANCE}"
        )
    covariance = None
    if header["format_version"] == _WITH_COVARIANCE:
        covariance = _covariance(path, header, weights)
    config, origin = header.get("config"), header.get("origin")
    if not isinstance(config, dict) or not isinstance(origin, dict):
        raise CheckpointError(f"{path}: malformed metadata")
    if header.get("content_sha256") != content_hash(config, weights):
        raise CheckpointError(f"{path}: damaged: its content does not match its checksum")
    try:
        parsed = ModelConfig.from_dict(config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    name, head = str(header.get("name", path.stem)), header.get("head")
    origin = {key: str(value) for key, value in origin.items()}
    truncate = header.get("truncate", "deepmd")
    if truncate not in get_args(Truncation):
        raise CheckpointError(f"{path}: truncate = {truncate!r} is not known to this dpa3sim")
    chosen = str(head) if head else None
    return NativeModel(parsed, weights, name, chosen, origin, truncate, covariance)


def _covariance(
    path: Path, header: Mapping[str, Any], tensors: dict[str, np.ndarray]
) -> Covariance:
    """Take the covariance out of what was read."""
    names = [name for name in tensors if name.startswith(_COVARIANCE)]
    arrays = {name.removeprefix(_COVARIANCE): tensors.pop(name) for name in names}
    try:
        facts = header["covariance"]
        if header["covariance_sha256"] != content_hash(facts, arrays):
            raise ValueError("it does not match its checksum")
        return Covariance.from_parts(arrays, facts)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(f"{error}".split())
        raise CheckpointError(f"{path}: damaged: its covariance ({reason})") from None


def content_hash(config: Mapping[str, Any], weights: Weights) -> str:
    """SHA-256 over the configuration and all tensors with their names, types and shapes."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _json_object(path: Path, text: str) -> dict[str, Any]:
    try:
        with usual_recursion():
            value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: malformed metadata")
    return value
