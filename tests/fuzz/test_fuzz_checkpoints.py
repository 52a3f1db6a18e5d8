"""Model files of any content: a model that computes, or one clear line; nothing is executed."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
import pickletools
import struct
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

from ase.build import molecule
from fuzz_support import edits, long, mutate, refused_or_fine, short, slow
from hypothesis import strategies as st
from safetensors.numpy import save
from tests_support import DATA

from dpa3sim import Potential
from dpa3sim.checkpoints import read_model
from dpa3sim.checkpoints.native import METADATA_KEY, content_hash

FOLDER = Path(tempfile.mkdtemp(prefix="dpa3sim-fuzz-"))
FILES = (
    "models/dynamic/frozen.pth",
    "models/dynamic/model.pt",
    "models/multitask/model.pt",
    "models/charge_spin/frozen.pth",
    "variants/ema/model.pt",
)
HEADS = (None, "Default", "H2O_H2O_PD", "")
Op = tuple[str, Any, bytes]
# Opcodes with their arguments that torch does not write in such places.
SNIPPETS = [
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ccollections\nOrderedDict\n",
    b"c__torch__.x\nY\n)\x81",
    b"\x96" + struct.pack("<Q", 1 << 40),  # BYTEARRAY8
    b"\x8d" + struct.pack("<Q", 1 << 62),  # BINUNICODE8
    b"\x8b" + struct.pack("<I", 1 << 20),  # LONG4
    b"\x95" + struct.pack("<Q", 1 << 50),  # FRAME
    b"r" + struct.pack("<I", 1 << 31),  # LONG_BINPUT
    b"(" * 3000,
    b"]" * 3000,
    b"\x8f",  # EMPTY_SET
    b"\x91",  # FROZENSET
    *b") ( ] } R b \x81 Q t l d u s e a 0 1 2 N \x88 \x89 .".split(b" "),
    # Doubled forty times: a tuple of tuples, a list of lists, keys, texts.
    b"N" + b"2\x86" * 40,
    b"]q\xf0" + b"](h\xf0h\xf0eq\xf0" * 40,
    b"}N" + b"2\x86" * 40 + b"Ns",
    b"G" + struct.pack(">d", math.nan),
    b"\x8a\xff" + b"\x7f" * 255,  # LONG1
]


@cache
def opcodes(file: str) -> list[Op]:
    """The pickle of a file, opcode by opcode: name, argument, bytes."""
    with zipfile.ZipFile(DATA / file) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        data = archive.read(name)
    found = list(pickletools.genops(data))
    ends = [place for _, _, place in found[1:]] + [len(data)]
    return [(op.name, arg, data[at:end]) for (op, arg, at), end in zip(found, ends, strict=True)]


@cache
def members(file: str) -> dict[str, bytes]:
    with zipfile.ZipFile(DATA / file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@cache
def values(file: str) -> dict[str, list[int]]:
    """Places of opcodes by what they push: what is worth another value."""
    found: dict[str, list[int]] = {}
    for index, (name, arg, _) in enumerate(opcodes(file)):
        kind = "other"
        if name == "BINUNICODE":
            kind = "json" if str(arg).startswith("{") else "text"
        elif "INT" in name or name in ("LONG1", "NEWTRUE", "NEWFALSE", "NONE", "BINFLOAT"):
            kind = "number"
        found.setdefault(kind, []).append(index)
    return found


def pushes(value: Any) -> bytes:
    """The pickle of a value without header and end."""
    return pickle.dumps(value, 2)[2:-1]


scalars = st.one_of(
    st.integers(-3, 130),
    st.sampled_from([2**31, 2**63, 10**12, 10**30, -(10**12), 0.0, -1.0, 1e-300, 1e300, 0.5, 6.0]),
    st.sampled_from([math.nan, math.inf, -math.inf, True, False, None, "", "x", "silu", "tanh"]),
    st.sampled_from(
        ["silut:nan", "silut:1e999", "none", "float16", "default", "H", "O", "\0", "é"]
    ),
    st.sampled_from([[], {}, [1], [[0, 1]], [[0]], [0, 0, 0], ["H", "H"], {"a": 1}, (1, 2), b"x"]),
    st.floats(),
)
_ops = st.lists(
    st.one_of(
        st.tuples(st.just("number"), st.floats(0, 1, exclude_max=True), scalars),
        st.tuples(st.just("text"), st.floats(0, 1, exclude_max=True), scalars),
        st.tuples(st.just("json"), st.floats(0, 1, exclude_max=True), scalars),
        st.tuples(st.just("insert"), st.floats(0, 1), st.sampled_from(SNIPPETS)),
        st.tuples(st.just("remove"), st.floats(0, 1, exclude_max=True), st.integers(1, 5)),
        st.tuples(st.just("copy"), st.floats(0, 1), st.floats(0, 1, exclude_max=True)),
    ),
    min_size=1,
    max_size=3,
)


def edit_pickle(file: str, changes: list[tuple[str, float, Any]]) -> bytes:
    parts = [data for _, _, data in opcodes(file)]
    for kind, place, value in changes:
        at = int(place * len(parts))
        if kind in ("number", "text"):
            places = values(file)[kind]
            parts[places[int(place * len(places))] % len(parts)] = pushes(value)
        elif kind == "json":
            places = values(file).get("json")
            if places and places[0] < len(parts):
                text = opcodes(file)[places[0]][1]
                parts[places[0]] = pushes(json.dumps(edit_tree(json.loads(text), place, value)))
        elif kind == "insert":
            parts.insert(at, value)
        elif kind == "remove":
            del parts[at : at + value]
        else:
            parts.insert(at, parts[int(value * len(parts))])
    return b"".join(parts)


def edit_tree(tree: Any, place: float, value: Any) -> Any:
    """Another value, or none, for an entry of nested dictionaries and lists."""
    if isinstance(value, bytes | tuple):
        value = str(value)
    entries: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in list(items):
            entries.append((node, key))
            if isinstance(child, dict | list):
                collect(child)

    collect(tree)
    node, key = entries[int(place * len(entries))]
    if value == "" and isinstance(node, dict):
        del node[key]
    else:
        node[key] = copy.deepcopy(value)  # what one example changes is not another one's
    return tree


@st.composite
def archives(draw: Any) -> bytes:
    """Zip archives as torch writes them, with the right checksums for wrong content."""
    file = draw(st.sampled_from(FILES))
    content = dict(members(file))
    names = sorted(content)
    kind = draw(st.sampled_from(["pickle", "pickle", "pickle", "bytes", "member", "rename"]))
    main = next(n for n in names if n.endswith("data.pkl"))
    if kind == "pickle":
        content[main] = edit_pickle(file, draw(_ops))
    elif kind == "bytes":
        content[main] = mutate(content[main], draw(edits))
    elif kind == "member":
        name = draw(st.sampled_from(names))
        content[name] = mutate(content[name][:100_000], draw(edits))
    else:
        name = draw(st.sampled_from(names))
        new = draw(st.sampled_from([*names, "data.pkl", "a/data.pkl", "../x", "", "a/b/data.pkl"]))
        content[new] = content.pop(name)
    method = draw(st.sampled_from([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED]))
    return zipped(content, method)


def zipped(content: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as archive:
        for name, data in content.items():
            archive.writestr(name or "x", data)
    return buffer.getvalue()


@cache
def native() -> tuple[dict[str, Any], dict[str, Any]]:
    model = read_model(DATA / FILES[1])
    return model.config.to_dict(), {k: v.copy() for k, v in model.weights.items()}


@st.composite
def natives(draw: Any) -> bytes:
    """Files of our own format whose checksum is that of their content."""
    config, weights = native()
    config = json.loads(json.dumps(config))
    for place, value in draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), scalars))):
        edit_tree(config, place, value)
    header: dict[str, Any] = {
        "format_version": 1,
        "name": "x",
        "head": None,
        "origin": {},
        "config": config,
    }
    header["content_sha256"] = content_hash(config, weights)
    if draw(st.booleans()):
        edit_tree(header, draw(st.floats(0, 1, exclude_max=True)), draw(scalars))
    text = json.dumps(header)
    if draw(st.integers(0, 4)) == 0:
        text = mutate(text.encode(), draw(edits)).decode(errors="replace")
    data = save(weights, metadata={METADATA_KEY: text})
    return mutate(data, draw(edits)) if draw(st.integers(0, 4)) == 0 else data


@st.composite
def damaged(draw: Any) -> bytes:
    """Any file, with some bytes of it changed, or nothing but such bytes."""
    file = draw(st.sampled_from(FILES))
    start = draw(st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"12345678{"]))
    noise = start + draw(st.binary(max_size=200))
    return draw(st.sampled_from([noise, mutate((DATA / file).read_bytes(), draw(edits))]))


files = st.tuples(st.one_of(archives(), archives(), natives(), damaged()), st.sampled_from(HEADS))


def check_checkpoints(example: tuple[bytes, str | None]) -> None:
    content, head = example
    path = FOLDER / "model.pt"
    path.write_bytes(content)
    with refused_or_fine():
        for ema in (False, True):
            model = read_model(path, head=head, ema=ema)
            assert model.traps() is not None
            assert model.parameter_count > 0
            assert repr(model.elements)
    with refused_or_fine():
        potential = Potential(path, head=head)
        water = molecule("H2O")
        water.info.update(charge=0, spin=1)
        potential.evaluate([water])


test_checkpoints = short(files, 25)(check_checkpoints)


@slow
def test_checkpoints_for_long():
    long(check_checkpoints, files)
