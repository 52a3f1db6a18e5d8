"""Config files and ``--set``: settings that are valid, or one clear line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzz_support import NUMBERS, WORDS, edits, long, mutate, refused_or_fine, short, slow
from hypothesis import strategies as st

from dpa3sim.cli.options import resolve
from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import InputError
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.protocols import elastic, eos, md, phonon, pimd, relax

FOLDER = Path(tempfile.mkdtemp(prefix="dpa3sim-fuzz-"))
CLASSES = [m.Settings for m in (relax, eos, elastic, md, phonon, pimd)]
BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstuvwxyz")
)
TEXTS = [
    BOMB,
    "fmax: " + "[" * 3000,
    "? [a, b]\n: 1\n",
    "fmax: 2001-99-99",
    "fmax: 0b_",
    "fmax: 1:99999999999999999999999999:1",
    "fmax: !!float .nan",
    "fmax: !!python/object/apply:os.system [ls]",
    "fmax: !!binary 'x'",
    "model: \"\\0\"",
    "model: \"\\uD800\"",
    "steps: 1e400",
    "<<: 1",
    "- fmax",
    "fmax",
    "fmax: 1\nfmax: 2\n---\nfmax: 3",
    "%YAML 9.9\n---\nfmax: 1",
    "fmax: |\n  1e-3\n",
    "\ufeffsteps: 3\n",
    "1: 2",
    "null: 1",
    "steps: " + "9" * 5000,
    "steps: -0",
    "beads: 0o17",
    "fmax: &x 1",
    "&x fmax: *x",
]  # fmt: skip


@cache
def names() -> list[str]:
    found = {name for cls in (*CLASSES, ModelSettings) for name in options_of.options(cls)}
    return [*sorted(found), "relax.fmax", "", "=", "fmaxx", "é", "--fmax"]


@cache
def documents() -> list[str]:
    """The defaults of all commands, as files."""
    return [yaml.safe_dump(dataclasses.asdict(cls())) for cls in CLASSES] + TEXTS


values = st.one_of(
    st.sampled_from(WORDS), st.sampled_from(NUMBERS), st.text(max_size=20), st.just("true")
)
sets = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["fmax", "steps", "cell", "beads", "dtype", "model"]), values),
        st.tuples(st.deferred(lambda: st.sampled_from(names())), values),
    ).map("=".join),
    max_size=3,
)


@st.composite
def cases(draw: Any) -> tuple[type, bytes | None, list[str]]:
    cls = draw(st.sampled_from(CLASSES))
    content = None
    if draw(st.booleans()):
        content = draw(st.sampled_from(documents())).encode("utf-8", "surrogatepass")
        if draw(st.booleans()):
            content = mutate(content, draw(edits))
        if draw(st.integers(0, 19)) == 0:
            content = draw(st.binary(max_size=100))
    return cls, content, draw(sets)


def check_settings(example: tuple[type, bytes | None, list[str]]) -> None:
    cls, content, given = example
    path = FOLDER / "options.yaml"
    path.write_bytes(content or b"")
    args = argparse.Namespace(config=str(path) if content is not None else None, set=given)
    with refused_or_fine():
        settings, model = resolve(args, cls, ModelSettings)
        for made in (settings, model):
            options_of.validate(made)
            text = yaml.safe_dump(dataclasses.asdict(made), allow_unicode=True)
            assert yaml.safe_load(text.encode()) == dataclasses.asdict(made)
            json.dumps(options_of.to_dict(made), allow_nan=False)


test_settings = short(cases(), 80)(check_settings)


@slow
def test_settings_for_long():
    long(check_settings, cases())


def test_files_of_options_that_are_none(tmp_path):
    for path in (tmp_path, tmp_path / "absent", Path("/dev/zero")):
        args = argparse.Namespace(config=str(path), set=[])
        with pytest.raises(InputError, match=str(path)):
            resolve(args, relax.Settings)
