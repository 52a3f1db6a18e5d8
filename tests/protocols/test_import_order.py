"""Protocols import each other in one direction only, and of the rest only what lies below them."""

import ast
import graphlib
from importlib import import_module
from importlib.util import resolve_name
from pathlib import Path

import dpa3sim.protocols

PACKAGE = "dpa3sim.protocols"
FOLDER = Path(dpa3sim.protocols.__file__).parent
# Each room may import those before it; rooms of the same rank may not import each other.
RANKS = {"base": 0, "crystals": 1, "harmonics": 2, "dynamics": 2}
PUBLIC = 3
BELOW = {
    "common",
    "graph",
    "model",
    "structures",
    "kernels",
    "checkpoints",
    "potential",
    "clients",
}


def modules():
    """Name and syntax tree of every module of the protocols."""
    for path in sorted(FOLDER.rglob("*.py")):
        parts = path.relative_to(FOLDER).with_suffix("").parts
        name = ".".join([PACKAGE, *parts]).removesuffix(".__init__")
        yield name, path.name == "__init__.py", ast.parse(path.read_text(encoding="utf-8"))


def imports(name, is_package, tree):
    """What a module imports, in functions too, but not where only types are checked."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                package = name if is_package else name.rpartition(".")[0]
                source = resolve_name("." * node.level + source, package)
            for alias in node.names:
                yield f"{source}.{alias.name}"


def import_graph():
    """The modules that each module of the protocols imports, within dpa3sim."""
    parsed = list(modules())
    known = {name for name, _, _ in parsed}
    graph = {}
    for name, is_package, tree in parsed:
        found = set()
        for target in imports(name, is_package, tree):
            if target.startswith(PACKAGE + "."):
                # An imported name is a module of its own or belongs to the one it is imported from.
                found.add(target if target in known else target.rpartition(".")[0])
            elif target.startswith("dpa3sim."):
                found.add(target)
        graph[name] = found
    return graph


def rank(module):
    room = module.removeprefix(PACKAGE).lstrip(".").partition(".")[0]
    return RANKS.get(room, PUBLIC)


def room_of(module):
    return module.removeprefix(PACKAGE).lstrip(".").partition(".")[0]


def test_there_are_no_circles():
    graph = import_graph()
    assert len(graph) > 30
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_protocols_import_only_what_lies_below_them():
    wrong = []
    for module, targets in import_graph().items():
        for target in targets:
            if target.startswith(PACKAGE):
                same = room_of(module) == room_of(target) and rank(module) in (1, 2)
                if not (same or rank(target) < rank(module)):
                    wrong.append((module, target))
            elif target.split(".")[1] not in BELOW:
                wrong.append((module, target))
    assert not wrong


def test_the_parser_sees_imports_in_functions_and_skips_those_for_types():
    tree = ast.parse(
        "from __future__ import annotations\n"
        "if TYPE_CHECKING:\n    from ..md import Settings\n"
        "def f():\n    from ..base import Event\n    import dpa3sim.run.store\n"
    )
    found = set(imports(f"{PACKAGE}.dynamics.plan", False, tree))
    assert f"{PACKAGE}.base.Event" in found
    assert "dpa3sim.run.store" in found
    assert not any("Settings" in target for target in found)
    assert import_module(f"{PACKAGE}.base").Event
