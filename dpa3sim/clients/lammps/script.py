"""LAMMPS inputs that name the model by a line ``fix ID all external pf/callback 1 1``."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpa3sim.clients.lammps.coupling import Coupling, attach
from dpa3sim.common.errors import Dpa3simWarning, InputError, UnphysicalError
from dpa3sim.potential.interface import PotentialLike

_LINE = "fix dpa3 all external pf/callback 1 1"


@dataclass(frozen=True)
class Script:
    """A LAMMPS input, divided at the line where the model is connected.

    Attributes:
        name: name of the input, for messages.
        head, tail: the commands before and after the line of the fix.
        fix_id: name of the fix.
    """

    name: str
    head: str
    tail: str
    fix_id: str

    @classmethod
    def parse(cls, text: str, name: str) -> Script:
        """Find the line of the fix.

        Raises:
            InputError: there is no such line, or several, or one with other arguments.
        """
        commands = _commands(text)
        found = [i for i, (_, words) in enumerate(commands) if _is_external(words)]
        if not found:
            raise InputError(
                f"{name} has no line '{_LINE}', which connects the model; it must be "
                "in this file itself, not in an included file or an 'if'"
            )
        lines = [1 + sum(raw.count("\n") for raw, _ in commands[:i]) for i in found]
        if len(found) > 1:
            raise InputError(
                f"{name} has a fix external in lines {', '.join(map(str, lines))}; only "
                "one model can be used"
            )
        words = commands[found[0]][1]
        if words[2:] != _LINE.split()[2:] or not re.fullmatch(r"\w+", words[1], re.ASCII):
            raise InputError(
                f"{name} line {lines[0]}: '{' '.join(words)}' must be '{_LINE}' (or another name "
                "instead of dpa3): the model computes the forces on all atoms at all steps"
            )
        raw = [raw for raw, _ in commands]
        head, tail = "".join(raw[: found[0]]), "".join(raw[found[0] + 1 :])
        return cls(name, head, tail, words[1])

    def begin(self, lmp: Any, potential: PotentialLike, elements: Sequence[str]) -> Coupling:
        """Run the commands before the fix, and attach the model.

        Raises:
            InputError: LAMMPS refused a command, or the model refused LAMMPS's system.
        """
        with _translated():
            _run(lmp, self.head)
        return attach(lmp, potential, elements, self.fix_id)

    def finish(self, lmp: Any, coupling: Coupling) -> None:
        """Run the commands after the fix.

        Raises:
            InputError: LAMMPS refused a command. UnphysicalError: LAMMPS failed during a run.
            Dpa3simError: the model computed no forces.
        """
        with _translated(coupling), coupling.raising():
            _run(lmp, self.tail)
        if not lmp.has_id("fix", self.fix_id):
            warnings.warn(
                f"{self.name} removed fix {self.fix_id} (unfix or clear): any later run "
                "was without the model",
                Dpa3simWarning,
                stacklevel=2,
            )


def _run(lmp: Any, text: str) -> None:
    """Run commands as a file, which is the only way that supports ``jump SELF``."""
    with tempfile.TemporaryDirectory(prefix="dpa3sim-") as folder:
        path = Path(folder) / "in.lammps"
        path.write_text(text, encoding="utf-8")
        lmp.file(str(path))


@contextmanager
def _translated(coupling: Coupling | None = None) -> Iterator[None]:
    """Convert errors of LAMMPS, which are ``Exception``s of several lines, to our own."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        message = re.sub(r"^ERROR: | \(src/.*", "", str(error).splitlines()[0])
        line = re.search("Last input line: (.*)", str(error))
        # Errors without a line occurred during a run, such as lost atoms.
        in_run = line is None or line[1].split()[:1] in (["run"], ["minimize"], ["rerun"])
        kind = UnphysicalError if in_run and coupling and coupling.evaluations else InputError
        where = f" (in the line: {line[1]})" if line else ""
        raise kind(f"LAMMPS: {message}{where}") from None


def _is_external(words: Sequence[str]) -> bool:
    return len(words) > 3 and words[0] == "fix" and words[3] == "external"


def _commands(text: str) -> list[tuple[str, list[str]]]:
    """Every command as written in the file, which may have several lines, and its words."""
    commands: list[tuple[str, list[str]]] = []
    pending = ""
    for line in text.splitlines(keepends=True):
        pending += line
        if pending.rstrip().endswith("&") or pending.count('"""') % 2:
            continue
        commands.append((pending, re.sub(r"#.*|&\s*\n", "", pending).split()))
        pending = ""
    if pending:
        commands.append((pending, pending.split()))
    return commands
