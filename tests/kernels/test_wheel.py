"""A wheel from this source serves every Python, and what it installs computes."""

import os
import platform
import shutil
import subprocess
import sys

import pytest
from tests_support import TESTS

ROOT = TESTS.parent


def run(*arguments, **environment):
    done = subprocess.run(
        list(map(str, arguments)),
        capture_output=True,
        text=True,
        cwd="/",
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What a source distribution has: no libraries that were built in place."""
    folder = tmp_path_factory.mktemp("source") / "dpa3sim"
    unwanted = shutil.ignore_patterns("*.so", "build", "*.egg-info", "__pycache__", ".*", "tests")
    shutil.copytree(ROOT, folder, ignore=unwanted, symlinks=True)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler"
)
def test_an_installed_wheel_computes(source, tmp_path):
    run(sys.executable, "-m", "pip", "wheel", "-q", source, "--no-deps", "-w", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    python, abi, system = wheel.stem.split("-")[-3:]
    assert (python, abi) == ("py3", "none")
    assert system.endswith(platform.machine())
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-q", wheel, "--no-deps", "--target", site)
    libraries = {file.name for file in (site / "dpa3sim/kernels").glob("*.so")}
    assert libraries
    assert not any("cpython" in name for name in libraries)
    out = run(sys.executable, TESTS / "kernels/wheel_check.py", PYTHONPATH=str(site))
    assert out.startswith(str(site))


@pytest.mark.slow
def test_a_build_without_kernels_is_for_every_machine(source, tmp_path):
    command = sys.executable, "-m", "pip", "wheel", "-q", source, "--no-deps", "-w", tmp_path
    run(*command, DPA3SIM_NO_NATIVE="1")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
