"""Errors are for people: one line, whatever a file had in it."""

import errno
import os

import pytest

from dpa3sim.common.errors import CheckpointError, InputError, StorageError, memory_ran_out


def test_what_an_error_quotes_stays_in_its_line_and_out_of_the_terminal():
    error = InputError("no 'a\nb\x1b[31m\udcff' in für Å")
    assert str(error) == r"no 'a\nb\x1b[31m\udcff' in für Å"
    assert len(str(CheckpointError("x" * 10**6))) < 1500


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_a_way_out(number):
    error = StorageError.of(OSError(number, os.strerror(number)), "a.relax")
    assert str(error).startswith(f"a.relax: {os.strerror(number)}; ")
    assert "the same command continues" in str(error)


def test_closed_files_name_themselves():
    error = StorageError.of(PermissionError(errno.EACCES, "Permission denied", "a/b"), "a")
    assert str(error) == "a/b: Permission denied"


def test_only_a_lack_of_memory_is_one():
    assert memory_ran_out(MemoryError())
    assert memory_ran_out(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not memory_ran_out(RuntimeError("shapes do not match"))
    assert not memory_ran_out(ValueError("out of memory"))
