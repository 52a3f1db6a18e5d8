"""The pages of the documentation as blocks, and what is said about running them.

An HTML comment before a block, which readers do not see, says what to do with it:

``<!-- not run: REASON -->``  it cannot run in the tests. Its commands are parsed all the same.
``<!-- needs: MODULE -->``    it runs where that can be imported.
``<!-- slow -->``             it runs with ``-m slow`` only.
``<!-- exits: CODE -->``       its exit code, if not 0.
``<!-- setup: COMMAND -->``   run before the block, in the same folder.
``<!-- not compared: REASON -->``  a text block after a command that is not what it prints exactly.
``<!-- test-command -->``     the README's own test command, which .ci/run runs.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples/README.md",
    ROOT / "examples/ipi/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
RUNNABLE = ("bash", "python")
SHOWN = ("text", "xml", "yaml", "toml", "lammps")
_FENCE = re.compile(r"^```(\S*)\s*$")
_NAMES = "not run|needs|slow|exits|setup|not compared|test-command"
_MARK = re.compile(rf"^<!-- ({_NAMES})(?:: (.*))? -->$")
_KEYWORDS = {"do", "then", "else", "time", "!", "{", "srun", "exec"}


@dataclass
class Block:
    """A fenced block.

    Attributes:
        language: what stands after the fence.
        marks: the comments before it, by name.
        follows: whether nothing but blank lines is between it and the block before.
    """

    page: Path
    line: int
    language: str
    marks: dict[str, str]
    follows: bool
    lines: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def runs(self) -> bool:
        """Whether the tests run it, be it with ``-m slow``."""
        exempt = "not run" in self.marks or "test-command" in self.marks
        return self.language in RUNNABLE and not exempt


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    blocks: list[Block] = []
    marks: dict[str, str] = {}
    inside, follows = False, False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if inside:
            if fence:
                assert not fence.group(1), f"{page}:{number}: a fence within a block"
                inside, follows = False, True
            else:
                blocks[-1].lines.append(line)
        elif fence:
            blocks.append(Block(page, number, fence.group(1), marks, follows))
            marks, inside = {}, True
        elif mark := _MARK.match(line):
            marks[mark.group(1)] = mark.group(2) or ""
        elif line.strip():
            marks, follows = {}, False
    assert not inside, f"{page}: a block has no end"
    return blocks


def commands(text: str) -> list[list[str]]:
    """The commands of shell lines as words: comments, pipes and redirections are left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        redirected = False
        for token in [*lexer, ";"]:
            if token and not token.strip("();<>|&"):
                if token.strip("<>&"):  # a new command
                    found.append(command)
                    command = []
                elif "<" in token or ">" in token:
                    redirected = True
                else:
                    found.append(command)
                    command = []
            elif redirected:
                redirected = False
            elif command or not (token in _KEYWORDS or re.match(r"\w+=", token)):
                command.append(token)
    return [command for command in found if command]


def code_spans(page: Path) -> list[tuple[int, str]]:
    """The inline code of a page outside of its blocks, with line numbers."""
    spans, inside = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            spans += [(number, span) for span in re.findall(r"`([^`]+)`", line)]
    return spans


def anchors(page: Path) -> set[str]:
    """What links to sections of a page end in, by GitHub's rules."""
    found: list[str] = []
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside and (heading := re.match(r"#+ (.*)$", line)):
            found.append(re.sub(r"[^\w\- ]", "", heading.group(1).lower()).replace(" ", "-"))
    # The second of two equal headings has a number.
    return {f"{a}-{found[:i].count(a)}" if a in found[:i] else a for i, a in enumerate(found)}
