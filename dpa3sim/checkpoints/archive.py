"""Read torch's zip archives without executing anything (docs/model.md#reading-without-running).

Both ``.pt`` (torch.save) and ``.pth`` (TorchScript) files are zip archives with a pickle that
describes a tree of objects, and one raw file per tensor storage. The unpickler here is the pure
Python one with a fixed table of harmless globals: anything else in the file is refused before
it runs. Tensors become numpy arrays. This module does not need torch.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dpa3sim.common.errors import CheckpointError
from dpa3sim.common.files import usual_recursion

# numpy has no bfloat16 type: the bits are read as integers and extended to float32.
_STORAGE_TYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_TORCH_DTYPES = frozenset(
    "float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 bool".split()
)
_MAX_DIMENSIONS = 64
_MAX_CODE_BYTES = 64 << 20


class ScriptObject:
    """State of a TorchScript object; its class exists only as a name.

    Attributes:
        kind: class name without the ``__torch__`` prefix.
        state: its attributes.
    """

    __slots__ = ("kind", "state")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise CheckpointError(f"object {self.kind} has no attribute table")
        self.state = state


class Archive:
    """A torch zip archive with checked sizes and checksums.

    Attributes:
        path: the file.
        is_torchscript: whether it is a frozen model (``.pth``) rather than a saved state (``.pt``).
        extra_files: content of the members in ``extra/``.
        tree: the object tree of ``data.pkl``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as file:
                members = _read_members(file, path)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OSError,
            RuntimeError,
            ValueError,
        ) as error:
            raise CheckpointError(f"{path}: damaged or truncated archive ({error})") from None
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"{path}: not a torch file: it has no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if members.get(f"{root}byteorder", b"little") != b"little":
            raise CheckpointError(
                f"{path}: written on a big-endian machine, which is not supported"
            )
        self.is_torchscript = f"{root}constants.pkl" in members
        prefix = f"{root}extra/"
        self.extra_files = {
            name.removeprefix(prefix): data
            for name, data in members.items()
            if name.startswith(prefix)
        }
        try:
            with usual_recursion():
                self.tree = _Unpickler(members[pickles[0]], members, f"{root}data/").load()
                if self.is_torchscript:  # not needed, but it must not hide anything
                    constants = members[f"{root}constants.pkl"]
                    _Unpickler(constants, members, f"{root}constants/").load()
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        except RecursionError:
            raise CheckpointError(f"{path}: the object tree is nested too deeply") from None
        # Invalid bytes can cause any error inside the unpickler; this is not a bug here.
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise CheckpointError(f"{path}: malformed object tree ({reason})") from None


def _read_members(file: zipfile.ZipFile, path: Path) -> dict[str, bytes]:
    """Read every member, which verifies its checksum, after checking that the sizes are possible.

    torch compresses no members except the source code in a TorchScript file. The code is checked
    and dropped.
    """
    infos = file.infolist()
    if len({info.filename for info in infos}) != len(infos):
        raise CheckpointError(f"{path}: two members have the same name")
    code = [info for info in infos if info.compress_type != zipfile.ZIP_STORED]
    if any(
        "/code/" not in info.filename or info.compress_type != zipfile.ZIP_DEFLATED for info in code
    ):
        raise CheckpointError(f"{path}: it contains compressed data, which torch never writes")
    if sum(info.file_size for info in code) > _MAX_CODE_BYTES:
        raise CheckpointError(f"{path}: it contains an implausible amount of code")
    if sum(info.file_size for info in infos if info not in code) > path.stat().st_size:
        raise CheckpointError(f"{path}: members claim to be larger than the file")
    contents = {info.filename: file.read(info) for info in infos}
    return {name: data for name, data in contents.items() if "/code/" not in name}


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuse all keys that are not simple: the hash of nested tuples can take forever."""
    if not all(isinstance(key, str | int | float | None) for key in keys):
        raise CheckpointError("refused: a dictionary has keys that are neither strings nor numbers")


class _Dictionary(dict[Any, Any]):
    """A dict that drops attributes, such as the ``_metadata`` of a torch state dictionary."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Function:
    """A callable that a hostile pickle cannot modify (no ``__dict__``, no settable slot)."""

    __slots__ = ()

    def __call__(self, *args: Any) -> Any:
        raise NotImplementedError


class _MakeDictionary(_Function):
    def __call__(self, *args: Any) -> _Dictionary:
        pairs: list[Any] = list(*args)
        _check_keys(key for key, _ in pairs)
        return _Dictionary(pairs)


class _KeepFirst(_Function):
    """Replaces functions that wrap their first argument: parameters, tagged values, lists."""

    def __call__(self, *args: Any) -> Any:
        return args[0]


class _KeepAll(_Function):
    """Replaces constructors whose arguments are the complete value (torch.device)."""

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        return args


class _RebuildTensor(_Function):
    def __call__(self, *args: Any) -> np.ndarray:
        storage, offset, shape, strides = args[:4]  # then flags that only training needs
        return _strided_view(storage, offset, shape, strides)


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _MakeDictionary(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _KeepFirst(),
    ("torch", "device"): _KeepAll(),
    ("torch", "Size"): _KeepFirst(),
    ("torch.jit._pickle", "restore_type_tag"): _KeepFirst(),
    ("torch.jit._pickle", "build_intlist"): _KeepFirst(),
    ("torch.jit._pickle", "build_doublelist"): _KeepFirst(),
    ("torch.jit._pickle", "build_boollist"): _KeepFirst(),
    ("torch.jit._pickle", "build_tensorlist"): _KeepFirst(),
}
_GLOBALS |= {("torch", name): name for name in (*_STORAGE_TYPES, *_TORCH_DTYPES)}


class _ScriptClass(_Function):
    """A TorchScript class, whose instances are :class:`ScriptObject`."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, *args: Any) -> ScriptObject:
        if args:
            raise CheckpointError(f"refused: {self.kind} is instantiated with arguments")
        return ScriptObject(self.kind)


_DISPATCH: dict[int, Callable[..., None]] = dict(pickle._Unpickler.dispatch)


# The Python implementation: its memo is a dict, so that a forged index cannot exhaust the memory,
# and its opcodes can be overridden.
class _Unpickler(pickle._Unpickler):
    stack: list[Any]
    append: Callable[[Any], None]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(_DISPATCH)

    def __init__(self, data: bytes, members: dict[str, bytes], prefix: str) -> None:
        super().__init__(io.BytesIO(data))
        self._members = members
        self._prefix = prefix
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _ScriptClass(f"{module}.{name}".removeprefix("__torch__."))
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise CheckpointError(
                f"refused: the file requests the Python object {module}.{name}, "
                "which no model needs; it may be malicious"
            ) from None

    def load_newobj(self) -> None:
        """NEWOBJ: only TorchScript classes may be instantiated this way."""
        args, cls = self.stack.pop(), self.stack.pop()
        if not isinstance(cls, _ScriptClass) or not isinstance(args, tuple):
            raise CheckpointError("refused: the file instantiates an unexpected class")
        self.append(cls(*args))

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_build(self) -> None:
        """BUILD: only the two containers made here accept a state."""
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, _Dictionary | ScriptObject):
            raise CheckpointError("refused: the file sets the state of an unexpected object")
        target.__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_reduce(self) -> None:
        """REDUCE: only the functions of the table may be called."""
        args, function = self.stack.pop(), self.stack[-1]
        if not isinstance(function, _Function) or not isinstance(args, tuple):
            raise CheckpointError("refused: the file calls an unexpected object")
        self.stack[-1] = function(*args)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_setitem(self) -> None:
        """SETITEM: the key must be simple."""
        _check_keys(self.stack[-2:-1])
        _DISPATCH[pickle.SETITEM[0]](self)

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        """SETITEMS: keys and values alternate on the stack above the mark."""
        _check_keys(self.stack[::2])
        _DISPATCH[pickle.SETITEMS[0]](self)

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def _refuse(self) -> None:
        raise CheckpointError("refused: the file uses a pickle operation that torch never writes")

    for _opcode in (pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2):
        dispatch[_opcode[0]] = _refuse
    for _opcode in (pickle.EXT4, pickle.PERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        dispatch[_opcode[0]] = _refuse
    # Opcodes of later protocols, and those that would hash anything or allocate unread memory.
    for _opcode in (pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET):
        dispatch[_opcode[0]] = _refuse
    dispatch[pickle.BYTEARRAY8[0]] = _refuse

    def persistent_load(self, pid: Any) -> np.ndarray:
        """A storage: ``("storage", type, key, location, number of elements)``."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise CheckpointError("a reference does not point to tensor data")
        _, kind, key, _, numel = pid
        if not (isinstance(kind, str) and isinstance(key, str) and isinstance(numel, int)):
            raise CheckpointError("a reference to tensor data lacks type, name or size")
        if kind not in _STORAGE_TYPES:
            raise CheckpointError(f"unsupported tensor type {kind!r}")
        if f"{self._prefix}{key}" not in self._members:
            raise CheckpointError(f"tensor data {key!r} is missing")
        if key not in self._storages:
            self._storages[key] = _storage(self._members[f"{self._prefix}{key}"], kind)
        storage = self._storages[key]
        if numel != storage.size:
            raise CheckpointError(f"tensor data {key!r} has {storage.size} elements, not {numel}")
        return storage


def _storage(data: bytes, kind: str) -> np.ndarray:
    dtype = _STORAGE_TYPES[kind]
    size = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    if len(data) % size:
        raise CheckpointError(f"tensor data of {len(data)} bytes is not a whole number of {kind}")
    if dtype == "bfloat16":
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, dtype=dtype)


def _strided_view(storage: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray:
    """The tensor with these sizes and strides (in elements), which must lie inside the storage."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise CheckpointError("a tensor does not refer to a storage")
    numbers = (offset, *shape, *strides)
    if any(not isinstance(n, int) for n in numbers) or len(shape) > _MAX_DIMENSIONS:
        raise CheckpointError("a tensor has invalid sizes and strides")
    if any(n < 0 for n in numbers) or len(shape) != len(strides):
        raise CheckpointError(f"a tensor has sizes {shape}, strides {strides}, offset {offset}")
    if 0 in shape:
        return np.empty(shape, dtype=storage.dtype)
    # Expanded (zero-stride) tensors are also refused: a few bytes could claim terabytes.
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if last >= storage.size or math.prod(shape) > storage.size:
        raise CheckpointError(
            f"a tensor of sizes {shape} reaches beyond its {storage.size} elements of data"
        )
    itemsize = storage.itemsize
    return np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [s * itemsize for s in strides], writeable=False
    )
