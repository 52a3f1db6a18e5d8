"""The command line as a whole: help, versions, errors, conversion, and lazy imports."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests_support import DATA, load_reference, reference_atoms

from dpa3sim import Potential, __version__
from dpa3sim.checkpoints.registry import DEFAULT_MODEL
from dpa3sim.cli.main import COMMANDS, GROUPS, main
from dpa3sim.common import errors
from dpa3sim.common.errors import EXIT_CODES
from dpa3sim.kernels import libraries as native

HEAVY = ("torch", "ase", "numpy", "matplotlib", "rich", "scipy")


def modules_after(code):
    """Which heavy modules a fresh interpreter has loaded after running ``code``."""
    check = f"{code}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "code",
    [
        "import dpa3sim",
        "from dpa3sim.cli.main import main; main(['--help'])",
        "from dpa3sim.cli.main import main; main(['relx'])",
    ],
)
def test_import_and_help_load_nothing_heavy(code):
    assert modules_after(code) == "[]"


@pytest.mark.parametrize(
    "code",
    [
        "from dpa3sim.cli.main import main; main(['--version'])",
        "from dpa3sim.cli.main import main; main(['completion', 'bash'])",
        "from dpa3sim.cli.main import main; main(['relax', '--help'])",
        "from dpa3sim.cli.main import main; main(['model', 'list'])",
        f"import dpa3sim; dpa3sim.load_model({str(DATA / 'models/dynamic/model.pt')!r})",
    ],
)
def test_torch_is_loaded_only_to_compute(code):
    loaded = modules_after(code)
    assert "torch" not in loaded
    assert "ase" not in loaded


def test_public_names():
    import dpa3sim

    assert set(dpa3sim.__all__) <= set(dir(dpa3sim))
    for name in dpa3sim.__all__:
        assert getattr(dpa3sim, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Potental'"):
        dpa3sim.Potental  # noqa: B018


def test_help(capsys):
    assert main([]) == 0
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for title, commands in GROUPS.items():
        group = out.split(f"\n{title}:\n")[1].split("\n\n")[0]
        assert [line.split()[0] for line in group.splitlines()] == list(commands)
    assert all(f"  {code:<13}{meaning}\n" in out for code, meaning in EXIT_CODES.items())
    for command in COMMANDS:
        assert main([command, "--help"]) == 0


@pytest.mark.parametrize("variable", [None, "torch"])
def test_version_tells_model_and_kernels(variable, monkeypatch, capsys):
    monkeypatch.delenv(native.VARIABLE, raising=False)
    if variable:
        monkeypatch.setenv(native.VARIABLE, variable)
    assert main(["--version"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    told = {line.split()[0]: line for line in others}
    assert first == f"dpa3sim {__version__}"
    assert DEFAULT_MODEL in told["model"]
    assert torch.__version__ in told["torch"]
    assert all(build in told["kernels"] for build in native.built())
    assert (f"{native.VARIABLE}=torch" in told["kernels"]) == (variable == "torch")


def test_version_where_nothing_was_compiled(monkeypatch, capsys):
    monkeypatch.setattr(native, "_find", lambda build: None)
    assert main(["--version"]) == 0
    assert "none compiled" in capsys.readouterr().out


def test_exit_codes_are_those_of_the_documentation():
    page = (Path(__file__).resolve().parents[2] / "docs/cli.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (\d+) \| (.*?) \|", page, re.M)
    assert {int(code): text for code, text in table} == EXIT_CODES


def test_every_error_has_an_exit_code():
    kinds = [k for k in vars(errors).values() if isinstance(k, type)]
    kinds = [k for k in kinds if issubclass(k, errors.Dpa3simError)]
    assert len(kinds) > 5
    assert {kind.exit_code for kind in kinds} <= set(EXIT_CODES) - {errors.DONE}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["relx"], "unknown command 'relx'; did you mean 'relax'"),
        (["zzz"], f"commands are {', '.join(COMMANDS)}"),
        (["--verson"], "unknown option --verson; did you mean '--version'"),
        (["model", "lst"], "'lst' is not one of list, info, pull; did you mean 'list'"),
        (["model", "pull", "zzz"], "'dpa3sim model list' shows"),
        (["relax"], "STRUCTURE is missing; 'dpa3sim relax --help'"),
        (["neb", "a"], "2 of STRUCTURE are needed"),
        (["relax", "a", "--fmax", "abc"], "option --fmax = 'abc' must be a number"),
        (["doctor", "--matmul", "tf31"], "did you mean 'tf32'"),
        (["doctor", "x"], "unexpected 'x'"),
        (["doctor", "--device", "gpu"], "such as auto, cpu, cuda"),
        (["model", "info", "--jsn"], "did you mean '--json'"),
        (["model", "pull"], "needs a NAME"),
        (["convert", "a"], "OUT"),
    ],
)
def test_bad_usage(arguments, message, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_convert_and_compute(tmp_path, capsys):
    source, target = DATA / "models/multitask/model.pt", tmp_path / "omat.safetensors"
    assert main(["convert", str(source), str(target), "--head", "Omat24"]) == 0
    assert "head Omat24" in capsys.readouterr().out
    case = next(
        c for c in load_reference(source.parent / "reference.json") if c["head"] == "Omat24"
    )
    result = Potential(target).evaluate([reference_atoms(case)])[0]
    assert result.energy == pytest.approx(case["energy"], abs=1e-9)
    np.testing.assert_allclose(result.forces, case["forces"], atol=1e-9)
    assert main(["model", "info", str(target)]) == 0
    out = capsys.readouterr().out
    assert "omat" in out
    assert "model.pt" in out  # its origin


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{pt}", "x.pth"], "must end in .safetensors"),
        (["{pt}", "/nowhere/x.safetensors"], "this folder does not exist"),
        (["{multi}", "x.safetensors"], "several heads"),
        (["{multi}", "x.safetensors", "--head", "Omat"], "no head 'Omat'"),
        (["{pt}", "x.safetensors", "--ema"], "no moving averages"),
        (["{pth}", "x.safetensors", "--ema"], "only training checkpoints"),
        (["nothing.pt", "x.safetensors"], "no such model file"),
    ],
)
def test_convert_refuses(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = {
        "pt": DATA / "models/dynamic/model.pt",
        "pth": DATA / "models/dynamic/frozen.pth",
        "multi": DATA / "models/multitask/model.pt",
    }
    assert main(["convert", *(a.format(**files) for a in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_convert_does_not_overwrite(tmp_path, capsys):
    target = tmp_path / "x.safetensors"
    target.write_text("precious")
    source = str(DATA / "models/dynamic/model.pt")
    assert main(["convert", source, str(target)]) == 2
    assert target.read_text() == "precious"
    assert main(["convert", source, str(target), "--force"]) == 0
    assert target.stat().st_size > 1000


def test_convert_takes_moving_averages(tmp_path, capsys):
    folder, target = DATA / "variants/ema", tmp_path / "ema.safetensors"
    assert main(["convert", str(folder / "model.pt"), str(target), "--ema"]) == 0
    case = load_reference(folder / "reference_ema.json")[0]
    result = Potential(target).evaluate([reference_atoms(case)])[0]
    assert result.energy == pytest.approx(case["energy"], abs=1e-9)


def test_info_of_the_embedded_model(capsys):
    assert main(["model", "info"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "9 layers",
        "256/128/32",
        "6908561",
        "edges 6 Å",
        "angles 4 Å",
        "static: 120 edges, 30 angle-edges",
        "MP_traj_v024_alldata_mixu",
        "89: H He",
        "float32",
        "non-smooth at 4 Å",
        "selection limit",
        "never seen in training: Po",
    ):
        assert expected in out


def test_info_as_json(capsys):
    import json

    assert main(["model", "info", "--json", str(DATA / "models/charge_spin/frozen.pth")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["extra inputs"] == "charge and spin (default (1.0, 2.0))"
    assert facts["format"] == "torchscript"
    assert len(facts["sha256"]) == 64


def test_source_tree_works_without_installation(tmp_path):
    """In a checkout, a link makes protocols/ importable as dpa3sim.protocols."""
    root = Path(__file__).resolve().parents[2]
    # -S leaves out site-packages, and with it any installed dpa3sim.
    code = f"""
import sys
sys.path[:0] = {[str(root), *sys.path]!r}
import dpa3sim, dpa3sim.protocols.relax
from pathlib import Path
found = dpa3sim.protocols.relax
print(dpa3sim.__file__, Path(found.__file__).resolve(), found.Settings())
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert str(root / "protocols") in done.stdout
