"""The documentation is true: its commands parse, its blocks run, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from doc_pages import (
    PAGES,
    ROOT,
    RUNNABLE,
    SHOWN,
    Block,
    anchors,
    blocks_of,
    code_spans,
    commands,
)
from tests_support import ENVIRONMENT, EXAMPLES

from dpa3sim.cli.main import COMMANDS, find, module_of
from dpa3sim.cli.main import EXAMPLES as FIRST_EXAMPLES
from dpa3sim.cli.options import Parser, resolve
from dpa3sim.potential.settings import ModelSettings

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUNNING = [page for page in PAGES if any(b.runs for b in blocks_of(page))]
SLOW = [page for page in RUNNING if any("slow" in b.marks for b in blocks_of(page))]
FAST = [p for p in RUNNING if any(b.runs and "slow" not in b.marks for b in blocks_of(p))]


def name(page):
    return str(page.relative_to(ROOT)) if isinstance(page, Path) else str(page)


# -- what is cheap: structure, commands, links ----------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_run_or_has_a_reason(block):
    assert block.language in (*RUNNABLE, *SHOWN), f"{block}: say what it is, such as ```bash"
    if block.language in RUNNABLE and not block.runs and "test-command" not in block.marks:
        assert len(block.marks["not run"]) > 10, f"{block}: why not?"
    if block.language in SHOWN:
        assert not re.search(r"^(\$ )?dpa3sim [a-z]", block.text, re.M), f"{block}: a command"


def parse(words):
    """Check a command line with the parser that runs it, and its values with their settings."""
    assert len(words) > 1, words
    if words[1].startswith("-"):
        assert words[1] in ("--help", "--version")
        return
    module, parser, rest = find(words[1:])
    if "--help" in rest:
        rest.remove("--help")
        assert not rest
        return
    args, unknown = parser.parse_known_intermixed_args(rest)
    assert not unknown, unknown
    if hasattr(module, "COMMAND") and not args.config:
        resolve(args, module.COMMAND.job.protocol.Settings, ModelSettings)


def dpa3sim_commands(text):
    return [words for words in commands(text) if words[0] == "dpa3sim"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_of_all_blocks_parse(page):
    for block in blocks_of(page):
        if block.language == "bash":
            for words in dpa3sim_commands(block.text):
                try:
                    parse(words)
                except SystemExit:
                    pytest.fail(f"{block}: {' '.join(words)}")


def parsers():
    """The parser of every command and subcommand, by name."""
    known = {}
    for command in COMMANDS:
        module, known[command], _ = find([command])
        for subcommand in getattr(module, "SUBCOMMANDS", {}):
            known[f"{command} {subcommand}"] = find([command, subcommand])[1]
    return known


PARSERS = parsers()
FLAGS = {flag for parser in PARSERS.values() for flag in parser.flags()} | {"--version"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_flags_in_the_text_exist(page):
    for line, span in code_spans(page):
        known = FLAGS
        if match := re.match(r"dpa3sim ((?:ipi )?[a-z][a-z-]*)", span):
            command = match.group(1)
            command = command if command in PARSERS else command.split()[0]
            assert command in PARSERS, f"{page}:{line}: {span}"
            known = {*PARSERS[command].flags()}
        elif not span.startswith("--"):
            continue
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", span):
            assert flag in known, f"{page}:{line}: {span} has no {flag}"


@pytest.mark.parametrize("command", PARSERS)
def test_help_ends_with_examples_that_parse(command):
    module = module_of(*command.split())
    lines = dpa3sim_commands(module.EXAMPLES)
    assert 2 <= len(module.EXAMPLES.splitlines()) <= 4
    assert all(" ".join(words[1:]).startswith(command.split()[0]) for words in lines)
    assert any(" ".join(words[1:]).startswith(command) for words in lines)
    for words in lines:
        parse(words)
    text = PARSERS[command].format_help()
    assert text.endswith("".join(f"  {line}\n" for line in module.EXAMPLES.splitlines()))


def test_first_examples_parse():
    for words in dpa3sim_commands(FIRST_EXAMPLES):
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


SOURCE = re.compile(r"(?<![\w/.-])(?:[\w-]+/)+[\w-]+\.(?:py|cpp|hpp)(?![\w/])")
SOURCES = [
    f"/{path.relative_to(ROOT).as_posix()}"
    for folder in ("dpa3sim", "protocols", "tests", "benchmarks", "docs", "examples")
    for path in (ROOT / folder).rglob("*.*")
]


def missing_files(page):
    """Source files that the inline code and the commands of a page name and that do not exist.

    A page may leave out the first folders: ``graph/skin.py``.
    """
    texts = [(line, span) for line, span in code_spans(page)]
    texts += [(block.line, block.text) for block in blocks_of(page) if block.language == "bash"]
    return [
        f"{page}:{line}: {name}"
        for line, text in texts
        for name in SOURCE.findall(text)
        if "NAME" not in name and not any(file.endswith(f"/{name}") for file in SOURCES)
    ]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_source_files_in_the_text_exist(page):
    assert not missing_files(page)


def test_missing_files_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("`graph/skin.py`, `nowhere/skin.py`, `protocols/NAME.py`, `python cli/no.py`")
    assert [text.split(": ")[1] for text in missing_files(page)] == [
        "nowhere/skin.py",
        "cli/no.py",
    ]


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/index.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        if page.name != "index.md":
            assert f"]({page.relative_to(ROOT / 'docs')})" in index, page


# -- running ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the examples, as of a newcomer, in which ``dpa3sim`` is a command."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for command, module in {"dpa3sim": "-m dpa3sim", "python": ""}.items():
        (bin / command).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (bin / command).chmod(0o755)
    here = tmp_path / "here"
    shutil.copytree(EXAMPLES, here / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(here)
    path = os.pathsep.join((str(bin), str(Path(sys.executable).parent), os.environ["PATH"]))
    for variable, value in {**ENVIRONMENT, "PATH": path}.items():
        monkeypatch.setenv(variable, value)
    return here


@pytest.mark.parametrize("page", FAST, ids=name)
def test_blocks_run(page, folder):
    run(page, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=name)
def test_slow_blocks_run(page, folder):
    run(page, slow=True)


def run(page, slow):
    """Run the blocks of a page in order; texts that follow a command are what it prints."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = None
    for block in blocks_of(page):
        if block.language == "text" and block.follows and printed is not None:
            if "not compared" not in block.marks:
                compare(block, printed)
            continue
        printed = None
        if not block.runs or ("slow" in block.marks and not slow):
            continue
        if "needs" in block.marks and not find_spec(block.marks["needs"]):
            continue
        if "setup" in block.marks:
            shell(block, block.marks["setup"])
        if block.language == "bash":
            printed = shell(block, block.text, int(block.marks.get("exits", 0)))
        else:
            code = "\n" * block.line + block.text
            exec(compile(code, str(block.page), "exec"), namespace)


def shell(block: Block, text: str, expected: int = 0) -> str:
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=600)
    finally:
        with suppress(ProcessLookupError):  # what it left in the background, too
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == expected, f"{block}: exit code {process.returncode}\n{printed}"
    return printed


NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def compare(block: Block, printed: str) -> None:
    """All lines that are shown were printed, in this order; times and rounding may differ.

    ``...`` stands for any lines. Numbers may differ by a tenth, and small ones by 0.05; those with
    an error (``±``) by five times that too; seconds by anything.
    """
    lines = iter(printed.splitlines())
    for shown in block.lines:
        if shown.strip() in ("...", ""):
            continue
        seen = []
        for line in lines:
            seen.append(line)
            if alike(shown, line):
                break
        else:
            nearest = "\n".join(seen[-20:])
            pytest.fail(f"{block}: {shown!r} was not printed, but\n{nearest}")


def alike(shown: str, line: str) -> bool:
    def skeleton(text: str) -> list[str]:
        return NUMBER.sub("#", re.sub(r"[\d.]+ (s|ms|MiB)\b", r"\1", text)).split()

    if skeleton(shown) != skeleton(line):
        return False
    timeless = [re.sub(r"[\d.]+ (s|ms|MiB)\b", r"\1", text) for text in (shown, line)]
    pairs = zip(*(NUMBER.findall(text) for text in timeless), strict=True)
    errors = [5 * float(e) for e in re.findall(r"± ([\d.e-]+)", shown)]
    slack = max([0.05, *errors])
    return all(abs(float(a) - float(b)) <= max(slack, 0.1 * abs(float(a))) for a, b in pairs)


def test_outputs_are_compared():
    assert alike(
        "energy -43.37 eV after 22 steps in 1.5 s", "energy  -43.38 eV after 23 steps in 9 s"
    )
    assert not alike("energy -43.37 eV", "energy -48.37 eV")
    assert not alike("energy -43.37 eV", "enthalpy -43.37 eV")
    assert alike("pressure 0.3 ± 0.1 GPa", "pressure 0.5 ± 0.1 GPa")


def test_commands_are_found_in_shell_lines():
    text = "dpa3sim a x > y 2>&1 &  # c\nfor i in 1 2; do dpa3sim b \\\n  --c; done\n"
    text += "A=1 dpa3sim d | cat"
    assert dpa3sim_commands(text) == [
        ["dpa3sim", "a", "x", "2"],
        ["dpa3sim", "b", "--c"],
        ["dpa3sim", "d"],
    ]


def test_parser_is_ours():
    assert all(isinstance(parser, Parser) for parser in PARSERS.values())
