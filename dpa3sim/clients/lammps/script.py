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
    """A LAMMPS input, cut where the model comes in.

    Attributes:
        name: of the input, for messages.
        head, tail: what stands before and after the line of the fix.
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
            InputError: there is none, several, or one with another meaning.
        """
        commands = _commands(text)
        found = [i for i, (_, words) in enumerate(commands) if _is_external(words)]
        if not found:
            raise InputError(
                f"{name} has no line '{_LINE}', which is where the model comes in; it must stand "
                "in this file, not in one that it includes, nor in an 'if'"
            )
        lines = [1 + sum(raw.count("\n") for raw, _ in commands[:i]) for i in found]
        if len(found) > 1:
            raise InputError(
                f"{name} has a fix external in lines {', '.join(map(str, lines))}; one model is "
                "all that can be used"
            )
        words = commands[found[0]][1]
        if words[2:] != _LINE.split()[2:] or not re.fullmatch(r"\w+", words[1], re.ASCII):
            raise InputError(
                f"{name} line {lines[0]}: '{' '.join(words)}' must be '{_LINE}' (or another name "
                "in the place of dpa3): the model gives the forces of all atoms at all steps"
            )
        raw = [raw for raw, _ in commands]
        head, tail = "".join(raw[: found[0]]), "".join(raw[found[0] + 1 :])
        return cls(name, head, tail, words[1])

    def begin(self, lmp: Any, potential: PotentialLike, elements: Sequence[str]) -> Coupling:
        """Run what stands before the fix, and attach the model.

        Raises:
            InputError: LAMMPS refused a command, or the model what LAMMPS has.
        """
        with _translated():
            _run(lmp, self.head)
        return attach(lmp, potential, elements, self.fix_id)

    def finish(self, lmp: Any, coupling: Coupling) -> None:
        """Run what stands after the fix.

        Raises:
            InputError: LAMMPS refused a command. UnphysicalError: it gave up during a run.
            Dpa3simError: the model gave no forces.
        """
        with _translated(coupling), coupling.raising():
            _run(lmp, self.tail)
        if not lmp.has_id("fix", self.fix_id):
            warnings.warn(
                f"{self.name} removed fix {self.fix_id} (unfix or clear): what it ran after that, "
                "if anything, was without the model",
                Dpa3simWarning,
                stacklevel=2,
            )


def _run(lmp: Any, text: str) -> None:
    """Run commands as a file, which is the only way that knows ``jump SELF``."""
    with tempfile.TemporaryDirectory(prefix="dpa3sim-") as folder:
        path = Path(folder) / "in.lammps"
        path.write_text(text, encoding="utf-8")
        lmp.file(str(path))


@contextmanager
def _translated(coupling: Coupling | None = None) -> Iterator[None]:
    """Errors of LAMMPS, which are bare ``Exception``s of several lines, as ours."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        message = re.sub(r"^ERROR: | \(src/.*", "", str(error).splitlines()[0])
        line = re.search("Last input line: (.*)", str(error))
        # What has no line went wrong during a run, such as atoms that were lost.
        in_run = line is None or line[1].split()[:1] in (["run"], ["minimize"], ["rerun"])
        kind = UnphysicalError if in_run and coupling and coupling.evaluations else InputError
        where = f" (its line was: {line[1]})" if line else ""
        raise kind(f"LAMMPS: {message}{where}") from None


def _is_external(words: Sequence[str]) -> bool:
    return len(words) > 3 and words[0] == "fix" and words[3] == "external"


def _commands(text: str) -> list[tuple[str, list[str]]]:
    """Every command as it stands in the file, which may take several lines, and its words."""
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
