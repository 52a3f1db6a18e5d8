"""Sizes of tiles of the Triton programs: where they come from, and that they change no result."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from tests_support import DATA

from dpa3sim.checkpoints.registry import load_model
from dpa3sim.common.errors import InputError
from dpa3sim.kernels import tiles
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
from dpa3sim.kernels.probes import probe
from dpa3sim.kernels.tiles import Tiles
from dpa3sim.model.network import Network

GPU, CPU = torch.device("cuda"), torch.device("cpu")
OTHERS = Tiles(edge_rows=64, columns=16, depth=16, angle_rows=16, receivers=4, warps=8)


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card 1")
    monkeypatch.setenv(tiles.VARIABLE, str(tmp_path / "tiles.json"))
    return tmp_path / "tiles.json"


def test_tiles_of_a_card_that_was_measured(file):
    file.write_text(json.dumps({tiles.key("Card 1", torch.float32, "tf32"): asdict(OTHERS)}))
    assert Tiles.of(GPU, torch.float32, "tf32") == OTHERS
    assert Tiles.of(GPU, torch.float32, "full") == Tiles()
    assert Tiles.of(GPU, torch.float64, "tf32") == Tiles(edge_rows=16)
    assert Tiles.of(CPU, torch.float32, "tf32") == Tiles()


def test_the_file_that_is_shipped(monkeypatch):
    monkeypatch.delenv(tiles.VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "no such card")
    assert Tiles.of(GPU, torch.float32, "full") == Tiles()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"columns": 48}, "columns = 48 must be a power of two from 16"),
        ({"depth": 8}, "depth = 8 must be a power of two from 16"),
        ({"warps": True}, "warps = True must be"),
        ({"stages": 0}, "stages = 0 must be a number from 1"),
        ({"rows": 16}, "needs exactly edge_rows, columns"),
    ],
)
def test_what_is_no_tile_is_refused(file, changed, message):
    entry = {tiles.key("Card 1", torch.float32, "full"): asdict(Tiles()) | changed}
    file.write_text(json.dumps(entry))
    with pytest.raises(InputError, match=message):
        Tiles.of(GPU, torch.float32, "full")


def test_a_file_that_cannot_be_read(file):
    with pytest.raises(InputError, match="cannot be read"):
        Tiles.of(GPU, torch.float32, "full")
    file.write_text("[]")
    with pytest.raises(InputError, match="cannot be read"):
        Tiles.of(GPU, torch.float32, "full")


@pytest.mark.slow
@pytest.mark.parametrize("others", [OTHERS, replace(OTHERS, edge_rows=16, receivers=1)], ids=str)
def test_other_tiles_give_the_same_numbers(others, monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton")
    device = GPU if torch.cuda.is_available() else CPU
    model = load_model(DATA / "models/dynamic/model.pt")
    network = Network(model.config, model.weights, device, torch.float64)
    graph = probe(model.config, 2, np.array([21, 5]), np.array([18, 4]), False, device)

    def computed():
        return Evaluator(network, False, None, "full").evaluate(graph, MemoryPolicy())

    usual = computed()
    monkeypatch.setattr(Tiles, "of", lambda *arguments: others)
    for a, b in zip(computed(), usual, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(b.abs().max()))
