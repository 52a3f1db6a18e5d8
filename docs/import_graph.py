"""Draw who imports whom: the block in docs/architecture.md between the two comments.

    python docs/import_graph.py

Imports inside functions count, those for type checkers alone do not. tests/docs
fail where there is a circle, an arrow against the order of the rooms, or an old drawing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/architecture.md"
BEGIN, END = "<!-- rooms: written by docs/import_graph.py -->\n```text\n", "```\n<!-- end -->"
# From the bottom to the top: a room may import those before it.
ROOMS = (
    "common",
    "structures",
    "graph",
    "model",
    "checkpoints",
    "kernels",
    "parallel",
    "uncertainty",
    "potential",
    "clients",
    "protocols.base",
    "protocols.crystals",
    "protocols.harmonics",
    "protocols.anharmonics",
    "protocols.dynamics",
    "protocols",
    "train.data",
    "train",
    "sample",
    "distill",
    "validate",
    "report.plots",
    "run",
    "run.jobs",
    "screen",
    "report",
    "cli",
    "cli.commands",
)
# Beside the rooms: what starts the program, and names that scripts import.
DOORS = (
    *("", "__main__", "deepmd_compat", "errors", "ipi", "ipi.pes", "ipi.serving", "lammps"),
    *("openmm", "reading", "torchsim"),
)


def modules() -> dict[str, Path]:
    """All modules of the package by their dotted names."""
    found = {}
    for folder, package in (("dpa3sim", "dpa3sim"), ("protocols", "dpa3sim.protocols")):
        for path in (ROOT / folder).rglob("*.py"):
            if folder == "dpa3sim" and "protocols" in path.relative_to(ROOT / folder).parts[:1]:
                continue  # the link, which some versions of Python follow
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that one imports."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in known else base)
    return {m for m in found if m in known and m != name}


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from _nodes(other)
            continue
        yield child
        yield from _nodes(child)


def graph() -> dict[str, set[str]]:
    """Every module with what it imports."""
    known = modules()
    return {name: imports(name, path, known) for name, path in known.items()}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (strongly connected, more than one)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(arrows[node]):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(arrows):
        if node not in order:
            visit(node)
    return found


def room_of(module: str) -> str | None:
    """The room of a module; None for doors."""
    name = module.removeprefix("dpa3sim").removeprefix(".")
    found = [room for room in ROOMS if name == room or name.startswith(f"{room}.")]
    if found:
        return max(found, key=len)
    if name not in DOORS:
        raise ValueError(f"{module} is in no room")
    return None


def between_rooms(arrows: dict[str, set[str]]) -> dict[tuple[str, str], list[str]]:
    """The arrows between rooms, each with the modules that make it."""
    found: dict[tuple[str, str], list[str]] = {}
    for module, others in sorted(arrows.items()):
        for other in sorted(others):
            pair = room_of(module), room_of(other)
            if None not in pair and pair[0] != pair[1]:
                found.setdefault(pair, []).append(f"{module} -> {other}")  # type: ignore[arg-type]
    return found


def drawing(arrows: dict[str, set[str]]) -> str:
    """A line for each room: what it imports."""
    pairs = between_rooms(arrows)
    lines = []
    for room in ROOMS:
        below = [other for other in ROOMS if (room, other) in pairs]
        lines.append(f"{room:<22}{' '.join(below)}".rstrip())
    return "\n".join(lines) + "\n"


def drawn(page: str) -> str:
    """The drawing in a page."""
    return page[page.index(BEGIN) + len(BEGIN) : page.index(END)]


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    block = BEGIN + drawing(graph()) + END
    PAGE.write_text(re.sub(pattern, lambda _: block, text, flags=re.DOTALL), encoding="utf-8")
