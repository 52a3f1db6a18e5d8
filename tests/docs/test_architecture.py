"""The rooms of docs/architecture.md: no circle of imports, no arrow against their order."""

import tomllib

import import_graph
import pytest


@pytest.fixture(scope="module")
def arrows():
    return import_graph.graph()


def test_modules_are_found(arrows):
    assert len(arrows) > 180
    assert "dpa3sim.protocols.crystals.cells" in arrows["dpa3sim.protocols.crystals.prepare"]
    # An import inside a function.
    assert "dpa3sim.potential.potential" in arrows["dpa3sim.cli.live"]
    # For type checkers only.
    assert "dpa3sim.potential.potential" not in arrows["dpa3sim.run.job"]


def test_no_circle(arrows):
    assert import_graph.circles(arrows) == []


def test_a_circle_would_be_found():
    assert import_graph.circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [
        ["a", "b", "c"]
    ]


def test_no_arrow_against_the_order(arrows):
    order = import_graph.ROOMS.index
    against = {
        pair: made_by
        for pair, made_by in import_graph.between_rooms(arrows).items()
        if order(pair[0]) < order(pair[1])
    }
    assert against == {}


def test_doors_import_rooms_and_no_room_a_door(arrows):
    for module, others in arrows.items():
        doors = [other for other in others if import_graph.room_of(other) is None]
        if import_graph.room_of(module) is not None:
            assert set(doors) <= {"dpa3sim"}, module  # its version


def test_the_page_has_the_drawing(arrows):
    page = import_graph.PAGE.read_text(encoding="utf-8")
    assert import_graph.drawn(page) == import_graph.drawing(arrows)


def test_the_page_describes_every_room():
    page = import_graph.PAGE.read_text(encoding="utf-8")
    for room in import_graph.ROOMS:
        assert f"`{room.replace('.', '/')}/`" in page or f"`{room.replace('.', '/')}.py`" in page


def test_every_package_is_installed():
    """The list in pyproject.toml has all folders with modules."""
    project = tomllib.loads((import_graph.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    found = {name for name, path in import_graph.modules().items() if path.name == "__init__.py"}
    assert listed == found
