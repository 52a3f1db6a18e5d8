"""Damaged run directories: a result that is right, or one clear line."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from ase.build import molecule
from ase.io import write
from fuzz_support import NUMBERS, edits, long, mutate, refused_or_fine, short, slow
from hypothesis import strategies as st
from tests_support import DATA

from dpa3sim import Potential
from dpa3sim.cli.main import main
from dpa3sim.clients.ipi import simulate
from dpa3sim.run.directory import CHECKPOINT, EVALUATIONS, PROVENANCE, RESULT
from dpa3sim.run.recorder import STATE
from dpa3sim.run.store import StoredPotential

FOLDER = Path(tempfile.mkdtemp(prefix="dpa3sim-fuzz-"))
COMMANDS = {
    "relax": ["--steps", "2"],
    "md": ["--steps", "3", "--temperature", "50", "--interval", "1", "--checkpoint", "2"],
}


@cache
def potential() -> Potential:
    return Potential(DATA / "models/dynamic/model.pt")


def run(folder: Path, command: str, *more: str) -> tuple[int, str]:
    """Exit code and messages of a command in a folder, with a model that is loaded already."""
    errors = io.StringIO()
    out = str(folder / f"w.{command}")
    arguments = [command, str(FOLDER / "w.xyz"), *COMMANDS[command], *more]
    with (
        mock.patch.object(Potential, "load", return_value=potential()),
        mock.patch("sys.stderr", errors),
    ):
        code = main([*arguments, "--no-plot", "--quiet", "--out", out])
    return code, errors.getvalue()


@cache
def template(command: str) -> Path:
    """A run directory that is to be continued."""
    write(FOLDER / "w.xyz", molecule("H2O"))
    folder = FOLDER / f"template-{command}"
    assert run(folder, command)[0] in (0, 3)
    if command == "relax":
        (folder / "w.relax" / RESULT).unlink()
    return folder


values = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from([None, True, [], {}, "x", -1, 10**30, 10**400, 1e300, [[]], {"a": 1}]),
)


def edit_json(data: bytes, place: float, value: Any) -> bytes:
    """Another value somewhere in a file of JSON."""
    tree = json.loads(data)
    entries: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key, child in list(node.items() if isinstance(node, dict) else enumerate(node)):
            entries.append((node, key))
            if isinstance(child, dict | list):
                collect(child)

    collect(tree)
    node, key = entries[int(place * len(entries))]
    if value is None and isinstance(node, dict):
        del node[key]
    else:
        node[key] = value
    return json.dumps(tree).encode() if not (isinstance(value, int) and value > 10**300) else data


def edit_npz(data: bytes, change: Callable[[bytes], bytes], place: float) -> bytes:
    """Another content of a member, with the right checksum."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    name = sorted(content)[int(place * len(content))]
    content[name] = change(content[name])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, member in content.items():
            archive.writestr(name, member)
    return buffer.getvalue()


kinds = st.sampled_from(["bytes", "bytes", "inside", "inside", "inside", "cut", "gone"])
places = st.floats(0, 1, exclude_max=True)
damages = st.tuples(st.sampled_from(sorted(COMMANDS)), places, kinds, places, values, edits)


def damage(folder: Path, which: float, kind: str, place: float, value: Any, changes: Any) -> None:
    """Change a file of a run directory."""
    states = [name for name in (PROVENANCE, RESULT, CHECKPOINT, STATE) if (folder / name).exists()]
    names = states * 3 + sorted(item.name for item in folder.iterdir())
    path = folder / names[int(which * len(names))]
    data = path.read_bytes()
    if kind == "gone":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[: int(place * len(data))])
    elif kind == "inside" and path.suffix == ".json":
        path.write_bytes(edit_json(data, place, value))
    elif kind == "inside" and path.suffix == ".npz":
        path.write_bytes(edit_npz(data, lambda member: mutate(member, changes), place))
    else:
        path.write_bytes(mutate(data, changes))


def check_run_directories(example: tuple[str, float, str, float, Any, Any]) -> None:
    command, *how = example
    folder = FOLDER / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template(command), folder)
    damage(folder / f"w.{command}", *how)
    code, message = run(folder, command)
    assert code in (0, 2, 3, 4), (code, message)
    assert (code in (0, 3)) == (not message), (code, message)
    assert message.count("\n") <= 1, message
    assert not message or message.startswith("dpa3sim: error: "), message
    sizes = [item.stat().st_size for item in folder.rglob("*")]
    assert max(sizes) < 1 << 20, "a file was made longer than it ever was"
    if code == 2 and "is not a run directory" not in message:
        assert run(folder, command, "--force")[0] in (0, 3)


test_run_directories = short(damages, 30)(check_run_directories)


@cache
def saved() -> bytes:
    """Evaluations of a molecule, on disk."""
    path = FOLDER / EVALUATIONS
    with StoredPotential(potential(), path) as stored:
        stored.evaluate([molecule("H2O")])
        stored.hessian(molecule("H2O"), [0])
    return path.read_bytes()


@cache
def truth() -> tuple[float, np.ndarray]:
    result = potential().evaluate([molecule("H2O")])[0]
    return result.energy, result.forces


def check_evaluations(changes: Any) -> None:
    path = FOLDER / "copy.sqlite"
    for leftover in FOLDER.glob("copy.sqlite*"):
        leftover.unlink()
    path.write_bytes(mutate(saved(), changes))
    energy, forces = truth()
    with refused_or_fine(), StoredPotential(potential(), path) as stored:
        found = stored.evaluate([molecule("H2O")])[0]
        assert found.energy == energy
        np.testing.assert_array_equal(found.forces, forces)
        stored.hessian(molecule("H2O"), [0])


test_evaluations = short(edits, 100)(check_evaluations)


@cache
def restart() -> bytes:
    header = {"step": 3, "bytes": {"pimd.out": 10}, "heat": [0.0]}
    body = "<simulation>\n" + "<x>1.0</x>\n" * 20 + "</simulation>\n"
    header["sha256"] = simulate._sha256(header, body)
    return f"<!-- {json.dumps(header)} -->\n{body}".encode()


def check_restart(changes: Any) -> None:
    path = FOLDER / simulate.restart_file("pimd")
    path.write_bytes(mutate(restart(), changes))
    with refused_or_fine():
        assert simulate.saved_step(FOLDER, "pimd") == 3


test_restart = short(edits, 100)(check_restart)


@slow
def test_run_directories_for_long():
    long(check_run_directories, damages)


@slow
def test_evaluations_for_long():
    long(check_evaluations, edits)
