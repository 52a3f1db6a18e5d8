"""Pages that are written from the source are up to date; files about the project agree with it."""

import importlib.util
import re

import pytest
import yaml
from doc_pages import ROOT

from dpa3sim import __version__


def make_api():
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs/make_api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = make_api()


@pytest.mark.parametrize("name", MAKE.PAGES)
def test_generated_page_is_up_to_date(name):
    committed = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert committed == MAKE.PAGES[name](), "run python docs/make_api.py"


def test_api_has_every_protocol_and_public_name():
    import dpa3sim
    from dpa3sim.protocols import PUBLIC

    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    for name in set(dpa3sim.__all__) - {"__version__"}:
        assert f"#### `dpa3sim.{name}`" in text
    for path in (ROOT / "dpa3sim/cli").glob("*.py"):
        if re.search(r"^COMMAND = ", path.read_text(), re.M):
            assert path.stem in PUBLIC


def test_citation():
    data = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert data["version"] == __version__
    assert data["references"][0]["url"] == "https://arxiv.org/abs/2506.01686"


def test_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{__version__}]" in text or f"will be {__version__}," in text
