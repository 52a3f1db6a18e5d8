"""Jobs from Python: the same directories as those of the commands, without a terminal."""

import json

import pytest
from tests_support import EXAMPLES

from dpa3sim.cli.main import main
from dpa3sim.common.errors import InputError
from dpa3sim.protocols import eos, sp
from dpa3sim.run.job import JobOptions
from dpa3sim.run.jobs import JOBS, job_of
from dpa3sim.run.jobs.eos import EosJob
from dpa3sim.run.jobs.sp import SinglePointJob
from dpa3sim.run.reporter import Reporter
from dpa3sim.structures.reading import read_structure


class Lines(Reporter):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def source():
    return read_structure(str(EXAMPLES / "POSCAR"))


def content(folder):
    result = json.loads((folder / "result.json").read_text())
    del result["directory"], result["structure"]
    return result


def test_a_job_writes_what_the_command_writes(source, embedded, tmp_path):
    assert main(["sp", str(EXAMPLES / "POSCAR"), "--out", str(tmp_path / "a"), "--quiet"]) == 0
    reporter = Lines()
    job = SinglePointJob((source,), embedded, sp.Settings(), tmp_path / "b", reporter=reporter)
    stored = job.execute()
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        p.name for p in (tmp_path / "b").iterdir()
    }
    assert job.exit_code(stored) == 0
    assert reporter.lines[-1] == f"results in {tmp_path / 'b'}"


def test_a_job_that_is_done_is_not_repeated(source, embedded, tmp_path):
    reporter = Lines()
    settings = sp.Settings()
    first = SinglePointJob((source,), embedded, settings, tmp_path / "run").execute()
    before = embedded.counters.evaluations
    again = SinglePointJob((source,), embedded, settings, tmp_path / "run", reporter=reporter)
    assert again.execute() == first
    assert embedded.counters.evaluations == before
    assert reporter.lines[-1] == f"already done in {tmp_path / 'run'}"


def test_another_calculation_is_refused_or_replaced(source, embedded, tmp_path):
    SinglePointJob((source,), embedded, sp.Settings(), tmp_path / "run").execute()
    other = embedded.in_precision("float64")
    with pytest.raises(InputError, match="holds a different calculation"):
        SinglePointJob((source,), other, sp.Settings(), tmp_path / "run").execute()
    options = JobOptions(force=True, command_line=["my script"])
    SinglePointJob((source,), other, sp.Settings(), tmp_path / "run", options).execute()
    provenance = json.loads((tmp_path / "run/provenance.json").read_text())
    assert [session["command"] for session in provenance["sessions"]] == [["my script"]]


def test_bad_structures_are_refused_before_a_directory_is_made(embedded, tmp_path):
    molecule = read_structure(str(EXAMPLES / "ethanol.xyz"))
    with pytest.raises(InputError):
        EosJob((molecule,), embedded, eos.Settings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_job_is_found():
    for name in JOBS:
        job = job_of(name)
        assert job.name == name
        assert job.protocol.__name__ == f"dpa3sim.protocols.{name}"
    with pytest.raises(InputError, match="'bands' is not a protocol; there are relax, sp"):
        job_of("bands")
